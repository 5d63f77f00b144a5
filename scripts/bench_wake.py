"""The scenarios `wake`, `register` and `burst` of scripts/bench: what a sleeping or new instance costs its first caller."""

import concurrent.futures
import os
import random
import shutil
import sqlite3
import statistics
import threading

import bench_kit as kit

# Instances that are made before anybody has them, in the second fleet of `register`.
SPARES = 4


RECORDS = "/api/collections/notes/records?perPage=1"
# How a bare PocketBase is started: with the arguments that pocketfleet gives it, or with its own defaults.
BARE = {"bare": {}, "bare, default flags": {"defaults": True}}
# A route, a cron job and a hook of records, as an app has them.
HOOKS = """
routerAdd("GET", "/api/bench/count", (e) => {
  return e.json(200, { notes: $app.countRecords("notes") })
})
onRecordCreate((e) => {
  e.record.set("title", e.record.get("title").trim())
  e.next()
}, "notes")
cronAdd("bench", "0 3 * * *", () => {
  console.log($app.countRecords("notes"))
})
"""


def templates_with_hooks(bench):
    """The templates of the repository, with hooks in that of personal instances."""
    folder = bench.temp / "templates"
    shutil.copytree(kit.ROOT / "pb_templates", folder)
    hooks = folder / "personal/pb_hooks"
    hooks.mkdir()
    (hooks / "main.pb.js").write_text(HOOKS)
    with open(folder / "personal/template.toml", "a") as manifest:
        manifest.write('routes = ["/api/bench/*"]\n')
    return folder, hooks


def grow(data, megabytes):
    """Fills the notes of a stopped instance behind its back until its database has this size."""
    database = sqlite3.connect(data / "data.db")
    body = "Lorem ipsum dolor sit amet. " * 36
    size = lambda: (data / "data.db").stat().st_size >> 20
    number = 0
    while size() < megabytes:
        rows = [(f"grown{n:010d}", f"note {n}", body) for n in range(number, number + 10_000)]
        number += len(rows)
        with database:
            database.executemany("INSERT INTO notes (id, title, body, tags, attachments, created, updated) VALUES "
                                 "(?, ?, ?, '[]', '[]', '2026-01-01 00:00:00.000Z', '2026-01-01 00:00:00.000Z')", rows)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def wake(bench):
    templates, hooks = templates_with_hooks(bench)
    megabytes = 20 if bench.quick else 200
    cases = {
        "small": ({}, None),
        f"{megabytes} MB": ({"grow": lambda data: grow(data, megabytes)}, None),
        "hooks": ({"settings": {"POCKETFLEET_POCKETBASE__TEMPLATES": str(templates)}}, hooks),
    }
    return {name: wake_case(bench, f"wake-{index}", more, of) for index, (name, (more, of)) in enumerate(cases.items())}


def wake_case(bench, name, more, hooks):
    fleet, tenant, token, copy, bare_token, record = kit.prepared(bench, name, **more)
    if hooks:
        # That the instance has them, too.
        kit.Client(fleet.address, token).call("GET", "/api/bench/count")
    client = kit.Client(fleet.address, token)
    times = {"pocketfleet": [], **{contestant: [] for contestant in BARE}}
    rounds = 5 if bench.quick else 40
    for number in range(rounds + 1):
        for contestant in kit.shuffled(times):
            if contestant == "pocketfleet":
                fleet.sleep(tenant)
                _, took = client.call("GET", record)
            else:
                process, _, took = bench.bare_until_answer(copy, record, bare_token, hooks=hooks, **BARE[contestant])
                bench.stop(process)
            if number > 0:
                times[contestant].append(took)
    client.close()
    fleet.stop()
    return {contestant: kit.spread(found) for contestant, found in times.items()}


