"""The scenarios `mixed` and `overload` of scripts/bench: load that does not wait for answers.

`mixed`: many tenants, a fifth of them asleep, at a fixed rate; how long those wait who are awake, and those who wake.
`overload`: twice as much as one instance can do; what is refused and how, and what becomes of the rest."""

import concurrent.futures
import itertools
import random
import statistics
import time

import bench_kit as kit
import bench_openloop as openloop

PATH = "/api/collections/notes/records?perPage=1&skipTotal=1"
# Above the places in an instance and in its waiting room together (64 + 1000), below the connections of one client (2000).
CONNECTIONS = 1500
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def latencies(answers):
    """Milliseconds from when the requests were due."""
    took = [(answer[openloop.DONE] - answer[openloop.DUE]) * 1000 for answer in answers]
    return {"n": len(took), **{name: round(kit.percentile(took, share), 3) for name, share in SHARES.items()}} if took else {"n": 0}


def mixed(bench):
    number, rate, seconds, rounds = (20, 100, 4, 1) if bench.quick else (200, 400, 8, 2)
    fleet = kit.Fleet(bench, "mixed")
    fleet.start()

    def awake(n):
        tenant, token = fleet.user(f"x{n}")
        client = kit.Client(fleet.address, token)
        client.call("GET", PATH)
        client.close()
        return tenant, token

    # Registration hashes a password; two at a time keep both cores busy and stay below the limit on waiting ones.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        users = list(pool.map(awake, range(number)))
    requests = {tenant: openloop.head(fleet.address, PATH, token) for tenant, token in users}
    sleepers = [tenant for tenant, _ in users[:number // 5]]
    others = [tenant for tenant, _ in users[number // 5:]]

    def run(kind, more):
        """Requests to those who are awake, evenly spaced; and `more`, (kind, due, bytes), in between."""
        plan = [(kind, n / rate, requests[random.choice(others)]) for n in range(rate * seconds)]
        load = openloop.Load(fleet.address, CONNECTIONS)
        answers = load.run(sorted(plan + more, key=lambda request: request[1]), seconds, ready=64)
        missing = load.close() + load.unsent
        return answers, missing

    answers, unanswered = run("all awake", [])
    for _ in range(rounds):
        fleet.sleep(*sleepers)
        wakes = [("asleep", (n + random.random()) * seconds / len(sleepers) * 0.98, requests[tenant])
                 for n, tenant in enumerate(kit.shuffled(sleepers))]
        found, missing = run("awake", wakes)
        answers, unanswered = answers + found, unanswered + missing
    fleet.stop()
    kinds = {kind: [answer for answer in answers if answer[0] == kind] for kind in ("all awake", "awake", "asleep")}
    late = [(answer[openloop.SENT] - answer[openloop.DUE]) * 1000 for answer in answers]
    return {
        "tenants": number, "asleep": len(sleepers), "rate": rate, "seconds": seconds, "rounds": rounds,
        "wakes_per_s": round(len(sleepers) / seconds, 1), "unanswered": unanswered,
        "late_p99_ms": round(kit.percentile(late, 0.99), 3),
        "statuses": {str(status): count for status, count in openloop.statuses(answers).items()},
        "latency": {kind: latencies([answer for answer in found if answer[1] == 200]) for kind, found in kinds.items()},
    }


def mixed_report(found):
    rows = [[kind, r["n"], *(kit.ms(r[share]) for share in SHARES)] for kind, r in found["latency"].items() if r["n"]]
    text = [f"### {found['tenants']} tenants, {found['asleep']} of them asleep\n\nMilliseconds from when a request was due, "
            f"answered or not: {found['rate']} a second to tenants that are awake, chosen at random, and meanwhile one to each "
            f"that sleeps ({found['wakes_per_s']} wakes a second). *All awake* is the same load with no wakes beside it. The "
            f"load itself sent 99 % within {found['late_p99_ms']:.2f} ms of the time.\n",
            kit.table(["", "requests", *SHARES], rows)]
    others = {status: count for status, count in found["statuses"].items() if status != "200"}
    if others or found["unanswered"]:
        text.append(f"Not answered with 200: {others or 'none'}; not answered at all: {found['unanswered']}.\n")
    return text


def overload(bench):
    rounds, seconds = (1, 3) if bench.quick else (3, 6)
    fleet, tenant, token, _, _, record = kit.prepared(bench, "overload")
    request = openloop.head(fleet.address, record, token)
    kit.Client(fleet.address, token).call("GET", record)
    instance, = [item["pid"] for item in kit.all_tenants(fleet) if item["tenant"] == tenant]
    pids = {"pocketfleet": [fleet.process.pid], "instance": [instance]}

    def timed(load, plan, seconds, ready):
        """Runs the load; returns its answers, and the CPU that each took, in cores."""
        before = {name: kit.cpu_seconds(of) for name, of in pids.items()} | {"load": time.process_time()}
        answers = load.run(plan, seconds, ready=ready)
        after = {name: kit.cpu_seconds(of) for name, of in pids.items()} | {"load": time.process_time()}
        span = max(seconds, max((answer[openloop.DONE] for answer in answers), default=0.0))
        return answers, {name: round((after[name] - before[name]) / span, 3) for name in after}

    kit.wrk(fleet.address, record, token, 64, 1)
    runs = []
    for _ in range(rounds):
        run = {"wrk": kit.wrk(fleet.address, record, token, 64, 2)["rate"]}
        # As many as are answered: 64 connections that ask again at once.
        load = openloop.Load(fleet.address, 64)
        answers, run["peak_cpu"] = timed(load, itertools.repeat(("peak", 0.0, request)), seconds / 2, 64)
        load.close()
        if set(openloop.statuses(answers)) != {200}:
            kit.fail(f"overload: statuses {openloop.statuses(answers)} below the limit")
        run["peak"] = len(answers) / (seconds / 2)
        took = [(answer[openloop.DONE] - answer[openloop.SENT]) * 1000 for answer in answers]
        run["peak_p99"] = kit.percentile(took, 0.99)
        offered = run["peak"] * 2
        load = openloop.Load(fleet.address, CONNECTIONS)
        plan = (("over", n / offered, request) for n in range(int(offered * seconds)))
        answers, run["over_cpu"] = timed(load, plan, seconds, CONNECTIONS)
        run["unanswered"] = load.close()
        run["offered"], run["sent"] = offered, (len(answers) + run["unanswered"]) / seconds
        served = [answer for answer in answers if answer[1] == 200]
        refused = [answer for answer in answers if answer[1] != 200]
        # What is answered after the load has ended was not served at that rate.
        run["goodput"] = sum(answer[openloop.DONE] < seconds for answer in served) / seconds
        run["served"], run["refused"] = latencies(served), latencies(refused)
        # The server's own share of it: from when it was sent.
        sent = [(answer[openloop.DONE] - answer[openloop.SENT]) * 1000 for answer in served]
        run["served_sent_p99"] = kit.percentile(sent, 0.99) if sent else 0.0
        run["statuses"] = {f"{status} {load.codes.get(status, '')}".strip(): count
                           for status, count in openloop.statuses(answers).items()}
        runs.append(run)
        # Back to normal: the same request is answered again.
        kit.Client(fleet.address, token).call("GET", record)
    fleet.stop()
    middle = lambda of: round(statistics.median(map(of, runs)), 3)
    result = {key: middle(lambda run: run[key]) for key in ("wrk", "peak", "peak_p99", "offered", "sent", "goodput",
                                                            "served_sent_p99", "unanswered")}
    for part in ("peak_cpu", "over_cpu"):
        result[part] = {name: middle(lambda run: run[part][name]) for name in ("pocketfleet", "instance", "load")}
    shares = [run["goodput"] / run["peak"] for run in runs]
    result["goodput_of_peak"] = round(statistics.median(shares), 3)
    result["goodput_of_peak_range"] = [round(min(shares), 3), round(max(shares), 3)]
    for name in ("served", "refused"):
        result[name] = {share: middle(lambda run: run[name].get(share, 0.0)) for share in ("n", "p50", "p99")}
    totals = {}
    for run in runs:
        for status, count in run["statuses"].items():
            totals[status] = totals.get(status, 0) + count
    every = sum(totals.values())
    result["statuses"] = {status: round(count / every, 4) for status, count in sorted(totals.items())}
    return {"rounds": rounds, "seconds": seconds, "connections": CONNECTIONS, **result}


def overload_report(found):
    low, high = found["goodput_of_peak_range"]
    shares = ", ".join(f"{share:.1%} {'connections cut' if status == '0' else status}" for status, share in found["statuses"].items())
    served, refused = found["served"], found["refused"]
    cores = lambda cpu: " + ".join(f"{share:.2f}" for share in cpu.values())
    return [
        f"### Twice as much as one instance can do\n\nGETs of one record of one instance that is awake, {found['seconds']} s, "
        f"medians of {found['rounds']} rounds. The peak is what 64 connections get that ask again at once, by the same load "
        f"(`wrk`: {found['wrk']:,.0f}); then twice as many are due a second, answered or not, over {found['connections']} "
        "connections. Times in milliseconds; CPU in cores, of pocketfleet, the instance and the load.\n",
        kit.table(["", "a second", "of the peak", "p50", "p99", "p99 from when it was sent", "CPU"],
                  [["peak", f"{found['peak']:,.0f}", "1.00×", "", "", kit.ms(found["peak_p99"]), cores(found["peak_cpu"])],
                   ["due", f"{found['offered']:,.0f}", kit.ratio(found["offered"], found["peak"]), "", "", "", ""],
                   ["sent", f"{found['sent']:,.0f}", kit.ratio(found["sent"], found["peak"]), "", "", "", cores(found["over_cpu"])],
                   ["served", f"{found['goodput']:,.0f}", f"{found['goodput_of_peak']:.2f}× ({low:.2f}–{high:.2f})",
                    kit.ms(served["p50"]), kit.ms(served["p99"]), kit.ms(found["served_sent_p99"]), ""],
                   ["refused", "", "", kit.ms(refused["p50"]), kit.ms(refused["p99"]), "", ""]]),
        f"Answers: {shares}; never answered: {found['unanswered']:.0f}.\n",
    ]
