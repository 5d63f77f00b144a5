"""The scenarios `wake`, `register` and `burst` of scripts/bench: what a sleeping or new instance costs its first caller."""

import concurrent.futures
import os
import random
import shutil
import statistics
import threading

import bench_kit as kit

# Instances that are made before anybody has them, in the second fleet of `register`.
SPARES = 4


def wake(bench):
    fleet, tenant, token, copy, bare_token, record = kit.prepared(bench, "wake")
    client = kit.Client(fleet.address, token)
    times = {"pocketfleet": [], "bare": []}
    rounds = 5 if bench.quick else 40
    for number in range(rounds + 1):
        for contestant in kit.shuffled(times):
            if contestant == "bare":
                process, _, took = bench.bare_until_answer(copy, record, bare_token)
                bench.stop(process)
            else:
                fleet.sleep(tenant)
                _, took = client.call("GET", record)
            if number > 0:
                times[contestant].append(took)
    client.close()
    fleet.stop()
    return {name: kit.spread(found) for name, found in times.items()}


def wake_report(found):
    ours, bare = found["pocketfleet"], found["bare"]
    return [f"### First byte from a sleeping instance\n\nMilliseconds, {ours['n']} rounds: a signed-in request to a "
            "sleeping instance, against `pocketbase serve` on the same data from spawn to the first 200.\n",
            kit.table(["", "p50", "p90", "p99"],
                   [["bare spawn", *(kit.ms(bare[k]) for k in ("p50", "p90", "p99"))],
                    ["pocketfleet", *(kit.ms(ours[k]) for k in ("p50", "p90", "p99"))],
                    ["ratio", *(kit.ratio(ours[k], bare[k]) for k in ("p50", "p90", "p99"))]])]


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


def burst(bench):
    number = 10 if bench.quick else 50
    fleet = kit.Fleet(bench, "burst")
    fleet.start()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        users = list(pool.map(lambda n: fleet.user(f"b{n}"), range(number)))
    path = "/api/collections/notes/records?perPage=1"
    for _, token in users:
        kit.Client(fleet.address, token).call("GET", path)
    fleet.sleep(*(tenant for tenant, _ in users))
    copies = []
    for n, (tenant, _) in enumerate(users):
        copy = fleet.copy_of(tenant, f"burst-bare-{n}")
        copies.append((copy, kit.instance_token(copy, tenant)))

    def at_once(jobs):
        barrier = threading.Barrier(len(jobs))

        def one(job):
            barrier.wait()
            began = kit.now_ms()
            job()
            return began, kit.now_ms()

        with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
            spans = list(pool.map(one, jobs))
        first = min(began for began, _ in spans)
        return [ended - first for _, ended in spans]

    found = {name: {"mean": [], "first": [], "last": []} for name in ("pocketfleet", "bare")}
    for _ in range(2 if bench.quick else 7):
        for contestant in kit.shuffled(found):
            started = []
            if contestant == "bare":
                jobs = [lambda c=c, t=t: started.append(bench.bare_until_answer(c, path, t)[0]) for c, t in copies]
            else:
                clients = [kit.Client(fleet.address, token) for _, token in users]
                jobs = [lambda c=c: c.call("GET", path) for c in clients]
            times = at_once(jobs)
            for process in started:
                process.terminate()
            for process in started:
                bench.stop(process)
            if contestant == "pocketfleet":
                for client in clients:
                    client.close()
                fleet.sleep(*(tenant for tenant, _ in users))
            for key, value in (("mean", statistics.mean(times)), ("first", min(times)), ("last", max(times))):
                found[contestant][key].append(value)
    fleet.stop()
    return {"n": number, **{name: {k: kit.spread(v) for k, v in keys.items()} for name, keys in found.items()}}


def burst_report(found):
    ours, bare = found["pocketfleet"], found["bare"]
    row = lambda name, r: [name, *(kit.ms(r[k]["p50"]) for k in ("first", "mean", "last"))]
    return [f"### {found['n']} wakes at once\n\nMilliseconds from the first request to an answer, medians of "
            f"{ours['mean']['n']} rounds, against spawning all at once.\n",
            kit.table(["", "first", "mean", "last"],
                   [row("bare, unlimited", bare), row("pocketfleet", ours),
                    ["ratio", *(kit.ratio(ours[k]["p50"], bare[k]["p50"]) for k in ("first", "mean", "last"))]])]
