"""The scenarios `awake`, `registered` and `adoption` of scripts/bench: fleets of a size that people have."""

import concurrent.futures
import http.client
import pathlib
import re
import shutil
import signal
import statistics
import time

import bench_kit as kit
import bench_seed

# Private memory that `awake` fills at most with instances.
BUDGET_MIB = 8 << 10


def available_mib():
    return int(re.search(r"^MemAvailable: +(\d+) kB", pathlib.Path("/proc/meminfo").read_text(), re.M)[1]) / 1024


def seeded(bench, name, number, settings=None):
    """A stopped fleet with so many new tenants, and their users."""
    fleet = kit.Fleet(bench, name, settings)
    fleet.start()
    fleet.user("like")
    fleet.stop()
    return fleet, bench_seed.new_tenants(fleet, number)


def stop_all(bench, processes):
    for process in processes:
        process.terminate()
    for process in processes:
        bench.stop(process)


def shares(values):
    """The mean, because what is done once a minute has to count; and the range."""
    return {"n": len(values), "mean": round(statistics.mean(values), 4), "min": round(min(values), 4),
            "max": round(max(values), 4)}


class Idle:
    """What processes cost while nobody asks: CPU time in windows, five of which are a minute, so that what PocketBase
    and pocketfleet do once a minute is in; then memory, threads and descriptors."""

    def __init__(self, bench):
        self.bench = bench
        self.seconds = 2 if bench.quick else 12

    def windows(self, groups, rounds):
        """Milliseconds of CPU a second of each named group of processes, in each of some windows of time."""
        found = {name: [] for name in groups}
        for _ in range(rounds):
            before, began = {name: kit.cpu_exact(pids) for name, pids in groups.items()}, time.monotonic()
            time.sleep(self.seconds)
            for name, pids in groups.items():
                found[name].append((kit.cpu_exact(pids) - before[name]) * 1000 / (time.monotonic() - began))
        return found

    @staticmethod
    def size(pids):
        """Means of one process."""
        memory = [kit.memory_mib(pid) for pid in pids]
        counts = [kit.threads_and_descriptors(pid) for pid in pids]
        mean = lambda values: round(statistics.mean(values), 3)
        return {"private": mean([m[1] for m in memory]), "proportional": mean([m[0] for m in memory]),
                "threads": mean([c[0] for c in counts]), "descriptors": mean([c[1] for c in counts])}


