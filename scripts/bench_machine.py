"""What a run of scripts/bench was taken with and on: versions, the machine, and what else it was doing."""

import os
import pathlib
import platform
import re
import subprocess

import bench_kit as kit

# What prints a version, and where in the text it is.
PROGRAMS = {
    "nginx": (["nginx", "-v"], r"nginx/(\S+)"),
    "haproxy": (["haproxy", "-v"], r"HAProxy version (\S+)"),
    "caddy": (["caddy", "version"], r"v?(\d\S*)"),
    "wrk": (["wrk", "-v"], r"wrk (?:debian/)?(\S+)"),
    "node": (["node", "--version"], r"v(\S+)"),
}
# Above this at the start, another job takes enough to be seen in the figures.
QUIET = 0.5


def version(program, arguments, pattern):
    if not program:
        return None
    done = subprocess.run([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    found = re.search(pattern, done.stdout)
    return found[1] if found else None


def versions(bench):
    found = {"pocketfleet": version(bench.program, ["--version"], r"(\d\S*)"),
             "PocketBase": version(bench.pocketbase, ["--version"], r"(\d\S*)")}
    for name, ((program, *arguments), pattern) in PROGRAMS.items():
        found[name] = version(kit.which(program), arguments, pattern)
    return {name: text for name, text in found.items() if text}


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", info, re.M)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), {memory:.0f} GiB, Linux {platform.release()}"


def load():
    """The load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def facts(results):
    """The paragraphs at the head of the report. Scenarios may be from several runs."""
    text = []
    if found := results.get("versions"):
        text.append("Versions: " + ", ".join(f"{name} {number}" for name, number in found.items()) + ".\n")
    runs = {}
    for name, run in results.get("runs", {}).items():
        runs.setdefault((run["date"], run["load_at_start"]), []).append((name, run["load_at_end"]))
    if runs:
        text.append("Load average of the last minute, before the run and at its end, which is the benchmark's own:\n")
        text.append(kit.table(["run", "before", "at the end", "scenarios"],
                              [[date, start, scenarios[-1][1], ", ".join(name for name, _ in scenarios)]
                               for (date, start), scenarios in sorted(runs.items())]))
    busy = sorted(name for name, run in results.get("runs", {}).items() if run["load_at_start"] > QUIET)
    if busy:
        text.append(f"**Warning: the machine was busy with something else (load average above {QUIET}) when these began: "
                    f"{', '.join(busy)}. Absolute figures are worse than they would be alone; trust ratios only, and those with care.**\n")
    return text
