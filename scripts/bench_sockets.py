"""The scenarios `sockets` and `streams` of scripts/bench: fan-out against Bun, Node with `ws` and a plain axum server,
latency, idle memory; and fan-out to streams of server-sent events against Bun and Node.

`npm` fetches the program `bun` and the package `ws` once, into a folder below target/; without npm both are left out,
without Node `ws` is. The load is scripts/socket-load.
"""

import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import tempfile
import time

import bench_kit as kit

LOAD = pathlib.Path(__file__).resolve().parent / "socket-load"
PACKAGES = {"bun": "1.4.5", "ws": "8.23.0"}
BUN_SERVER = """
const [host, port] = process.argv[2].split(":");
const streams = new Set();
const server = Bun.serve({
  idleTimeout: 0,
  hostname: host, port: Number(port),
  async fetch(request, server) {
    const path = new URL(request.url).pathname;
    if (path === "/publish") {
      const text = await request.text();
      server.publish("all", text);
      const event = Buffer.from(`data: "${text}"\\n\\n`);
      for (const stream of streams) stream.enqueue(event);
      return new Response("ok");
    }
    if (path === "/stream") {
      let mine;
      const body = new ReadableStream({
        start(stream) { mine = stream; streams.add(stream); stream.enqueue(":\\n\\n"); },
        cancel() { streams.delete(mine); },
      });
      return new Response(body, { headers: { "content-type": "text/event-stream" } });
    }
    return server.upgrade(request) ? undefined : new Response("no", { status: 400 });
  },
  websocket: { open(socket) { socket.subscribe("all"); }, message() {} },
});
"""
NODE_SERVER = """
const { createServer } = require("node:http");
const { WebSocketServer } = require("ws");
const [host, port] = process.argv[2].split(":");
const sockets = new WebSocketServer({ noServer: true, clientTracking: true, perMessageDeflate: false });
const streams = new Set();
const server = createServer((request, response) => {
  if (request.url === "/stream") {
    response.writeHead(200, { "content-type": "text/event-stream" }).flushHeaders();
    streams.add(response);
    return response.on("close", () => streams.delete(response));
  }
  const parts = [];
  request.on("data", (part) => parts.push(part)).on("end", () => {
    const text = Buffer.concat(parts);
    for (const socket of sockets.clients) socket.send(text, { binary: false });
    const event = Buffer.from(`data: "${text}"\\n\\n`);
    for (const stream of streams) stream.write(event);
    response.end("ok");
  });
});
server.on("upgrade", (request, socket, head) => sockets.handleUpgrade(request, socket, head, () => {}));
server.listen(Number(port), host);
"""
# Those that ratios may be taken to, the first of them that is there.
MEASURES = ("bun", "node ws", "axum")
SETTINGS = {
    "POCKETFLEET_SERVER__MAX_CONNECTIONS": "40000",
    "POCKETFLEET_SERVER__MAX_CONNECTIONS_PER_IP": "40000",
    "POCKETFLEET_EVENTS__MAX_SOCKETS": "40000",
    "POCKETFLEET_EVENTS__MAX_SOCKETS_PER_USER": "40000",
    "POCKETFLEET_EVENTS__MAX_SOCKETS_PER_IP": "40000",
    "POCKETFLEET_EVENTS__CONNECTS_PER_IP": "10000000",
}
LISTEN = "/ws?subscribe=system"
STREAM = "/api/v1/events?topics=system"
PUBLISH = "/api/v1/admin/realtime/publish"


def build():
    """Builds the load and returns its program."""
    subprocess.run(["cargo", "build", "--release", "--quiet", "--locked"], cwd=LOAD, check=True)
    return LOAD / "target/release/socket-load"