def awake(bench):
    """Bare instances run before and after the fleet and not beside it: all together would need too much memory."""
    number, bare_number, rounds = (30, 10, 2) if bench.quick else (1000, 100, 10)
    fleet, users = seeded(bench, "awake", number, {"POCKETFLEET_INSTANCES__MAX_AWAKE": str(number + 100)})
    fleet.start()
    bench_seed.ask_all(fleet, users[:1])
    fleet.sleep(users[0][0])
    copy = fleet.copy_of(users[0][0], "awake-bare")
    token = kit.instance_token(copy, users[0][0])
    copies = [bench.temp / f"awake-bare-{n}" for n in range(bare_number)]
    for target in copies:
        shutil.copytree(copy, target)
    fleet.stop()
    idle = Idle(bench)
    bare = {"cpu": [], "sizes": []}

    def measure_bare():
        processes = [bench.bare_until_answer(target, bench_seed.PATH, token)[0] for target in copies]
        kit.settle(bench)
        pids = [process.pid for process in processes]
        bare["cpu"] += idle.windows({"bare": pids}, rounds // 2)["bare"]
        bare["sizes"].append(idle.size(pids))
        stop_all(bench, processes)

    measure_bare()
    each = max(bare["sizes"][0]["private"], 1)
    room = min(BUDGET_MIB, available_mib() - 1024)
    fleet.start()
    full = lambda: len(kit.children_of(fleet.process.pid)) * each > room
    _, first_ms = bench_seed.ask_all(fleet, users, until=full)
    if len(bench_seed.awake(fleet, users)) < number:
        users = [user for user in users if user[0] in bench_seed.awake(fleet, users)]
        kit.say(f"awake: {len(users)} instances and no more, for want of memory")
    fleet.stop()
    ready_ms = fleet.start()
    took, again_ms = bench_seed.ask_all(fleet, users)
    pids = bench_seed.awake(fleet, users)
    if len(pids) != len(users):
        kit.fail(f"awake: {len(users)} tenants were asked, {len(pids)} are awake")
    kit.settle(bench)
    accounts = next(item["pid"] for item in kit.all_tenants(fleet, number + 10) if item["tenant"] == "global")
    groups = {"instances": list(pids.values()), "accounts": [accounts], "pocketfleet": [fleet.process.pid]}
    cpu = idle.windows(groups, rounds)
    sizes = {name: idle.size(group) for name, group in groups.items()}
    resident = kit.memory_mib(fleet.process.pid)[2]
    fleet.stop()
    measure_bare()

    count = len(users)
    ours = [sum(window) / count for window in zip(*cpu.values())]
    bare_cpu = [window / bare_number for window in bare["cpu"]]
    mean = {key: round(statistics.mean(size[key] for size in bare["sizes"]), 3) for key in bare["sizes"][0]}
    total = sizes["instances"]["private"] + (sizes["pocketfleet"]["private"] + sizes["accounts"]["private"]) / count
    return {
        "n": count, "bare n": bare_number, "seconds": idle.seconds, "rounds": rounds,
        "first_wakes_s": round(first_ms / 1000, 2), "wakes_s": round(again_ms / 1000, 2), "wake_ms": kit.spread(took),
        "ready_ms": round(ready_ms, 1), "resident": round(resident, 2),
        **{name: {**size, "cpu_ms_per_s": shares(cpu[name])} for name, size in sizes.items()},
        "bare": {**mean, "cpu_ms_per_s": shares(bare_cpu)},
        "in all, each": {"private": round(total, 3), "cpu_ms_per_s": shares(ours)},
        "overhead": {"private": round(total / mean["private"] - 1, 4),
                     "cpu": round(statistics.mean(ours) / statistics.mean(bare_cpu) - 1, 4)},
    }


def awake_report(found):
    count, over = found["n"], found["overhead"]
    cpu = lambda name, of=1: "{:.3f} ({:.3f}–{:.3f})".format(
        *(found[name]["cpu_ms_per_s"][key] / of for key in ("mean", "min", "max")))
    row = lambda label, name, of=1: [label, f"{found[name]['private']:.2f}", cpu(name, of),
                                     f"{found[name]['threads']:.1f}", f"{found[name]['descriptors']:.1f}"]
    return [f"### {count:,} awake, idle tenants\n\nAfter one request each; CPU in {found['rounds']} windows of "
            f"{found['seconds']} s, means and their range. *Each* is what one tenant costs in all: an instance and its share of "
            f"pocketfleet and of the accounts instance, {over['private']:+.1%} memory and {over['cpu']:+.1%} CPU of a bare "
            f"PocketBase (goal: at most +5 %). The bare ones are {found['bare n']}, before and after the fleet, scaled per "
            "instance.\n",
            kit.table(["", "private MiB", "CPU ms/s", "threads", "descriptors"],
                      [row("one bare PocketBase", "bare"), row("one instance", "instances", count),
                       ["**each**", f"{found['in all, each']['private']:.2f}", cpu("in all, each"), "", ""],
                       row("pocketfleet itself", "pocketfleet"), row("the accounts instance", "accounts")]),
            f"All are woken in {found['wakes_s']:.1f} s by 8 clients, which wait {found['wake_ms']['p50']:.0f} ms each (p99 "
            f"{found['wake_ms']['p99']:.0f} ms); the very first time, when their directories are made, in "
            f"{found['first_wakes_s']:.1f} s.\n"]


def registered(bench):
    """The tenants that are only registered have records and accounts and no directories; one user is real."""
    numbers = (2_000,) if bench.quick else (10_000, 100_000)
    most = numbers[-1]
    kinds = {"no others": (0, False), **{f"{n:,} others": (n, False) for n in numbers},
             f"{most:,} others, each signed in": (most, True)}
    fleets = {}
    for index, (name, (number, sessions)) in enumerate(kinds.items()):
        fleet = kit.Fleet(bench, f"registered-{index}")
        fleet.start()
        tenant, token = fleet.user("ada")
        kit.Client(fleet.address, token).call("GET", bench_seed.PATH)
        fleet.stop()
        if number:
            bench_seed.used_tenants(fleet, number, sessions)
        fleets[name] = (fleet, tenant, token)
    found = {name: {"ready_ms": [], "resident": [], "private": [], "wake_ms": []} for name in fleets}
    for _ in range(2 if bench.quick else 7):
        for name in kit.shuffled(fleets):
            took = fleets[name][0].start()
            _, private, resident = kit.memory_mib(fleets[name][0].process.pid)
            for key, value in (("ready_ms", took), ("private", private), ("resident", resident)):
                found[name][key].append(value)
            fleets[name][0].stop()
    clients = {}
    for name, (fleet, tenant, token) in fleets.items():
        fleet.start()
        count = fleet.command("status")["fleet"]["registered"]
        if count != kinds[name][0] + 1:
            kit.fail(f"{kinds[name][0]} tenants were seeded and {count} are there; bench_seed no longer fits the control database")
        clients[name] = kit.Client(fleet.address, token)
    rounds = 5 if bench.quick else 40
    for number in range(rounds + 1):
        for name in kit.shuffled(fleets):
            fleet, tenant, _ = fleets[name]
            fleet.sleep(tenant)
            _, took = clients[name].call("GET", bench_seed.PATH)
            if number > 0:
                found[name]["wake_ms"].append(took)
    for name, (fleet, _, _) in fleets.items():
        clients[name].close()
        fleet.stop()
    return {name: {key: kit.spread(values) for key, values in keys.items()} for name, keys in found.items()}


def registered_report(found):
    rows = [[name, kit.ms(r["ready_ms"]["p50"]), kit.ms(r["ready_ms"]["p99"]), f"{r['resident']['p50']:.1f}",
             f"{r['private']['p50']:.1f}", kit.ms(r["wake_ms"]["p50"]), kit.ms(r["wake_ms"]["p90"])]
            for name, r in found.items()]
    wakes = next(iter(found.values()))["wake_ms"]["n"]
    return ["### Registered tenants that sleep\n\nA start, from spawn to 200 on `/ready`, the accounts instance included "
            "(goal with 100,000: 2 s), memory right after it (goal: 200 MB), and the wake of one tenant beside all the "
            f"others, {wakes} rounds (goal: the same as alone).\n",
            kit.table(["beside one tenant", "start p50 ms", "p99 ms", "resident MiB", "private MiB", "wake p50 ms",
                       "p90 ms"], rows)]


def adoption(bench):
    number = 20 if bench.quick else 500
    fleet, users = seeded(bench, "adoption", number)
    alone, _ = seeded(bench, "adoption-none", 0)
    for one in (fleet, alone):
        one.start()
    bench_seed.ask_all(fleet, users)
    pids = bench_seed.awake(fleet, users)
    if len(pids) != number:
        kit.fail(f"adoption: {number} tenants were asked, {len(pids)} are awake")
    keys = ("ready_ms", "adopted_ms", "cpu_ms", "answer_ms", "all_answered_ms")
    found = {"none": {key: [] for key in keys}, "killed": {key: [] for key in keys}, "reload": {"took_ms": [], "longest_wait_ms": []}}
    health = lambda one: kit.Client(one.address).call("GET", "/health/pb")[0]

    def start_again(one, there, into):
        one.process.send_signal(signal.SIGKILL)
        one.process.wait(60)
        bench.running.remove(one.process)
        began = kit.now_ms()
        into["ready_ms"].append(one.start())
        # The accounts instance is adopted as well.
        kit.eventually("all are adopted", lambda: health(one)["adopted"] >= len(there) + 1, 120, 0.001)
        into["adopted_ms"].append(kit.now_ms() - began)
        into["cpu_ms"].append(1000 * (kit.cpu_exact([one.process.pid]) + kit.cpu_of_children(one.process.pid)))
        if there:
            took, all_ms = bench_seed.ask_all(one, there)
            into["answer_ms"] += took
            into["all_answered_ms"].append(all_ms)

    def reload():
        """The CLI tells when the next run serves; meanwhile somebody asks an instance over and over."""
        over, waits = [], []

        def ask():
            client = kit.Client(fleet.address, users[0][1])
            since = kit.now_ms()
            while not over:
                try:
                    client.call("GET", bench_seed.PATH)
                    waits.append(kit.now_ms() - since)
                    since = kit.now_ms()
                except (OSError, http.client.HTTPException):
                    # Between answers the old run closes what is kept alive; the wait goes on.
                    client.close()
                    client = kit.Client(fleet.address, users[0][1])
            client.close()

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            try:
                found["reload"]["took_ms"].append(fleet.command("reload")["duration_ms"])
            finally:
                over.append(True)
            asking.result(60)
        found["reload"]["longest_wait_ms"].append(max(waits))

    for _ in range(2 if bench.quick else 7):
        for what in kit.shuffled(found):
            if what == "none":
                start_again(alone, [], found["none"])
            elif what == "killed":
                start_again(fleet, users, found["killed"])
            else:
                reload()
            if bench_seed.awake(fleet, users) != pids:
                kit.fail(f"adoption: the instances are not the same processes any more after {what}")
    for one in (fleet, alone):
        one.stop()
    spread = lambda values: {key: kit.spread(found) for key, found in values.items() if found}
    return {"n": number, **{name: spread(values) for name, values in found.items()}}


def adoption_report(found):
    none, killed, reload = found["none"], found["killed"], found["reload"]
    row = lambda name, r: [name, *(f"{kit.ms(r[key]['p50'])} (–{kit.ms(r[key]['p99'])})" if key in r else ""
                                   for key in ("ready_ms", "adopted_ms", "cpu_ms", "all_answered_ms"))]
    return [f"### A start with {found['n']} instances that a killed pocketfleet left running\n\nMilliseconds from spawn, "
            f"medians of {killed['ready_ms']['n']} rounds (and the most). Nobody is served before all are settled; then each is asked "
            f"once, which takes {kit.ms(killed['answer_ms']['p50'])} ms (p99 {kit.ms(killed['answer_ms']['p99'])}). All "
            "processes are the same ones afterwards.\n",
            kit.table(["left running", "to /ready", "to all adopted", "CPU of pocketfleet", "all answered in"],
                      [row("the accounts instance only", none), row(f"and {found['n']} instances", killed)]),
            f"`pocketfleet reload` with the same instances takes {kit.ms(reload['took_ms']['p50'])} ms; who asks meanwhile "
            f"waits {kit.ms(reload['longest_wait_ms']['p50'])} ms at the longest (median of "
            f"{reload['took_ms']['n']} rounds, most {kit.ms(reload['longest_wait_ms']['p99'])}).\n"]
