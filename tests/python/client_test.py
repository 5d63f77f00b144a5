"""The stock Python client (PyPI `pocketbase`), unmodified, against pocketfleet: accounts, records, files, realtime.

POCKETFLEET_URL says where it is. Instances are expected to fall asleep within seconds.
"""

import io
import json
import os
import queue
import sys
import time
import unittest
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / ".packages"))

from pocketbase import Client  # noqa: E402
from pocketbase.errors import ClientResponseError  # noqa: E402
from pocketbase.models import FileUpload  # noqa: E402

BASE = os.environ["POCKETFLEET_URL"]
PATIENCE = 60


def eventually(what, look):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if look():
            return
        time.sleep(0.05)
    raise AssertionError(f"not within {PATIENCE} s: {what}")


def awake():
    """How many instances run, the global one not counted."""
    with urllib.request.urlopen(f"{BASE}/health/pb") as answer:
        states = json.load(answer)["states"]
    return sum(count for state, count in states.items() if state != "asleep")


def sign_up(name):
    client = Client(BASE)
    email, password = f"{name}@python.example.com", f"password-of-{name}"
    client.collection("users").create({"email": email, "password": password, "passwordConfirm": password})
    client.collection("users").auth_with_password(email, password)
    return client


class PythonClient(unittest.TestCase):
    def test_accounts(self):
        client = sign_up("ada")
        self.assertTrue(client.auth_store.token)
        before = client.auth_store.model.id
        client.collection("users").auth_refresh()
        self.assertEqual(client.auth_store.model.id, before)
        self.assertTrue(client.collection("users").list_auth_methods())
        with self.assertRaises(ClientResponseError) as refused:
            Client(BASE).collection("users").auth_with_password("ada@python.example.com", "wrong password")
        self.assertEqual(refused.exception.status, 400)

    def test_records(self):
        client = sign_up("bob")
        notes = client.collection("notes")
        made = [notes.create({"title": title, "tags": ["python"]}) for title in ("b", "a", "c")]
        self.assertEqual([note.title for note in notes.get_full_list(query_params={"sort": "title"})], ["a", "b", "c"])
        notes.update(made[0].id, {"title": "d"})
        found = notes.get_first_list_item('title = "d"')
        self.assertEqual(found.id, made[0].id)
        notes.delete(made[1].id)
        self.assertEqual(notes.get_list(1, 1).total_items, 2)
        with self.assertRaises(ClientResponseError) as absent:
            notes.get_one(made[1].id)
        self.assertEqual(absent.exception.status, 404)
        self.assertEqual(sign_up("eve").collection("notes").get_list(1, 1).total_items, 0, "another's are not seen")

    def test_files(self):
        client = sign_up("cyd")
        content = b"hello from python"
        upload = FileUpload("hello.txt", io.BytesIO(content))
        note = client.collection("notes").create({"title": "file", "attachments": upload})
        token = client.files.get_token()
        # As a browser would: the address alone.
        url = client.files.get_url(note, note.attachments[0], {"token": token})
        with urllib.request.urlopen(url) as answer:
            self.assertEqual(answer.read(), content)
        below = Client(f"{BASE}/t/{client.auth_store.model.id}")
        with urllib.request.urlopen(below.files.get_url(note, note.attachments[0])) as answer:
            self.assertEqual(answer.read(), content)

    def subscribed(self, client, events):
        client.collection("notes").subscribe(events.put)
        deadline = time.monotonic() + 5
        while not client.realtime.client_id and time.monotonic() < deadline:
            time.sleep(0.05)
        return client.realtime.client_id

    def test_realtime_outlives_sleep(self):
        client = sign_up("dan")
        events = queue.Queue()
        client.collection("notes").create({"title": "before"})
        # The client starts to read before it listens, and misses a first event that comes at once: then once more.
        while not self.subscribed(client, events):
            client.realtime.unsubscribe()
        eventually("everybody sleeps", lambda: awake() == 0)
        second = Client(BASE)
        second.collection("users").auth_with_password("dan@python.example.com", "password-of-dan")
        second.collection("notes").create({"title": "after"})
        event = events.get(timeout=PATIENCE)
        self.assertEqual((event.action, event.record.title), ("create", "after"))
        second.collection("notes").create({"title": "last"})
        self.assertEqual(events.get(timeout=PATIENCE).record.title, "last", "nothing came twice")
        client.collection("notes").unsubscribe()


if __name__ == "__main__":
    unittest.main(verbosity=2)
