"""The scenario `token` of scripts/bench: whom a request speaks for, told here or asked of a PocketBase.

Local: `/health/pb` answers everybody the same, and checks the token of whoever shows one. The CPU time of pocketfleet
for a request with a token, less that for one with the same bytes in a header that nobody reads, is the check. The
difference is small beside the request, so examples/token_bench.rs times the check alone, where it is built. Asked:
`auth-refresh` at a bare PocketBase, the CPU time of its process only: what asking costs the one who asks comes on top.
"""

import json
import subprocess

import bench_kit as kit

REFRESH = "/api/collections/users/auth-refresh"
CONNECTIONS = 16
GOAL = 50


def in_program(bench, database, token, user):
    """Runs the example that is built beside the program; none when it is not built."""
    example = bench.program.parent / "examples" / "token_bench"
    if not example.is_file():
        kit.say(f"{example} is missing (cargo build --release --example token_bench): the check alone is not measured")
        return None
    checks = "20000" if bench.quick else "200000"
    done = subprocess.run([example, database, token, user, checks], cwd=kit.ROOT, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        kit.fail(f"token_bench: {done.stderr}")
    found = json.loads(done.stdout)
    return {name: [cost / 1000 for cost in found[f"{name}_ns"]] for name in ("whole", "again")}


def token(bench):
    fleet = kit.Fleet(bench, "token")
    fleet.start()
    user, its_token = fleet.user("ada")
    fleet.stop()
    accounts = fleet.copy_of("global", "token-bare")
    fleet.start()
    # Asked once more below, so that what is checked is a session that is known.
    kit.Client(fleet.address, its_token).call("GET", "/health/pb")
    bare_process, bare, _ = bench.bare_until_answer(accounts, "/api/health", None)
    kit.Client(bare, its_token).call("POST", REFRESH)
    post = bench.temp / "refresh.lua"
    post.write_text('wrk.method = "POST"\n')
    contestants = {
        "with token": (fleet.address, "/health/pb", "Authorization", None, fleet.process.pid),
        "without": (fleet.address, "/health/pb", "X-Unread-Head", None, fleet.process.pid),
        "asked": (bare, REFRESH, "Authorization", post, bare_process.pid),
    }
    found = {name: [] for name in contestants}
    seconds, rounds = (1, 3) if bench.quick else (3, 15)
    for number in range(rounds + 1):
        for name in kit.shuffled(contestants):
            address, path, header, script, pid = contestants[name]
            before = kit.cpu_exact([pid])
            run = kit.wrk(address, path, its_token, CONNECTIONS, seconds, script, header)
            if run["errors"]:
                kit.fail(f"token: {run['errors']} errors at {path}")
            if number > 0:
                found[name].append((kit.cpu_exact([pid]) - before) * 1e6 / run["requests"])
    bench.stop(bare_process)
    alone = in_program(bench, fleet.data / "instances/global/pb_data/data.db", its_token, user)
    fleet.stop()
    found["difference"] = [a - b for a, b in zip(found["with token"], found["without"])]
    if alone:
        found |= alone
    return {name: {**kit.spread(values), "max": round(max(values), 3)} for name, values in found.items()}


def token_report(found):
    asked = found["asked"]["p50"]
    kinds = {"asked": "`auth-refresh` at a bare PocketBase", "difference": "the check, as part of a request",
             "whole": "the check alone", "again": "the check alone, again on one connection",
             "with token": "a small request with a token", "without": "the same without"}
    rows = []
    for name, label in kinds.items():
        if name in found:
            r = found[name]
            cheaper = f"{asked / r['p50']:,.0f}×" if name in ("difference", "whole", "again") and r["p50"] > 0 else ""
            rows.append([label, f"{r['p50']:.2f}", f"{r['min']:.2f}–{r['max']:.2f}", cheaper])
    text = ["### Whom a token speaks for\n\nMicroseconds of CPU time, medians of "
            f"{found['asked']['n']} rounds at {CONNECTIONS} connections, and their range. pocketfleet checks a token without "
            f"asking anybody (goal: {GOAL} times cheaper). The check as part of a request is the difference between the "
            "last two lines, and as uncertain as they are; alone it is timed in a program of its own.\n",
            kit.table(["", "CPU µs", "range", "cheaper than asking"], rows)]
    if "whole" not in found:
        text.append("The check alone was not measured: the example `token_bench` was not built.\n")
    return text
