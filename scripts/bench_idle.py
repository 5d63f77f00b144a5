"""The scenario `memory` of scripts/bench: what instances cost while nobody asks."""

import concurrent.futures
import shutil
import statistics
import time

import bench_kit as kit


def memory(bench):
    number = 20 if bench.quick else 200
    fleet = kit.Fleet(bench, "memory")
    fleet.start()
    # Registration hashes a password; two at a time keep both cores busy and stay below the limit on waiting ones.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        users = list(pool.map(lambda n: fleet.user(f"m{n}"), range(number)))
    path = "/api/collections/notes/records?perPage=1"
    for tenant, token in users:
        client = kit.Client(fleet.address, token)
        client.call("GET", path)
        client.close()
    listed = {item["tenant"]: item for item in kit.all_tenants(fleet)}
    pids = [listed[tenant]["pid"] for tenant, _ in users]
    kit.settle(bench)
    own, accounts = kit.memory_mib(fleet.process.pid), kit.memory_mib(listed["global"]["pid"])
    cpu_before = kit.cpu_seconds([fleet.process.pid, *pids])
    quiet = 5 if bench.quick else 20
    time.sleep(quiet)
    cpu = kit.cpu_seconds([fleet.process.pid, *pids]) - cpu_before
    instances = [kit.memory_mib(pid) for pid in pids]
    fleet.sleep(users[0][0])
    copy = fleet.copy_of(users[0][0], "memory-bare")
    token = kit.instance_token(copy, users[0][0])
    fleet.stop()

    processes = []
    for n in range(number):
        shutil.copytree(copy, bench.temp / f"memory-bare-{n}")
        process, _, _ = bench.bare_until_answer(bench.temp / f"memory-bare-{n}", path, token)
        processes.append(process)
    kit.settle(bench)
    cpu_before = kit.cpu_seconds(p.pid for p in processes)
    time.sleep(quiet)
    bare_cpu = kit.cpu_seconds(p.pid for p in processes) - cpu_before
    bare = [kit.memory_mib(process.pid) for process in processes]
    for process in processes:
        process.terminate()
    for process in processes:
        bench.stop(process)
    each = lambda found, index: round(statistics.mean(one[index] for one in found), 3)
    return {
        "n": number,
        "pocketfleet": {"private": round(own[1], 2), "resident": round(own[2], 2)},
        "global": {"private": round(accounts[1], 2)},
        "instance": {"private": each(instances, 1), "proportional": each(instances, 0)},
        "instance with pocketfleet's share": {"private": round(each(instances, 1) + own[1] / number, 3),
                                              "cpu_ms_per_s": round(cpu * 1000 / quiet / number, 4)},
        "bare": {"private": each(bare, 1), "proportional": each(bare, 0),
                 "cpu_ms_per_s": round(bare_cpu * 1000 / quiet / number, 4)},
    }


def memory_report(found):
    full = found["instance with pocketfleet's share"]
    bare = found["bare"]
    return [f"### {found['n']} idle instances\n\nAfter one request each. pocketfleet itself: "
            f"{found['pocketfleet']['private']:.1f} MiB private; the accounts instance: "
            f"{found['global']['private']:.1f} MiB.\n",
            kit.table(["each", "private MiB", "of bare", "CPU ms/s"],
                   [["bare process", f"{bare['private']:.2f}", "", bare["cpu_ms_per_s"]],
                    ["instance", f"{found['instance']['private']:.2f}",
                     kit.ratio(found["instance"]["private"], bare["private"]), ""],
                    ["with pocketfleet's share", f"{full['private']:.2f}", kit.ratio(full["private"], bare["private"]),
                     full["cpu_ms_per_s"]]])]
