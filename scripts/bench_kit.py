"""What every scenario of scripts/bench uses: servers that are started and stopped, clients, figures, tables."""

import atexit
import base64
import hashlib
import hmac
import http.client
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PASSWORD = "correct horse battery"
TICKS = os.sysconf("SC_CLK_TCK")

# What pocketfleet tells Go's runtime in every instance (instances.gc_percent and three quarters of instances.data_bytes).
GO = {"GOGC": "200", "GOMEMLIMIT": str((1 << 30) // 4 * 3)}


def fail(message):
    sys.exit(f"bench: {message}")


def say(message):
    print(f"bench: {message}", flush=True)


def which(tool):
    """Debian keeps servers where only root looks for programs."""
    return shutil.which(tool) or shutil.which(tool, path="/usr/local/sbin:/usr/sbin:/sbin")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(what, condition, seconds=30.0, pause=0.005):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            found = condition()
        except (OSError, http.client.HTTPException):
            found = None
        if found:
            return found
        time.sleep(pause)
    fail(f"{what}: not within {seconds} s")


def now_ms():
    return time.perf_counter() * 1000


class Upload:
    """A form with some fields and one file of so many bytes."""

    content_type = "multipart/form-data; boundary=bench"

    def __init__(self, fields, name, size):
        parts = [f'--bench\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()]
        parts.append(f'--bench\r\nContent-Disposition: form-data; name="{name}"; filename="file.bin"\r\n'
                     f"Content-Type: application/octet-stream\r\n\r\n{'x' * size}\r\n--bench--\r\n")
        self.bytes = "".join(parts).encode()


class Client:
    """One kept-alive connection. The time a call takes ends with the head of the answer."""

    def __init__(self, address, token=None):
        host, port = address.rsplit(":", 1)
        self.connection = http.client.HTTPConnection(host, int(port), timeout=60)
        self.headers = {"Authorization": token} if token else {}

    def call(self, method, path, body=None, expected=(200,)):
        headers = dict(self.headers)
        if isinstance(body, Upload):
            headers["Content-Type"], body = body.content_type, body.bytes
        elif body is not None:
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        start = now_ms()
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        took = now_ms() - start
        data = answer.read()
        if answer.status not in expected:
            fail(f"{method} {path}: status {answer.status}: {data[:300]!r}")
        return (json.loads(data) if data[:1] in (b"{", b"[") else data), took

    def close(self):
        self.connection.close()


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def spread(values):
    return {
        "n": len(values),
        "p50": round(statistics.median(values), 3),
        "p90": round(percentile(values, 0.9), 3),
        "p99": round(percentile(values, 0.99), 3),
        "min": round(min(values), 3),
    }


def shuffled(things):
    things = list(things)
    random.shuffle(things)
    return things


def cpu_seconds(pids):
    total = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def cpu_exact(pids):
    """CPU seconds of all threads that run now, in nanoseconds' resolution: what idles uses less than one tick. A thread
    that ends takes its share along; those of servers stay."""
    total = 0
    for pid in pids:
        for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
            try:
                total += int((thread / "schedstat").read_text().split()[0])
            except OSError:
                pass
    return total / 1e9


def cpu_of_children(pid):
    """CPU seconds of those that ended and were waited for."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[13]) + int(fields[14])) / TICKS


def threads_and_descriptors(pid):
    """Of one process."""
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


def memory_mib(pid):
    """(proportional, private, resident) of one process."""
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    field = lambda name: int(re.search(rf"^{name}: +(\d+) kB", text, re.M)[1]) / 1024
    return field("Pss"), field("Private_Clean") + field("Private_Dirty"), field("Rss")


def children_of(pid):
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(") ", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


class Bench:
    def __init__(self, options):
        self.quick = options.quick
        # Of the scenario `warm` only this kind of request.
        self.kind = getattr(options, "kind", "")
        self.temp = pathlib.Path(tempfile.mkdtemp(prefix="pocketfleet-bench-"))
        # Tenants may have users of their own, who reach their folders by this one.
        self.temp.chmod(0o711)
        self.running = []
        atexit.register(self.close)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        self.program = pathlib.Path(options.program).resolve()
        if not self.program.is_file():
            fail(f"{self.program} is missing; build it first: cargo build --release")
        fetched = subprocess.run([ROOT / "scripts/fetch-pocketbase"], stdout=subprocess.PIPE, text=True)
        if fetched.returncode != 0:
            fail("PocketBase could not be fetched")
        self.pocketbase = fetched.stdout.strip().splitlines()[-1]
        self.empty = self.temp / "empty"
        self.empty.mkdir()

    def start(self, command, log, **more):
        """Starts a server in a session of its own. Where the kernel groups tasks by session (sched_autogroup), servers
        that shared one would share their time and ours, which pocketfleet puts in sessions of their own, would not."""
        with open(self.temp / log, "ab") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=output, start_new_session=True,
                                       **{"stdout": output, **more})
        self.running.append(process)
        return process

    def stop(self, process, seconds=60):
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout:
            process.stdout.close()
        if process in self.running:
            self.running.remove(process)

    def close(self):
        for process in reversed(list(self.running)):
            self.stop(process)
        # Instances outlive a pocketfleet that was killed. Ours are those that name our own temporary folder.
        marker = str(self.temp).encode()
        for cmdline in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if marker in cmdline.read_bytes():
                    os.kill(int(cmdline.parent.name), signal.SIGKILL)
            except OSError:
                pass
        shutil.rmtree(self.temp, ignore_errors=True)

    def bare(self, data, port=None, hooks=None, defaults=False):
        """Starts a bare PocketBase, with the arguments and the settings of Go that pocketfleet uses (`spawn` in
        src/supervisor/launch.rs) or with PocketBase's own; returns (process, address) at once."""
        # Fifty that start at once would race for a port of one address; nobody else has this one.
        host = f"127.{random.randint(1, 60)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
        address = f"{host}:{port or 28090}"
        arguments = [self.pocketbase, "serve", f"--http={address}", f"--dir={data}"]
        if not defaults:
            arguments += ["--automigrate=false", "--hooksWatch=false", f"--hooksPool={1 if hooks else 0}"]
            arguments += [f"--{name}Dir={self.empty}" for name in ("migrations", "public")]
        if hooks or not defaults:
            arguments.append(f"--hooksDir={hooks or self.empty}")
        env = os.environ if defaults else {**os.environ, **GO}
        return self.start(arguments, "bare.log", stdout=subprocess.PIPE, env=env), address

    def bare_until_answer(self, data, path, token, method="GET", body=None, **how):
        """Spawn to the head of the first 200. The line that tells readiness is the quickest way to know."""
        start = now_ms()
        process, address = self.bare(data, **how)
        while (line := process.stdout.readline()) and b"Server started" not in line:
            pass
        if not line:
            fail(f"a bare PocketBase did not start on {data}")
        client = Client(address, token)
        client.call(method, path, body)
        took = now_ms() - start
        client.close()
        return process, address, took


class Fleet:
    """One pocketfleet on a data directory of its own, with users of its own: rules of level 3 are about users."""

    bases = itertools.cycle(range(1_000_000_000, 1_800_000_000, 1_000_000))

    def __init__(self, bench, name, settings=None):
        """`settings` are variables of the environment that win over those below."""
        self.base = next(Fleet.bases)
        self.bench, self.data = bench, bench.temp / name
        self.settings = settings or {}
        self.process, self.address, self.prefix = None, None, []

    def start(self, pause=0.001):
        self.address = f"127.0.0.1:{free_port()}"
        settings = {
            "POCKETFLEET_POCKETBASE__TEMPLATES": str(ROOT / "pb_templates"),
            "POCKETFLEET_AUTH__REGISTRATIONS_PER_IP": "1000000",
            "POCKETFLEET_AUTH__ATTEMPTS_PER_IP": "1000000",
            "POCKETFLEET_INSTANCES__IDLE_TIMEOUT": "1h",
            "POCKETFLEET_ISOLATION__UID_BASE": str(self.base),
            **self.settings,
        }
        command = [*self.prefix, self.program(), "serve", "--data", self.data, "--listen", self.address,
                   "--pocketbase", self.bench.pocketbase]
        start = now_ms()
        self.process = self.bench.start(command, "pocketfleet.log", env={**os.environ, **settings})
        eventually("pocketfleet is ready", self.is_ready, seconds=120, pause=pause)
        return now_ms() - start

    def program(self):
        return self.bench.program

    def is_ready(self):
        if self.process.poll() is not None:
            tail = (self.bench.temp / "pocketfleet.log").read_text(errors="replace").splitlines()[-15:]
            fail("pocketfleet ended:\n  " + "\n  ".join(tail))
        client = Client(self.address)
        try:
            client.connection.request("GET", "/ready")
            return client.connection.getresponse().status == 200
        finally:
            client.close()

    def stop(self):
        self.bench.stop(self.process)

    def command(self, *arguments):
        done = subprocess.run([self.program(), "--data", self.data, "--json", *arguments],
                              capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            fail(f"pocketfleet {' '.join(arguments)}: {done.stdout} {done.stderr}")
        return json.loads(done.stdout)

    def sleep(self, *tenants):
        for tenant in tenants:
            self.command("tenants", "sleep", tenant)
        for tenant in tenants:
            eventually("the instance sleeps", lambda: self.state(tenant) == "asleep", pause=0.02)

    def state(self, tenant):
        shown = self.command("tenants", "show", tenant)
        return shown.get("state") or shown["tenant"]["state"]

    def user(self, name):
        """Registers and signs in; returns (tenant, token)."""
        client = Client(self.address)
        account = {"email": f"{name}-{random.getrandbits(48):x}@example.com", "password": PASSWORD}
        client.call("POST", "/auth/register", {**account, "name": name}, (201,))
        signed_in, _ = client.call("POST", "/auth/login", account)
        client.close()
        return signed_in["record"]["id"], signed_in["token"]

    def copy_of(self, tenant, name):
        """The data directory of a sleeping (or stopped) instance, copied for a bare PocketBase."""
        target = self.bench.temp / name
        shutil.copytree(self.data / "instances" / tenant / "pb_data", target)
        return target


def signing_key(data, user):
    """What the PocketBase on `data` signs the tokens of one of its users with, and the id of their collection."""
    database = sqlite3.connect(data / "data.db")
    key, = database.execute("SELECT tokenKey FROM users WHERE id = ?", (user,)).fetchone()
    collection, secret = database.execute(
        "SELECT id, json_extract(options, '$.authToken.secret') FROM _collections WHERE name = 'users'").fetchone()
    database.close()
    return key + secret, collection


def instance_token(data, user):
    """A token that the PocketBase on `data` accepts for one of its users, signed with the keys in its database."""
    return signed_token(*signing_key(data, user), user)


def signed_token(key, collection, user):
    encode = lambda raw: base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    claims = {"collectionId": collection, "exp": int(time.time()) + 86400, "id": user, "refreshable": False, "type": "auth"}
    unsigned = ".".join(encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{unsigned}.{encode(hmac.digest(key.encode(), unsigned.encode(), hashlib.sha256))}"


def prepared(bench, name, more=None, settings=None, grow=None):
    """A fleet with one user who has 30 notes, asleep; and a copy of that user's instance for bare runs. `more`
    gets a client and the path of a note, before the copy is made, and `grow` the data directory of the sleeping
    instance."""
    fleet = Fleet(bench, name, settings)
    fleet.start()
    tenant, token = fleet.user("ada")
    client = Client(fleet.address, token)
    for number in range(30):
        body = {"title": f"note {number}", "body": "Lorem ipsum dolor sit amet. " * 8, "tags": ["a", "b"]}
        note, _ = client.call("POST", "/api/collections/notes/records", body)
    record = f"/api/collections/notes/records/{note['id']}"
    if more:
        more(client, record)
    client.close()
    fleet.sleep(tenant)
    if grow:
        grow(fleet.data / "instances" / tenant / "pb_data")
    copy = fleet.copy_of(tenant, f"{name}-bare")
    return fleet, tenant, token, copy, instance_token(copy, tenant), record


def settle(bench):
    """Go gives unused memory back some seconds after the last request."""
    time.sleep(2 if bench.quick else 10)


def all_tenants(fleet, limit=1000):
    return fleet.command("tenants", "list", "--limit", str(limit))["items"]


def wrk(address, path, token, connections, seconds, script=None, header="Authorization"):
    """`errors` are answers that are no success, and connections that broke or waited for 30 s."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency",
               *(["-s", script] if script else []), "-H", f"{header}: {token}", f"http://{address}{path}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    unit = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60000.0}

    def latency(share):
        found = re.search(rf"^ +{share}% +([\d.]+)(us|ms|s|m)$", text, re.M)
        # Nothing was answered before the end: at least that long.
        return float(found[1]) * unit[found[2]] if found else seconds * 1000.0

    refused, broken = re.search(r"Non-2xx or 3xx responses: (\d+)", text), re.search(r"Socket errors: (.*)", text)
    return {
        # Above nothing, because ratios are taken to it.
        "rate": max(float(re.search(r"Requests/sec: +([\d.]+)", text)[1]), 0.1),
        "requests": int(re.search(r"(\d+) requests in", text)[1]),
        "p50": latency(50),
        "p99": latency(99),
        "errors": int(refused[1] if refused else 0) + sum(map(int, re.findall(r"\d+", broken[1] if broken else ""))),
    }


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def ratio(a, b):
    return f"{a / b:.2f}×"


def ms(value):
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