def wake_report(found):
    if "pocketfleet" in found:
        # From a run of a time when there was one case.
        found = {"small": found}
    rows = []
    for case, times in found.items():
        base = times["bare"]
        for contestant, r in times.items():
            rows.append([case, contestant, *(kit.ms(r[k]) for k in ("min", "p50", "p90", "p99")),
                         *("" if contestant == "bare" else kit.ratio(r[k], base[k]) for k in ("p50", "p90"))])
    return [f"### First byte from a sleeping instance\n\nMilliseconds, {found['small']['pocketfleet']['n']} rounds: a "
            "signed-in request to a sleeping instance, against `pocketbase serve` on the same data from spawn to the first "
            "200. *bare* has the flags that pocketfleet starts PocketBase with, so what is above it is pocketfleet's own: "
            "jailer, epoch, health check, proxying. *bare, default flags* has PocketBase's (15 JavaScript runtimes made in "
            "advance, files watched); what pocketfleet is quicker than that comes from flags. *Hooks*: one file with a "
            "route, a hook and a cron job.\n",
            kit.table(["database", "", "min", "p50", "p90", "p99", "of bare, p50", "p90"], rows)]


def register(bench):
    fleet = kit.Fleet(bench, "register")
    fleet.start()
    template, token = fleet.user("template")
    client = kit.Client(fleet.address, token)
    client.call("GET", "/api/collections/notes/records")
    client.close()
    fleet.sleep(template)
    golden = fleet.copy_of(template, "register-template")
    golden_token = kit.instance_token(golden, template)
    fleet.stop()
    accounts_copy = fleet.copy_of("global", "register-accounts")
    fleet.start()
    accounts_process, accounts, _ = bench.bare_until_answer(accounts_copy, "/api/health", None)
    pooled = kit.Fleet(bench, "register-spares")
    os.environ["POCKETFLEET_INSTANCES__SPARES"] = str(SPARES)
    pooled.start()
    del os.environ["POCKETFLEET_INSTANCES__SPARES"]
    is_full = lambda: pooled.command("status")["fleet"]["spares"].get("awake") == SPARES

    parts = {name: [] for name in ("register", "login", "create", "total", "bare accounts", "bare create", "bare total",
                                   "without bcrypt", "spare register", "spare create")}
    path, note = "/api/collections/notes/records", {"title": "first"}
    for number in range(4 if bench.quick else 31):
        account = {"email": f"r{number}-{random.getrandbits(48):x}@example.com", "password": kit.PASSWORD}
        found = {}
        for contestant in kit.shuffled(("pocketfleet", "spares", "bare")):
            if contestant == "spares":
                kit.eventually("the pool is full", is_full, pause=0.05)
                client = kit.Client(pooled.address)
                _, found["spare register"] = client.call("POST", "/auth/register", {**account, "name": "r"}, (201,))
                signed_in, _ = client.call("POST", "/auth/login", account)
                client.headers = {"Authorization": signed_in["token"]}
                _, found["spare create"] = client.call("POST", path, note)
                client.close()
                pooled.sleep(signed_in["record"]["id"])
            elif contestant == "pocketfleet":
                client = kit.Client(fleet.address)
                _, found["register"] = client.call("POST", "/auth/register", {**account, "name": "r"}, (201,))
                signed_in, found["login"] = client.call("POST", "/auth/login", account)
                client.headers = {"Authorization": signed_in["token"]}
                _, found["create"] = client.call("POST", path, note)
                client.close()
                found["total"] = found["register"] + found["login"] + found["create"]
                fleet.sleep(signed_in["record"]["id"])
            else:
                client = kit.Client(accounts)
                users = "/api/collections/users"
                _, signed_up = client.call("POST", f"{users}/records", {**account, "passwordConfirm": kit.PASSWORD, "name": "r"})
                body = {"identity": account["email"], "password": kit.PASSWORD}
                _, signed_in_after = client.call("POST", f"{users}/auth-with-password", body)
                client.close()
                found["bare accounts"] = signed_up + signed_in_after
                start, data = kit.now_ms(), bench.temp / f"registered-{number}"
                shutil.copytree(golden, data)
                process, _, _ = bench.bare_until_answer(data, path, golden_token, "POST", note)
                found["bare create"] = kit.now_ms() - start
                bench.stop(process)
                found["bare total"] = found["bare accounts"] + found["bare create"]
        found["without bcrypt"] = found["total"] - found["bare accounts"]
        if number > 0:
            for name, value in found.items():
                parts[name].append(value)
    bench.stop(accounts_process)
    pooled.stop()
    fleet.stop()
    return {name: kit.spread(values) for name, values in parts.items()}


