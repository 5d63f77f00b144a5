"""The scenario `sockets` of scripts/bench: fan-out against Bun and a plain axum server, latency, idle memory.

Needs `npm` once, to fetch the `bun` program into the temporary folder of the run. The load is scripts/socket-load.
"""

import json
import os
import pathlib
import random
import statistics
import subprocess
import time

import bench_kit as kit

LOAD = pathlib.Path(__file__).resolve().parent / "socket-load"
BUN_VERSION = "1.4.5"
BUN_SERVER = """
const [host, port] = process.argv[2].split(":");
const server = Bun.serve({
  hostname: host, port: Number(port),
  async fetch(request, server) {
    if (new URL(request.url).pathname === "/publish") {
      server.publish("all", await request.text());
      return new Response("ok");
    }
    return server.upgrade(request) ? undefined : new Response("no", { status: 400 });
  },
  websocket: { open(socket) { socket.subscribe("all"); }, message() {} },
});
"""
SETTINGS = {
    "POCKETFLEET_SERVER__MAX_CONNECTIONS": "40000",
    "POCKETFLEET_SERVER__MAX_CONNECTIONS_PER_IP": "40000",
    "POCKETFLEET_EVENTS__MAX_SOCKETS": "40000",
    "POCKETFLEET_EVENTS__MAX_SOCKETS_PER_USER": "40000",
    "POCKETFLEET_EVENTS__MAX_SOCKETS_PER_IP": "40000",
    "POCKETFLEET_EVENTS__CONNECTS_PER_IP": "10000000",
}
LISTEN = "/ws?subscribe=system"
PUBLISH = "/api/v1/admin/realtime/publish"


def build():
    subprocess.run(["cargo", "build", "--release", "--quiet", "--locked"], cwd=LOAD, check=True)
    return LOAD / "target/release/socket-load"


def bun(bench):
    folder = bench.temp / "bun"
    folder.mkdir(exist_ok=True)
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", f"bun@{BUN_VERSION}"], cwd=folder, check=True)
    (folder / "server.js").write_text(BUN_SERVER)
    return [folder / "node_modules/.bin/bun", folder / "server.js"]


def peer(bench, command):
    """Starts one of the others; returns its process and address."""
    address = f"127.0.0.1:{kit.free_port()}"
    process = bench.start([*command, address], "peer.log")

    def answers():
        client = kit.Client(address)
        try:
            client.connection.request("POST", "/publish", body="x")
            return client.connection.getresponse().read() == b"ok"
        except OSError:
            return False
        finally:
            client.close()
    kit.eventually("the other server answers", answers)
    return process, address


def load(program, address, path, publish, body, sockets, window, rate, seconds, headers=()):
    command = [program, "load", address, path, publish, body, str(sockets), str(window), str(rate), str(seconds), *headers]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"bench: the load failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def medians(runs):
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def sockets(bench):
    program = build()
    others = {"bun": bun(bench), "axum": [program, "axum"]}
    os.environ.update(SETTINGS)
    fleet = kit.Fleet(bench, "sockets")
    fleet.start()
    account = {"email": "root@example.com"}
    account["password"] = fleet.command("admin", "create", "--email", account["email"])["password"]
    client = kit.Client(fleet.address)
    signed_in, _ = client.call("POST", "/auth/login", account)
    client.close()
    headers = [f"Authorization: Bearer {signed_in['token']}"]
    text = "x" * 1024
    ours = json.dumps({"topic": "system", "event": "Bench", "data": {"text": "x" * 990}})
    rounds, seconds = (1, 1) if bench.quick else (5, 4)
    cases = [(200, 4)] if bench.quick else [(1000, 4), (1000, 1), (5000, 4), (5000, 1)]
    found = {"fan-out": {}}
    started = {name: peer(bench, command) for name, command in others.items()}
    for sockets, window in cases:
        runs = {"pocketfleet": [], "bun": [], "axum": []}
        for _ in range(rounds):
            for name in random.sample(list(runs), len(runs)):
                if name == "pocketfleet":
                    result = load(program, fleet.address, LISTEN, PUBLISH, ours, sockets, window, 0, seconds, headers)
                else:
                    result = load(program, started[name][1], "/ws", "/publish", text, sockets, window, 0, seconds)
                runs[name].append(result)
                time.sleep(0.5)
        found["fan-out"][f"{sockets}, {window}"] = {name: medians(results) for name, results in runs.items()}
    for process, _ in started.values():
        bench.stop(process)
    sockets = 200 if bench.quick else 1000
    found["latency"] = load(program, fleet.address, LISTEN, PUBLISH, ours, sockets, 64, 20, 3 if bench.quick else 30, headers)
    found["latency"]["sockets"] = sockets
    found["idle"] = idle(bench, program, fleet, headers, 500 if bench.quick else 10_000)
    fleet.stop()
    return found


def idle(bench, program, fleet, headers, sockets):
    before = round(kit.memory_mib(fleet.process.pid)[2])
    command = [program, "idle", fleet.address, "/queue_updates", str(sockets), *headers]
    holder = bench.start(command, "idle.log", stdout=subprocess.PIPE)
    if holder.stdout.readline().strip() != b"ready":
        raise SystemExit("bench: the idle sockets could not be opened")
    time.sleep(3)
    after, cpu = round(kit.memory_mib(fleet.process.pid)[2]), kit.cpu_seconds([fleet.process.pid])
    time.sleep(10)
    cpu = kit.cpu_seconds([fleet.process.pid]) - cpu
    bench.stop(holder)
    return {"sockets": sockets, "before": before, "after": after, "cpu_ms_per_s": round(cpu * 100, 2)}


def sockets_report(found):
    rows = []
    for case, results in found["fan-out"].items():
        for name, r in results.items():
            rows.append([case, name, f"{r['deliveries_per_s']:,.0f}", kit.ratio(r["deliveries_per_s"], results["bun"]["deliveries_per_s"]),
                         f"{r['each_p50_us'] / 1000:.1f}", f"{r['each_p99_us'] / 1000:.1f}"])
    latency, held = found["latency"], found["idle"]
    return [
        "### Events to sockets\n\n1 KB each, published over HTTP, so many on their way at once; medians of the rounds. "
        "pocketfleet has every event on disk before it sends it; the others keep nothing.\n",
        kit.table(["sockets, in flight", "server", "deliveries/s", "of Bun", "p50 ms", "p99 ms"], rows),
        f"20 events a second to {latency['sockets']} sockets, from the request to each socket: p50 "
        f"{latency['each_p50_us'] / 1000:.1f} ms, p99 {latency['each_p99_us'] / 1000:.1f} ms.\n\n"
        f"{held['sockets']} idle sockets: {held['after']} MiB resident (before: {held['before']}), {held['cpu_ms_per_s']} ms of CPU a second.\n",
    ]
