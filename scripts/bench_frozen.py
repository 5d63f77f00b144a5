"""The scenario `frozen` of scripts/bench: what a frozen instance costs, and what its first caller waits."""

import concurrent.futures
import pathlib
import time

import bench_kit as kit

# Frozen soon after the last request, so that a round does not take long.
FREEZE_AFTER = {"POCKETFLEET_INSTANCES__FREEZE_AFTER": "1s", "POCKETFLEET_INSTANCES__PREDICT": "false"}


def has_swap():
    return len(pathlib.Path("/proc/swaps").read_text().splitlines()) > 1


def swapped_mib():
    """What is in swap, and what that takes of memory where swap is compressed memory: none where it is a disk."""
    stored, taken = 0, 0
    for stat in pathlib.Path("/sys/block").glob("zram*/mm_stat"):
        fields = stat.read_text().split()
        stored, taken = stored + int(fields[0]), taken + int(fields[2])
    return stored / 2**20, taken / 2**20


def available_mib():
    text = pathlib.Path("/proc/meminfo").read_text()
    return int(text.split("MemAvailable:")[1].split()[0]) / 1024


def all_frozen(fleet, tenants):
    listed = {item["tenant"]: item["state"] for item in kit.all_tenants(fleet)}
    return all(listed.get(tenant) == "frozen" for tenant in tenants)


def paged_out(fleet, pids):
    """The kernel pages out in the background: until what is resident has stopped falling."""
    before = None
    while True:
        now = sum(kit.memory_mib(pid)[1] for pid in pids)
        if before is not None and before - now < 0.5:
            return
        before = now
        time.sleep(1)


def frozen(bench):
    number = 10 if bench.quick else 100
    fleet = kit.Fleet(bench, "frozen")
    fleet.start()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        users = list(pool.map(lambda n: fleet.user(f"z{n}"), range(number)))
    tenants, path = [tenant for tenant, _ in users], "/api/collections/notes/records?perPage=1"
    fleet.sleep(*tenants)
    kit.settle(bench)
    without, (_, swap_before) = available_mib(), swapped_mib()
    for _, token in users:
        kit.Client(fleet.address, token).call("GET", path)
    kit.settle(bench)
    awake = available_mib()
    awake_pids = [item["pid"] for item in kit.all_tenants(fleet) if item["tenant"] in tenants]
    private_awake = [kit.memory_mib(pid)[1] for pid in awake_pids]
    # From here on they freeze.
    fleet.stop()
    fleet.settings = FREEZE_AFTER
    fleet.start()
    clients = [kit.Client(fleet.address, token) for _, token in users]
    for client in clients:
        client.call("GET", path)
    kit.eventually("all are frozen", lambda: all_frozen(fleet, tenants), seconds=120, pause=0.2)
    listed = {item["tenant"]: item for item in kit.all_tenants(fleet)}
    pids = [listed[tenant]["pid"] for tenant in tenants]
    paged_out(fleet, pids)
    kit.settle(bench)
    _, swap_after = swapped_mib()
    frozen_now, private = available_mib(), [kit.memory_mib(pid)[1] for pid in pids]
    times = {"warm": [], "thaw": [], "wake": []}
    rounds = 1 if bench.quick else 3
    for _ in range(rounds):
        for client in kit.shuffled(clients):
            times["thaw"].append(client.call("GET", path)[1])
            times["warm"].append(client.call("GET", path)[1])
        kit.eventually("all are frozen", lambda: all_frozen(fleet, tenants), seconds=120, pause=0.2)
        paged_out(fleet, pids)
    for tenant, client in list(zip(tenants, clients))[: 10 if bench.quick else 50]:
        fleet.sleep(tenant)
        times["wake"].append(client.call("GET", path)[1])
    for client in clients:
        client.close()
    fleet.stop()
    return {
        "n": number,
        "swap": has_swap(),
        "each_mib": {"awake": round((without - awake) / number, 2), "frozen": round((without - frozen_now) / number, 2)},
        "private_mib": {"awake": round(sum(private_awake) / len(private_awake), 2), "frozen": round(sum(private) / number, 2),
                        "compressed": round((swap_after - swap_before) / number, 2)},
        **{name: kit.spread(found) for name, found in times.items()},
    }


def frozen_report(found):
    each, swap = found["each_mib"], "paged out to swap" if found["swap"] else (
        "on a machine **without swap**: they keep their memory, and only their CPU time is saved")
    rows = [[name, *(kit.ms(found[name][key]) for key in ("p50", "p90"))] for name in ("warm", "thaw", "wake")]
    private = found["private_mib"]
    return [f"### Frozen instances\n\n{found['n']} instances, {swap}. Private memory of each: {private['awake']} MiB awake; "
            f"frozen, {private['frozen']} MiB resident and {private['compressed']} MiB in compressed swap. Of the machine's "
            f"available memory, which everything else on it moves too: {each['awake']} MiB and {each['frozen']} MiB. "
            f"Milliseconds to the first byte of one request: to an awake "
            "instance, to a frozen one, to a sleeping one.\n",
            kit.table(["", "p50", "p90"], rows)]