def register_report(found):
    row = lambda name, key: [name, kit.ms(found[key]["p50"]), kit.ms(found[key]["p99"])]
    apart = kit.ratio(found["without bcrypt"]["p50"], found["bare create"]["p50"])
    return [f"### From registration to the first own record\n\nMilliseconds, {found['total']['n']} rounds. Registering "
            "and signing in each hash a password; the bare side pays the same on a PocketBase of its own, then copies "
            f"a template, spawns and creates. Apart from accounts, pocketfleet takes {apart} of the bare side.\n",
            kit.table(["", "p50", "p99"],
                   [row("register", "register"), row("log in", "login"), row("create the first note", "create"),
                    row(f"register, with {SPARES} spares", "spare register"),
                    row(f"create the first note, with {SPARES} spares", "spare create"),
                    row("**pocketfleet, in all**", "total"), row("bare: sign up and in", "bare accounts"),
                    row("bare: copy, spawn, create", "bare create"), row("**bare, in all**", "bare total"),
                    row("pocketfleet less bare accounts", "without bcrypt")])]


def at_once(jobs):
    """When each of these was done, in milliseconds from the first's start; all start together."""
    barrier = threading.Barrier(len(jobs))

    def one(job):
        barrier.wait(60)
        began = kit.now_ms()
        job()
        return began, kit.now_ms()

    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        spans = list(pool.map(one, jobs))
    first = min(began for began, _ in spans)
    return [ended - first for _, ended in spans]


def burst(bench):
    numbers = (3, 10) if bench.quick else (10, 50)
    most = max(numbers)
    fleet = kit.Fleet(bench, "burst")
    fleet.start()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        users = list(pool.map(lambda n: fleet.user(f"b{n}"), range(most)))
    for _, token in users:
        kit.Client(fleet.address, token).call("GET", RECORDS)
    fleet.sleep(*(tenant for tenant, _ in users))
    copies = []
    for n, (tenant, _) in enumerate(users):
        copy = fleet.copy_of(tenant, f"burst-bare-{n}")
        copies.append((copy, kit.instance_token(copy, tenant)))

    def run(contestant, number):
        started = []
        if contestant == "pocketfleet":
            clients = [kit.Client(fleet.address, token) for _, token in users[:number]]
            times = at_once([lambda c=c: c.call("GET", RECORDS) for c in clients])
            for client in clients:
                client.close()
            fleet.sleep(*(tenant for tenant, _ in users[:number]))
            return times
        start = lambda data, token: started.append(bench.bare_until_answer(data, RECORDS, token, **BARE[contestant])[0])
        times = at_once([lambda c=c, t=t: start(c, t) for c, t in copies[:number]])
        for process in started:
            process.terminate()
        for process in started:
            bench.stop(process)
        return times

    found = {str(number): {name: {"mean": [], "first": [], "last": []} for name in ("pocketfleet", *BARE)}
             for number in numbers}
    for _ in range(2 if bench.quick else 7):
        for number, contestant in kit.shuffled((number, name) for number, names in found.items() for name in names):
            times = run(contestant, int(number))
            for key, value in (("mean", statistics.mean(times)), ("first", min(times)), ("last", max(times))):
                found[number][contestant][key].append(value)
    fleet.stop()
    return {number: {name: {k: kit.spread(v) for k, v in keys.items()} for name, keys in names.items()}
            for number, names in found.items()}


def burst_report(found):
    if "n" in found:
        # From a run of a time when there was one number.
        found = {str(found["n"]): {name: found[name] for name in ("pocketfleet", "bare")}}
    rows = []
    for number, names in found.items():
        for name, r in names.items():
            base = names["bare"]["last"]["p50"]
            rows.append([number, name, *(kit.ms(r[k]["p50"]) for k in ("first", "mean", "last")),
                         f"{kit.ms(r['last']['min'])}–{kit.ms(r['last']['p99'])}",
                         "" if name == "bare" else kit.ratio(r["last"]["p50"], base)])
    rounds = next(iter(found.values()))["bare"]["mean"]["n"]
    return [f"### {' and '.join(found)} wakes at once\n\nMilliseconds from the first request to an answer, medians of "
            f"{rounds} rounds, against spawning all at once: pocketfleet starts one more than there are cores at "
            "a time (`instances.max_starting`), so the first are answered early and the last wait for the others.\n",
            kit.table(["wakes", "", "first", "mean", "last", "range of last", "last, of bare"], rows)]
