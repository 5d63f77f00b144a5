"""The sandbox's part of scripts/bench: what a wake costs at each level of isolation.

Level 0 takes a program with the feature `testing` (cargo build --release --features testing), level 2 takes root, level 3
`nft` as well; a level that the program does not reach is left out."""

import json
import os
import urllib.request

import bench_kit as kit

LEVELS = (0, 1, 2, 3)
SETTING = "POCKETFLEET_ISOLATION__LEVEL"


def reached(address):
    with urllib.request.urlopen(f"http://{address}/health/pb", timeout=10) as answer:
        return json.load(answer)["isolation_level"]


def isolation(bench):
    fleets = {}
    for level in LEVELS:
        os.environ[SETTING] = str(level)
        fleet = kit.Fleet(bench, f"isolation-{level}")
        try:
            fleet.start()
        except SystemExit as refused:
            kit.say(f"isolation: level {level} is left out: {str(refused).splitlines()[0]}")
            continue
        finally:
            del os.environ[SETTING]
        if reached(fleet.address) != level:
            kit.say(f"isolation: level {level} is left out: the program does not reach it here")
            fleet.stop()
            continue
        tenant, token = fleet.user("ada")
        client = kit.Client(fleet.address, token)
        note, _ = client.call("POST", "/api/collections/notes/records", {"title": "a note"})
        fleets[level] = (fleet, tenant, client, f"/api/collections/notes/records/{note['id']}")
    times = {level: [] for level in fleets}
    rounds = 5 if bench.quick else 60
    for number in range(rounds + 1):
        for level in kit.shuffled(fleets):
            fleet, tenant, client, record = fleets[level]
            fleet.sleep(tenant)
            _, took = client.call("GET", record)
            if number > 0:
                times[level].append(took)
    for fleet, _, client, _ in fleets.values():
        client.close()
        fleet.stop()
    return {str(level): kit.spread(found) for level, found in times.items()}


def isolation_report(found):
    base = found.get("0") or next(iter(found.values()))
    rows = [[f"level {level}", kit.ms(r["p50"]), kit.ms(r["p90"]), kit.ratio(r["p50"], base["p50"])]
            for level, r in found.items()]
    return ["### A wake at each level of isolation\n\nMilliseconds from a request to a sleeping instance to its answer, "
            f"{base['n']} rounds.\n", kit.table(["", "p50", "p90", "of the first"], rows)]
