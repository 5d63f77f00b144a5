"""The scenario `warm` of scripts/bench: requests to an instance that is awake, direct and through proxies.

Every cell is a kind of request at a number of connections. In each round all contestants run it once, in random order;
ratios to nginx and differences to direct are taken within a round, and then their median."""

import json
import shutil
import sqlite3
import statistics
import time

import bench_kit as kit
import bench_peers

PLOT = "performance-warm.svg"
CONNECTIONS = (1, 16, 64, 256)
MEGABYTE = 1 << 20
CREATE, UPLOAD = "create", "1 MB upload"
PLAIN = "nginx, PocketBase's own settings"
DIRECT = "direct, PocketBase's own settings"
# Of PocketBase's own settings those that a template's golden directory changes and that cost something.
LOGS = {"maxDays": 5, "minLevel": 0, "logIP": True, "logAuthId": False}
KINDS = ("record", "list of 30", "1 MB download", CREATE, UPLOAD)
# The token's check, a log of requests and who gets the processor matter most where there is least else to do.
ONLY = {
    bench_peers.CHECKING: ("record",),
    bench_peers.BATCH: ("record", "list of 30", CREATE),
    DIRECT: ("record", CREATE),
}
# What the runs create has this title, and is removed after each.
MARK = "made by the benchmark"
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "{content_type}"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
"""
RECORDS = "/api/collections/notes/records"


def posting(bench, name, body, content_type):
    """A script for wrk that posts these bytes."""
    file, script = bench.temp / f"{name}.body", bench.temp / f"{name}.lua"
    file.write_bytes(body)
    script.write_text(SCRIPT.format(content_type=content_type, body=file))
    return script


def tidy(data):
    """Removes what a run created, behind PocketBase's back: tables that grow would make every round slower than the
    one before, and the bare PocketBase, which serves most contestants, slower than the instance."""
    database = sqlite3.connect(data / "data.db", timeout=30)
    with database:
        database.execute("DELETE FROM notes WHERE title = ?", (MARK,))
    kept = {row[0] for row in database.execute("SELECT id FROM notes")}
    database.close()
    for folder in data.glob("storage/*/*"):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def tidy_log(data, pid):
    """The same for the log of requests, once PocketBase has written what it still had to."""
    def is_done():
        before = kit.cpu_exact([pid])
        time.sleep(0.1)
        return kit.cpu_exact([pid]) - before < 0.002

    kit.eventually("the log of requests is written", is_done)
    database = sqlite3.connect(data / "auxiliary.db", timeout=30)
    with database:
        database.execute("DELETE FROM _logs")
    database.close()


def as_it_comes(data):
    """Gives a copied instance PocketBase's own settings of its request log, which is on."""
    database = sqlite3.connect(data / "data.db", timeout=30)
    with database:
        settings = json.loads(database.execute("SELECT value FROM _params WHERE id = 'settings'").fetchone()[0])
        settings["logs"] = LOGS
        database.execute("UPDATE _params SET value = ? WHERE id = 'settings'", (json.dumps(settings),))
    database.close()


