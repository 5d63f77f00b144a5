"""The job queue's part of scripts/bench: durable enqueue and claim + complete over HTTP, and the same in the program
beside a plain SQLite table with group commit (examples/queue_bench.rs)."""

import json
import os
import re
import statistics
import subprocess

import bench_kit as kit

KIND = "bench"
CONNECTIONS = (1, 16, 64)
SETTINGS = {
    "POCKETFLEET_QUEUE__EXTERNAL_KINDS": f'["{KIND}"]',
    "POCKETFLEET_QUEUE__USER_KINDS": f'["{KIND}"]',
    "POCKETFLEET_QUEUE__EXTERNAL_PER_TENANT": "1000000",
    "POCKETFLEET_QUEUE__MAX_WAITING": "9000000",
    "POCKETFLEET_QUEUE__MAX_WAITING_PER_TENANT": "9000000",
    "POCKETFLEET_QUEUE__MAX_FINISHED": "1000",
}

ENQUEUE = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"kind":"bench","payload":{"text":"%s"}}'
"""

# One connection a thread, so that a thread's state is a connection's: claim, then complete what was claimed.
WORK = """
jobs, claimed = 0, nil
wrk.headers["Content-Type"] = "application/json"
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() jobs = 0 end
function request()
  if claimed then return wrk.format("POST", "/api/v1/worker/complete", nil, claimed) end
  return wrk.format("POST", "/api/v1/worker/claim", nil, '{"max":1,"lease_seconds":60}')
end
function response(status, headers, body)
  if claimed then
    claimed = nil
    if status == 200 then jobs = jobs + 1 end
    return
  end
  local id, fence = body:match('"id":"(%w+)"'), body:match('"fence":(%d+)')
  if id and fence then claimed = string.format('{"id":"%s","fence":%s}', id, fence) end
end
function done(summary, latency, requests)
  local total = 0
  for _, thread in ipairs(threads) do total = total + (thread:get("jobs") or 0) end
  io.write(string.format("jobs: %d in %d us\\n", total, summary.duration))
end
"""


def wrk(bench, name, script, threads, connections, seconds, address, path, token):
    file = bench.temp / f"{name}.lua"
    file.write_text(script)
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", file,
               "-H", f"Authorization: {token}", f"http://{address}{path}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        kit.fail(f"wrk saw errors at {connections} connections on {path}:\n{text}")
    return text


def in_process(bench):
    """Runs the example that is built beside the program; none when it is not built."""
    example = bench.program.parent / "examples" / "queue_bench"
    if not example.is_file():
        kit.say(f"{example} is missing (cargo build --release --example queue_bench): not measured in the program")
        return None
    seconds = "1" if bench.quick else "3"
    done = subprocess.run([example, seconds], cwd=kit.ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        kit.fail(f"queue_bench: {done.stderr}")
    return json.loads(done.stdout)


def queue(bench):
    os.environ.update(SETTINGS)
    fleet = kit.Fleet(bench, "queue")
    fleet.start()
    for name in SETTINGS:
        del os.environ[name]
    _, token = fleet.user("queue")
    made = fleet.command("api-keys", "create", "--name", "bench", "--scope", f"worker:{KIND}")
    secret = f"Bearer {made['key']}"
    seconds, rounds = (1, 1) if bench.quick else (3, 3)
    results = {"http": {}}
    for connections in CONNECTIONS:
        adds, ends = [], []
        for _ in range(rounds):
            text = wrk(bench, "enqueue", ENQUEUE % ("x" * 240), 1, connections, seconds, fleet.address,
                       "/api/v1/jobs", token)
            adds.append(float(re.search(r"Requests/sec: +([\d.]+)", text)[1]))
            text = wrk(bench, "work", WORK, connections, connections, seconds, fleet.address,
                       "/api/v1/worker/claim", secret)
            jobs, micros = re.search(r"jobs: (\d+) in (\d+) us", text).groups()
            ends.append(int(jobs) * 1e6 / int(micros))
        middle = lambda values: round(statistics.median(values))
        results["http"][str(connections)] = {"enqueue_per_s": middle(adds), "claim_and_complete_per_s": middle(ends)}
    fleet.stop()
    if inside := in_process(bench):
        results["in_process"] = inside
    return results


def queue_report(found):
    rows = [[connections, f"{r['enqueue_per_s']:,}", f"{r['claim_and_complete_per_s']:,}"]
            for connections, r in found["http"].items()]
    text = ["### Jobs over HTTP\n\nA second; each is on disk (synchronous=FULL) before it is acknowledged. A job with "
            "240 bytes of payload; claim and complete are two requests and two commits.\n",
            kit.table(["connections", "enqueued", "claimed and completed"], rows)]
    if inside := found.get("in_process"):
        # What was measured before there were records to compare with is shown without them.
        said = lambda line, key, form: form.format(line[key]) if key in line else "–"
        rows = [[line["tasks"], f"{line['plain_sqlite_per_s']:,.0f}", said(line, "same_records_per_s", "{:,.0f}"),
                 f"{line['enqueue_per_s']:,.0f}", f"{line['ratio']:.2f}×", said(line, "ratio_to_same_records", "{:.2f}×"),
                 f"{line['claim_and_complete_per_s']:,.0f}"] for line in inside["one_at_a_time"]]
        text += ["### Jobs in the program\n\nA second, beside appending to a plain SQLite table through one thread with "
                 "group commit, which promises the same and does nothing else: to rows of 256 bytes, one after the other, "
                 "and to records of the size and names of ours, which lie apart by tenant and cost a page each.\n",
                 kit.table(["tasks", "rows appended", "same records", "enqueued", "of rows", "of records",
                            "claimed and completed"], rows),
                 f"\nBy 100 at once: {inside['enqueue_by_100_per_s']:,.0f} a second.\n",
                 "### Positions among 100,000 waiting jobs\n\nMicroseconds.\n",
                 kit.table(["tenants", "one position", "a tenant's whole line"],
                             [[f"{p['tenants']:,}", p["position_us"], p["active_us"]] for p in inside["positions"]])]
    return text