def from_npm(bench):
    """The commands of the servers that npm brings; none without npm."""
    if not kit.which("npm"):
        kit.say("sockets: npm is missing; Bun and Node's ws are left out")
        return {}
    wanted = [f"{name}@{version}" for name, version in PACKAGES.items()]
    folder = kit.ROOT / "target/bench-npm" / "-".join(wanted)
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Bun's package fetches its program in a script of its own; elsewhere scripts may be switched off.
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts=false", *wanted]
        if subprocess.run(command, cwd=folder).returncode != 0:
            kit.say("sockets: npm could not fetch them; Bun and Node's ws are left out")
            return {}
        (folder / "done").touch()
    (bench.temp / "bun.js").write_text(BUN_SERVER)
    # Node looks for packages beside the file.
    (folder / "node.cjs").write_text(NODE_SERVER)
    commands = {"bun": [folder / "node_modules/.bin/bun", bench.temp / "bun.js"]}
    if node := kit.which("node"):
        commands["node ws"] = [node, folder / "node.cjs"]
    else:
        kit.say("sockets: node is missing; its ws is left out")
    return commands


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


def load(program, address, path, publish, body, sockets, window, rate, seconds, headers=(), kind="load"):
    command = [program, kind, address, path, publish, body, str(sockets), str(window), str(rate), str(seconds), *headers]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"bench: the load failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def medians(runs):
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def events_fleet(bench, name, more=None, folder=None):
    """A pocketfleet whose operator publishes; returns it with the headers of requests."""
    os.environ.update({**SETTINGS, **(more or {})})
    fleet = kit.Fleet(bench, name)
    if folder:
        fleet.data = folder
    fleet.start()
    for key in (*SETTINGS, *(more or {})):
        del os.environ[key]
    account = {"email": "root@example.com"}
    account["password"] = fleet.command("admin", "create", "--email", account["email"])["password"]
    client = kit.Client(fleet.address)
    signed_in, _ = client.call("POST", "/auth/login", account)
    client.close()
    return fleet, [f"Authorization: Bearer {signed_in['token']}"]


def sockets(bench):
    program = build()
    others = {**from_npm(bench), "axum": [program, "axum"]}
    # What the disk costs, and what it costs that two workers and the load share the cores.
    memory = pathlib.Path(tempfile.mkdtemp(prefix="pocketfleet-bench-", dir="/dev/shm"))
    memory.chmod(0o711)
    fleets = {
        "pocketfleet": events_fleet(bench, "sockets"),
        "pocketfleet, one worker": events_fleet(bench, "sockets-one", {"POCKETFLEET_SERVER__WORKERS": "1"}),
        "pocketfleet, its disk in memory": events_fleet(bench, "sockets-memory", folder=memory / "data"),
    }
    fleet, headers = fleets["pocketfleet"]
    text = "x" * 1024
    ours = json.dumps({"topic": "system", "event": "Bench", "data": {"text": "x" * 990}})
    rounds, seconds = (1, 1) if bench.quick else (5, 3)
    cases = [(200, 4)] if bench.quick else [(1000, 4), (1000, 1), (5000, 4), (5000, 1)]
    found = {"versions": {name: PACKAGES[name.split()[-1]] for name in others if name != "axum"}, "fan-out": {}}
    started = {name: peer(bench, command) for name, command in others.items()}
    for sockets, window in cases:
        runs = {name: [] for name in (*fleets, *others)}
        for _ in range(rounds):
            for name in random.sample(list(runs), len(runs)):
                if name in fleets:
                    of, its = fleets[name]
                    result = load(program, of.address, LISTEN, PUBLISH, ours, sockets, window, 0, seconds, its)
                else:
                    result = load(program, started[name][1], "/ws", "/publish", text, sockets, window, 0, seconds)
                runs[name].append(result)
                time.sleep(0.5)
        found["fan-out"][f"{sockets}, {window}"] = {name: medians(results) for name, results in runs.items()}
    for process, _ in started.values():
        bench.stop(process)
    for name, (other, _) in fleets.items():
        if name != "pocketfleet":
            other.stop()
    shutil.rmtree(memory, ignore_errors=True)
    sockets = 200 if bench.quick else 1000
    found["latency"] = load(program, fleet.address, LISTEN, PUBLISH, ours, sockets, 64, 20, 3 if bench.quick else 30, headers)
    found["latency"]["sockets"] = sockets
    found["idle"] = idle(bench, program, fleet, headers, 500 if bench.quick else 10_000)
    fleet.stop()
    return found