def warm(bench):
    file = []

    def attach(client, path):
        answer, _ = client.call("PATCH", path, kit.Upload({}, "attachments", MEGABYTE))
        file.append(f"/api/files/{answer['collectionId']}/{answer['id']}/{answer['attachments'][0]}")

    fleet, tenant, token, copy, bare_token, record = kit.prepared(bench, "warm", attach)
    kit.Client(fleet.address, token).call("GET", record)
    bare_process, bare, _ = bench.bare_until_answer(copy, record, bare_token)
    peers = bench_peers.start(bench, bare, record, bare_token, kit.signing_key(copy, tenant)[0])
    # What somebody has who runs a PocketBase as it comes, with nginx in front of it or without.
    plain_data = bench.temp / "warm-as-it-comes"
    shutil.copytree(copy, plain_data)
    as_it_comes(plain_data)
    plain_process, plain, _ = bench.bare_until_answer(plain_data, record, bare_token, defaults=True)
    peers[PLAIN] = bench_peers.nginx(bench, PLAIN, plain)
    peers[PLAIN].ready(record, bare_token)
    targets = {"direct": (bare, bare_token, []), DIRECT: (plain, bare_token, [])}
    targets |= {name: (peer.listen, bare_token, peer.pids) for name, peer in peers.items()}
    folders = {"pocketfleet": fleet.data / "instances" / tenant / "pb_data", DIRECT: plain_data, PLAIN: plain_data}
    targets["pocketfleet"] = (fleet.address, token, [fleet.process.pid])
    upload = kit.Upload({"title": MARK}, "attachments", MEGABYTE)
    note = b'{"title":"%s","body":"%s","tags":["a","b"]}' % (MARK.encode(), b"Lorem ipsum. " * 16)
    requests = {
        "record": (record, None),
        "list of 30": (f"{RECORDS}?perPage=30&skipTotal=1", None),
        "1 MB download": (file[0], None),
        CREATE: (RECORDS, posting(bench, "create", note, "application/json")),
        UPLOAD: (RECORDS, posting(bench, "upload", upload.bytes, upload.content_type)),
    }
    rounds = 1 if bench.quick else 5
    results = {}
    for name, (path, script) in requests.items():
        if bench.kind not in ("", name):
            continue
        # With 256 connections an upload takes a second and more.
        seconds = 1 if bench.quick else 5 if name == UPLOAD else 2
        chosen = [target for target in targets if name in ONLY.get(target, requests)]

        def one(target, connections, seconds):
            address, its_token, pids = targets[target]
            if name == CREATE and not bench.quick:
                # Go's heap takes a moment to grow, and most contestants share a PocketBase that has just done the same.
                kit.wrk(address, path, its_token, connections, 1, script)
                tidy(folders.get(target, copy))
            before = kit.cpu_seconds(pids)
            run = kit.wrk(address, path, its_token, connections, seconds, script)
            run["cpu_us"] = (kit.cpu_seconds(pids) - before) * 1e6 / max(run["requests"], 1)
            if script:
                tidy(folders.get(target, copy))
            if target in (PLAIN, DIRECT):
                tidy_log(plain_data, plain_process.pid)
            return run

        if not bench.quick:
            for target in chosen:
                one(target, 16, 1)
        for connections in CONNECTIONS if name == "record" or not bench.quick else (16,):
            runs = {target: [] for target in chosen}
            for _ in range(rounds):
                for target in kit.shuffled(chosen):
                    runs[target].append(one(target, connections, seconds))
            results[f"{name}, {connections}"] = {target: cell(runs, target) for target in chosen}
    for peer in peers.values():
        peer.stop()
    bench.stop(bare_process)
    bench.stop(plain_process)
    fleet.stop()
    return results


def cell(runs, target):
    """Medians over the rounds, with the least and the most of them."""
    of = {key: [run[key] for run in runs[target]] for key in ("rate", "p50", "p99", "cpu_us")}
    of["vs_nginx"] = [a["rate"] / b["rate"] for a, b in zip(runs[target], runs["nginx"])]
    base = DIRECT if target == PLAIN else "direct"
    if base in runs and target not in ("direct", DIRECT):
        of["p99_added"] = [a["p99"] - b["p99"] for a, b in zip(runs[target], runs[base])]
    result = {"rounds": len(runs[target]), "errors": sum(run["errors"] for run in runs[target])}
    for key, values in of.items():
        result[key] = round(statistics.median(values), 3)
        result[f"{key}_range"] = [round(min(values), 3), round(max(values), 3)]
    return result


def warm_report(found):
    rows, faults = [], []
    for name, targets in found.items():
        for target, r in targets.items():
            low, high = r.get("vs_nginx_range", (r["vs_nginx"], r["vs_nginx"]))
            is_direct = target in ("direct", DIRECT)
            added = f"{r['p99_added'] * 1000:+,.0f}" if "p99_added" in r else "–"
            rows.append([name, target, f"{r['rate']:,.0f}", f"{r['vs_nginx']:.2f}×",
                         "–" if target == "nginx" or low == high else f"{low:.2f}–{high:.2f}",
                         f"{r['p50'] * 1000:,.0f}", f"{r['p99'] * 1000:,.0f}",
                         added, "–" if is_direct else f"{r['cpu_us']:.0f}"])
            if errors := r.get("errors"):
                faults.append(f"{name}, {target}: {errors}")
    text = ["### A warm request, proxied\n\nThe same PocketBase data direct, behind other proxies and behind pocketfleet; "
            "`wrk` with one thread on the same machine. *Of nginx* is the median of the rounds' own ratios, with the least "
            "and the most. All stand before a PocketBase with the settings that pocketfleet gives an instance (log of errors "
            "only, Go's collector at 200 %), but for those with *PocketBase's own settings*: theirs is as it comes, with its "
            "log of requests. *p99 added* is p99 less that of direct before the same PocketBase, in the same round. CPU is "
            "the proxy's own, per request. Runs take two seconds, of uploads five; before each of creates comes one that does not count. "
            "pocketfleet lets 64 requests work in one instance at once (`instances.max_in_flight`): at 256 connections the "
            "others wait in it, and behind the other proxies in PocketBase.\n",
            f"![Requests/s through each proxy, of those through nginx]({PLOT})\n",
            kit.table(["request, connections", "through", "requests/s", "of nginx", "range", "p50 µs", "p99 µs", "p99 added µs",
                       "CPU µs"], rows)]
    if faults:
        text.append(f"Answers that were no success, and broken connections: {'; '.join(faults)}.\n")
    return text
