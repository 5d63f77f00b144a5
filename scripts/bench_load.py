"""The scenarios `mixed` and `overload` of scripts/bench: load that does not wait for answers.

`mixed`: many tenants, a fifth of them asleep, at a fixed rate; how long those wait who are awake, and those who wake.
`overload`: twice as much as one instance can do; what is refused and how, and what becomes of the rest."""

import concurrent.futures
import json
import random
import resource
import statistics
import subprocess

import bench_kit as kit
import bench_openloop as openloop
import bench_peers
import bench_sockets

PATH = "/api/collections/notes/records?perPage=1&skipTotal=1"
# Above the places in an instance and in its waiting room together (64 + 1000), below the connections of one client (2000).
CONNECTIONS = 1500
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def latencies(answers):
    """Milliseconds from when the requests were due."""
    took = [(answer[openloop.DONE] - answer[openloop.DUE]) * 1000 for answer in answers]
    return {"n": len(took), **{name: round(kit.percentile(took, share), 3) for name, share in SHARES.items()}} if took else {"n": 0}


def mixed(bench):
    number, rate, seconds, rounds = (20, 100, 4, 1) if bench.quick else (200, 400, 6, 5)
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


class Contestant:
    """What the load of `overload` is given to: where, with which token, and whose CPU that is."""

    def __init__(self, address, token, **pids):
        self.address, self.token, self.pids = address, token, pids

    def load(self, program, path, connections, rate, seconds):
        """Runs the load; returns what it says, and the CPU that each part took, in cores."""
        spent = lambda: {name: kit.cpu_seconds(of) for name, of in self.pids.items()}
        of_children = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        before, own = spent(), of_children()
        command = [program, "requests", self.address, path, str(connections), str(rate), str(seconds),
                   f"Authorization: {self.token}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
        if done.returncode != 0:
            kit.fail(f"overload: the load failed: {done.stderr.strip()}")
        found, after = json.loads(done.stdout), spent()
        cpu = {name: (after[name] - before[name]) / seconds for name in after}
        answers = {answer["status"]: answer for answer in found["answers"]}
        return answers, found, {**cpu, "load": (of_children() - own) / seconds}


def overload(bench):
    rounds, seconds = (1, 3) if bench.quick else (9, 6)
    program = bench_sockets.build()
    fleet, tenant, token, copy, bare_token, record = kit.prepared(bench, "overload")
    kit.Client(fleet.address, token).call("GET", record)
    instance, = [item["pid"] for item in kit.all_tenants(fleet) if item["tenant"] == tenant]
    bare_process, bare, _ = bench.bare_until_answer(copy, record, bare_token)
    nginx = bench_peers.nginx(bench, "nginx", bare)
    nginx.ready(record, bare_token)
    contestants = {
        "pocketfleet": Contestant(fleet.address, token, proxy=[fleet.process.pid], instance=[instance]),
        "nginx": Contestant(nginx.listen, bare_token, proxy=nginx.pids, instance=[bare_process.pid]),
        "direct": Contestant(bare, bare_token, proxy=[], instance=[bare_process.pid]),
    }
    runs = {name: [] for name in contestants}
    for name, contestant in contestants.items():
        contestant.load(program, record, 64, 0, 1)
    for _ in range(rounds):
        for name in kit.shuffled(contestants):
            contestant = contestants[name]
            # As many as are answered: 64 connections that ask again at once.
            answers, _, peak_cpu = contestant.load(program, record, 64, 0, seconds / 2)
            if set(answers) != {200}:
                kit.fail(f"overload: {name}: statuses {sorted(answers)} below the limit")
            peak = answers[200]["in_time"] / (seconds / 2)
            answers, found, cpu = contestant.load(program, record, CONNECTIONS, peak * 2, seconds)
            run = {"peak": peak, "sent": found["sent"] / seconds, "unanswered": found["unanswered"],
                   "peak_p99": answers[200]["from_due_us"]["p99"] / 1000 if 200 in answers else 0.0}
            # What is answered after the load has ended was not served at that rate.
            run["goodput"] = answers[200]["in_time"] / seconds if 200 in answers else 0.0
            run["of_peak"] = run["goodput"] / peak
            for part, cores in (("peak_cpu", peak_cpu), ("cpu", cpu)):
                run |= {f"{part}_{whose}": share for whose, share in cores.items()}
            for kind, chosen in (("served", [200]), ("refused", [status for status in answers if status != 200])):
                for share in ("p50", "p99"):
                    all_of = [answers[status]["from_due_us"][share] / 1000 for status in chosen if status in answers]
                    run[f"{kind}_{share}"] = max(all_of, default=0.0)
            every = sum(answer["n"] for answer in answers.values())
            run["answers"] = {f"{status} {answer['code']}".strip(): answer["n"] / every for status, answer in answers.items()}
            runs[name].append(run)
            # Back to normal: the same request is answered again.
            kit.eventually(f"{name} answers again", lambda: kit.Client(contestant.address, contestant.token).call("GET", record))
    nginx.stop()
    bench.stop(bare_process)
    fleet.stop()
    results = {}
    for name, each in runs.items():
        keys = [key for key in each[0] if key != "answers"]
        results[name] = {key: round(statistics.median(run[key] for run in each), 3) for key in keys}
        results[name]["of_peak_range"] = [round(edge(run["of_peak"] for run in each), 3) for edge in (min, max)]
        statuses = sorted({status for run in each for status in run["answers"]})
        results[name]["answers"] = {status: round(statistics.median(run["answers"].get(status, 0.0) for run in each), 4)
                                    for status in statuses}
    return {"rounds": rounds, "seconds": seconds, "connections": CONNECTIONS, "contestants": results}


def overload_report(found):
    rows, answers = [], []
    for name, r in found["contestants"].items():
        low, high = r["of_peak_range"]
        cores = lambda part: " + ".join(f"{r[f'{part}_{whose}']:.2f}" for whose in ("proxy", "instance", "load"))
        rows.append([name, f"{r['peak']:,.0f}", cores("peak_cpu"), f"{r['sent']:,.0f}", f"{r['goodput']:,.0f}",
                     f"{r['of_peak']:.2f}× ({low:.2f}–{high:.2f})", kit.ms(r["served_p50"]), kit.ms(r["served_p99"]),
                     kit.ms(r["refused_p50"]), kit.ms(r["refused_p99"]), cores("cpu")])
        shares = ", ".join(f"{share:.1%} {'connections cut' if status == '0' else status}"
                           for status, share in r["answers"].items())
        answers.append(f"{name}: {shares}; never answered: {r['unanswered']:.0f}")
    return [
        f"### Twice as much as one instance can do\n\nGETs of one record of one instance that is awake, {found['seconds']} s, "
        f"medians of {found['rounds']} rounds. *Peak* is what 64 connections get that ask again at once; then twice as many "
        f"are due a second, answered or not, over {found['connections']} connections: *served* counts what is answered with "
        "200 before the load ends. Times in milliseconds from when a request was due; CPU in cores, of the proxy, the "
        "instance and the load. nginx is as it comes; pocketfleet's workers are batch threads under this load.\n",
        kit.table(["through", "peak a second", "CPU at the peak", "sent", "served", "of the peak", "served p50", "served p99",
                   "refused p50", "refused p99", "CPU"], rows),
        f"Answers: {'. '.join(answers)}.\n",
    ]