def streams(bench):
    program, others = build(), from_npm(bench)
    fleet, headers = events_fleet(bench, "streams")
    started = {name: peer(bench, command) for name, command in others.items()}
    ours = json.dumps({"topic": "system", "event": "Bench", "data": {"text": "x" * 990}})
    rounds, seconds = (1, 1) if bench.quick else (5, 3)
    found = {}
    for number, window in [(200, 4)] if bench.quick else [(1000, 4), (1000, 1)]:
        runs = {name: [] for name in ("pocketfleet", *others)}
        for _ in range(rounds):
            for name in kit.shuffled(runs):
                to = (fleet.address, STREAM, PUBLISH, ours) if name == "pocketfleet" else \
                    (started[name][1], "/stream", "/publish", "x" * 1024)
                its = headers if name == "pocketfleet" else ()
                runs[name].append(load(program, *to, number, window, 0, seconds, its, "streams"))
                time.sleep(0.5)
        found[f"{number}, {window}"] = {name: medians(results) for name, results in runs.items()}
    for process, _ in started.values():
        bench.stop(process)
    fleet.stop()
    return found


def streams_report(found):
    rows = [[case, name.split()[0], f"{r['deliveries_per_s']:,.0f}", kit.ratio(r["deliveries_per_s"], results["bun"]["deliveries_per_s"])
             if "bun" in results else "–", f"{r['each_p50_us'] / 1000:.1f}", f"{r['each_p99_us'] / 1000:.1f}"]
            for case, results in found.items() for name, r in results.items()]
    return ["### Events to streams\n\nThe same over server-sent events (`GET /api/v1/events`), for clients without sockets; Bun "
            "with a `ReadableStream` each, Node with a response each.\n",
            kit.table(["streams, in flight", "server", "deliveries/s", "of bun", "p50 ms", "p99 ms"], rows)]


def idle(bench, program, fleet, headers, sockets):
    before = round(kit.memory_mib(fleet.process.pid)[2])
    command = [program, "idle", fleet.address, "/queue_updates", str(sockets), *headers]
    holder = bench.start(command, "idle.log", stdout=subprocess.PIPE)
    if holder.stdout.readline().strip() != b"ready":
        raise SystemExit("bench: the idle sockets could not be opened")
    time.sleep(3)
    quiet = 2 if bench.quick else 10
    after, cpu = round(kit.memory_mib(fleet.process.pid)[2]), kit.cpu_seconds([fleet.process.pid])
    time.sleep(quiet)
    cpu = kit.cpu_seconds([fleet.process.pid]) - cpu
    bench.stop(holder)
    return {"sockets": sockets, "before": before, "after": after, "cpu_ms_per_s": round(cpu * 1000 / quiet, 2)}


def sockets_report(found):
    rows = []
    measure = next(name for name in MEASURES if name in next(iter(found["fan-out"].values())))
    for case, results in found["fan-out"].items():
        for name, r in results.items():
            rows.append([case, name, f"{r['deliveries_per_s']:,.0f}",
                         kit.ratio(r["deliveries_per_s"], results[measure]["deliveries_per_s"]), f"{r['each_p50_us'] / 1000:.1f}",
                         f"{r['each_p99_us'] / 1000:.1f}"])
    latency, held = found["latency"], found["idle"]
    return [
        "### Events to sockets\n\n1 KB each, published over HTTP, so many on their way at once; medians of the rounds. "
        "pocketfleet has every event on disk before it sends it; the others keep nothing. With its disk in memory it has "
        "nothing to wait for; with one worker it has as many threads that write as Bun, and the load a core of its own."
        + "".join(f" {name} is {version}." for name, version in found.get("versions", {}).items()) + "\n",
        kit.table(["sockets, in flight", "server", "deliveries/s", f"of {measure}", "p50 ms", "p99 ms"], rows),
        f"20 events a second to {latency['sockets']} sockets, from the request to each socket: p50 "
        f"{latency['each_p50_us'] / 1000:.1f} ms, p99 {latency['each_p99_us'] / 1000:.1f} ms.\n\n"
        f"{held['sockets']} idle sockets: {held['after']} MiB resident (before: {held['before']}), {held['cpu_ms_per_s']} ms of CPU a second.\n",
    ]
