"""Accounts and tenants in numbers, written into the databases of a stopped pocketfleet: registering hashes a password,
which takes 50 ms for each."""

import concurrent.futures
import hashlib
import json
import secrets
import sqlite3
import threading
import time

import bench_kit as kit

PATH = "/api/collections/notes/records?perPage=1"
MADE = "2026-01-01T00:00:00Z"


class Control:
    """The one place that knows the format of the control database: records are `key, revision, value`, and `clock` holds
    the last revision given. Change it together with src/store/sqlite/schema.rs and the files of src/store that the
    records below are of."""

    def __init__(self, path):
        self.database = sqlite3.connect(path)
        self.revision, = self.database.execute("SELECT revision FROM clock").fetchone()
        self.rows = []

    def put(self, key, **value):
        self.revision += 1
        self.rows.append((key, self.revision, json.dumps(value).encode()))

    def close(self):
        with self.database:
            self.database.executemany("INSERT INTO records (key, revision, value) VALUES (?, ?, ?)", self.rows)
            self.database.execute("UPDATE clock SET revision = ?", (self.revision,))
        self.database.close()

    def template_version(self):
        """The version of the personal template that somebody's instance has."""
        found = self.database.execute("SELECT value FROM records WHERE key LIKE 'version.%'")
        versions = (json.loads(value) for value, in found)
        return next(version["hash"] for version in versions if version["template"] == "personal")


def accounts(fleet, number):
    """So many accounts, which need one that was registered to be like; returns pairs of id and token, both good at
    pocketfleet."""
    folder = fleet.data / "instances" / "global" / "pb_data"
    database = sqlite3.connect(folder / "data.db")
    database.row_factory = sqlite3.Row
    like = dict(database.execute("SELECT * FROM users LIMIT 1").fetchone())
    like_key, collection = kit.signing_key(folder, like["id"])
    secret = like_key.removeprefix(like["tokenKey"])
    rows = [{**like, "id": f"seed{n:011d}", "email": f"seed{n}@example.com", "name": f"seed {n}",
             "tokenKey": secrets.token_urlsafe(38)[:50]} for n in range(number)]
    columns = ", ".join(like)
    with database:
        database.executemany(f"INSERT INTO users ({columns}) VALUES ({', '.join(':' + name for name in like)})", rows)
    database.close()
    return [(row["id"], kit.signed_token(row["tokenKey"] + secret, collection, row["id"])) for row in rows]


def new_tenants(fleet, number):
    """Accounts with tenants that never ran: the first request to each makes its directory."""
    users = accounts(fleet, number)
    control = Control(fleet.data / "control.db")
    for name, _ in users:
        put_tenant(control, name)
    control.close()
    return users


def used_tenants(fleet, number, sessions):
    """Accounts with tenants that ran once and sleep, as far as the databases know: they have no directories, so they
    can be listed but not woken. With `sessions` each is signed in once. Needs a user whose instance ran."""
    users = accounts(fleet, number)
    control = Control(fleet.data / "control.db")
    version = control.template_version()
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86400))
    for uid, (name, token) in enumerate(users, fleet.base + 1000):
        put_tenant(control, name)
        control.put(f"place.{name}", tenant=name, epoch=1, state="idle")
        control.put(f"version.{name}", tenant=name, template="personal", hash=version, upgraded_at=MADE)
        control.put(f"uid.{uid}", uid=uid, tenant=name)
        if sessions:
            of = hashlib.sha256(token.encode()).hexdigest()
            control.put(f"session.{name}.{of}", id=of, user=name, status="live", device="", ip="127.0.0.1",
                        created_at=MADE, expires_at=expires)
    control.close()


def put_tenant(control, name):
    control.put(f"tenant.{name}", id=name, kind="personal", template="personal", owner=name, pinned=False,
                suspended=False, created_at=MADE)


def ask_all(fleet, users, threads=8, until=lambda: False):
    """One request to each, which wakes those that sleep; returns how long each took, and all together, in
    milliseconds. Ends early when `until` says so, which is asked every now and then."""
    remaining, lock, stop = iter(users), threading.Lock(), threading.Event()

    def work():
        took = []
        while not stop.is_set():
            with lock:
                user = next(remaining, None)
            if not user:
                break
            client = kit.Client(fleet.address, user[1])
            took.append(client.call("GET", PATH)[1])
            client.close()
            if len(took) % 10 == 0 and until():
                stop.set()
        return took

    start = kit.now_ms()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        parts = [part.result() for part in [pool.submit(work) for _ in range(threads)]]
    return [took for part in parts for took in part], kit.now_ms() - start


def awake(fleet, users):
    """The process of each of these tenants that is awake."""
    wanted = {name for name, _ in users}
    listed = kit.all_tenants(fleet, len(users) + 10)
    return {item["tenant"]: item["pid"] for item in listed if item["tenant"] in wanted and item["state"] == "awake"}
