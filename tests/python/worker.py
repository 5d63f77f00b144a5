"""A worker in a few lines: claims jobs, reports progress, completes them. Standard library only.

Environment: POCKETFLEET_URL, POCKETFLEET_KEY (a `pfk_…` key with the scope `worker:KIND`), and optionally JOBS, the
number of jobs after which it stops. Prints one line of JSON for each job done.
"""

import json
import os
import sys
import urllib.error
import urllib.request

BASE = os.environ["POCKETFLEET_URL"].rstrip("/") + "/api/v1/worker"
KEY = os.environ["POCKETFLEET_KEY"]


class Lost(Exception):
    """Somebody else has the job now: drop it without a word."""


def call(verb, body, timeout=60):
    request = urllib.request.Request(
        f"{BASE}/{verb}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        detail = json.load(error)["error"]
        if detail["code"] == "LEASE_LOST":
            raise Lost(detail["message"]) from error
        raise RuntimeError(f"{verb}: {error.code} {detail['code']}: {detail['message']}") from error


def work(job):
    """Counts the letters of each word of the payload."""
    mine = {"id": job["id"], "fence": job["fence"]}
    words = job["payload"]["words"]
    if not all(isinstance(word, str) for word in words):
        raise ValueError("a word is not a text")
    lengths = []
    for done, word in enumerate(words, start=1):
        lengths.append(len(word))
        call("progress", {**mine, "step": "counting", "done": done, "total": len(words)})
        told = call("heartbeat", mine)
        if told["cancelled"]:
            raise ValueError("called off")
    return {"lengths": lengths}


def main():
    left = int(os.environ.get("JOBS", "1"))
    while left > 0:
        claimed = call("claim", {"max": 1, "wait_seconds": 20})["items"]
        for job in claimed:
            mine = {"id": job["id"], "fence": job["fence"]}
            try:
                result = work(job)
                call("complete", {**mine, "result": result})
                print(json.dumps({"id": job["id"], **result}), flush=True)
            except Lost as lost:
                print(json.dumps({"id": job["id"], "lost": str(lost)}), flush=True)
            except (KeyError, TypeError, ValueError) as error:
                call("fail", {**mine, "reason": str(error), "retryable": False})
                print(json.dumps({"id": job["id"], "failed": str(error)}), flush=True)
            left -= 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
