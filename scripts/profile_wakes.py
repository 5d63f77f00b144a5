"""Where the CPU time of a wake goes, of one program or of two in turn: `scripts/profile --wakes [--before PROGRAM]`.

A wake is a signed-in request to a sleeping instance. CPU times are the kernel's own accounts of threads (schedstat), so
they need no samples; what they are spent on comes from perf, which sees this program, the jailer (until it becomes
PocketBase) and PocketBase, and tells them apart by the names of threads.
"""

import collections
import pathlib
import re
import signal
import statistics
import subprocess
import time

import bench_kit as kit

# How often each program wakes its instance; and how often under perf.
ROUNDS = 40
SAMPLED = 40
FREQUENCY = 4999
# What a symbol outside the kernel is about; the first that fits.
PARTS = (
    ("SQLite", r"^sqlite3|^yy_|VdbeExec|^btree|^pager|^wal|^unix[A-Z]|^pcache"),
    ("loading and linking a program", r"^_dl_|^dl_|^do_lookup|^_start$|check_match|elf_"),
    ("seccomp and Landlock", r"seccomp|landlock"),
    ("copying and allocation", r"mem(?:cpy|move|set|cmp)|malloc|calloc|realloc|\bfree\b|_int_|alloc::alloc|RawVec"),
    ("JSON, HTTP, tokio and our own code", r"::"),
)
KERNEL_PARTS = (
    ("kernel: starting programs and memory of processes", "exec execve fork clone mm mmap munmap vma page pages pte fault folio "
     "anonymous clear unmap zap tlb elf copy dup free alloc lru mem memcg rmap"),
    ("kernel: files and disk", "ext4 file files dentry d path inode vfs fsync open openat lookup walk jbd2 bio blk submit "
     "read write fput rename unlink mkdir rmdir landlock"),
    ("kernel: waiting and waking", "epoll ep futex sched schedule task wake wakeup switch idle timer hrtimer nanosleep finish "
     "poll rq spin"),
    ("kernel: network", "tcp ip inet sock sk skb loopback netif unix"),
)


def part_of(symbol, is_kernel):
    if not is_kernel:
        return next((name for name, words in PARTS if re.search(words, symbol)), "other")
    words = set(re.split(r"[^a-z0-9]+", symbol.lower()))
    return next((name for name, some in KERNEL_PARTS if words & set(some.split())), "kernel: other")


def of_threads(pid):
    """CPU milliseconds of each kind of thread of a process."""
    spent = collections.Counter()
    for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            kind = re.sub(r"-\d+$", "", (thread / "comm").read_text().strip()) if int(thread.name) != pid else "main"
            spent[kind] += int((thread / "schedstat").read_text().split()[0]) / 1e6
        except OSError:
            pass
    return spent


def children(pid):
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:
            pass
    return found


class Woken:
    """One program with one tenant, whose instance is woken again and again."""

    def __init__(self, bench, name, program):
        bench.program = pathlib.Path(program)
        self.name, self.bench = name, bench
        self.fleet, self.tenant, self.token, self.copy, self.bare_token, self.record = kit.prepared(bench, name)
        self.client = kit.Client(self.fleet.address, self.token)
        self.rows = []

    def wake(self, is_counted=True):
        self.fleet.sleep(self.tenant)
        # What follows a sleep is not the next wake's.
        time.sleep(0.05)
        before = of_threads(self.fleet.process.pid)
        _, took = self.client.call("GET", self.record)
        after = of_threads(self.fleet.process.pid)
        instance = next(item["pid"] for item in kit.all_tenants(self.fleet) if item["tenant"] == self.tenant)
        if is_counted:
            spent = {kind: after[kind] - before[kind] for kind in after}
            self.rows.append((took, spent, sum(of_threads(instance).values())))

    def told(self):
        middle = lambda values: round(statistics.median(values), 2)
        kinds = sorted({kind for _, spent, _ in self.rows for kind in spent})
        return {"first_byte_ms": middle(took for took, _, _ in self.rows),
                "pocketfleet_ms": middle(sum(spent.values()) for _, spent, _ in self.rows),
                "by_thread_ms": {kind: middle(spent.get(kind, 0.0) for _, spent, _ in self.rows) for kind in kinds},
                "jailer_and_instance_ms": middle(instance for _, _, instance in self.rows)}

    def sampled(self, tool, kernel):
        """Milliseconds of CPU of a wake by what they are spent on, PocketBase's own left out."""
        data = self.bench.temp / f"{self.name}.data"
        # The jailers that wait, too; and those that any of these fork later are followed.
        pids = ",".join(map(str, [self.fleet.process.pid, *children(self.fleet.process.pid)]))
        command = [*tool, "record", "-N", "-e", "cpu-clock", "-F", str(FREQUENCY), "-p", pids, "-o", data]
        perf = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(1)
        for _ in range(SAMPLED):
            self.wake(is_counted=False)
        perf.send_signal(signal.SIGINT)
        perf.communicate(timeout=120)
        shown = subprocess.run([*map(str, tool), "script", "-i", str(data), "-F", "comm,tid,ip,sym,dso"], capture_output=True,
                               text=True, errors="replace", timeout=300)
        weights = collections.Counter()
        for line in shown.stdout.splitlines():
            found = re.match(r"^\s*(.+?)\s+\d+\s+[0-9a-f]+ (.*) \((.*)\)$", line)
            if found and found[1] != "pocketbase" and not found[3].endswith("/pocketbase"):
                whose = "jailer" if found[1] in ("exe", "pocketfleet") or found[1].startswith("pf-") else "pocketfleet"
                weights[whose, part_of(found[2], found[3] in kernel)] += 1000 / FREQUENCY / SAMPLED
        return [{"whose": whose, "what": what, "ms": round(ms, 3)} for (whose, what), ms in weights.most_common()]


def look(bench, options, tool, kernel):
    programs = {"after": options.program} | ({"before": options.before} if options.before else {})
    woken = [Woken(bench, name, program) for name, program in programs.items()]
    bare = []
    for turn in range(ROUNDS + 2):
        for one in kit.shuffled([*woken, None]):
            if one is None:
                process, _, took = bench.bare_until_answer(woken[0].copy, woken[0].record, woken[0].bare_token)
                if turn > 1:
                    bare.append((took, sum(of_threads(process.pid).values())))
                bench.stop(process)
            else:
                one.wake(is_counted=turn > 1)
    found = {"rounds": ROUNDS, "bare": {"first_byte_ms": round(statistics.median(took for took, _ in bare), 2),
                                        "cpu_ms": round(statistics.median(cpu for _, cpu in bare), 2)}}
    for one in woken:
        found[one.name] = one.told()
        if tool:
            found[one.name]["spent_on"] = one.sampled(tool, kernel)
        one.client.close()
        one.fleet.stop()
    return found


def report(found):
    names = [name for name in ("before", "after") if name in found]
    bare = found["bare"]
    print(f"\nCPU milliseconds of a wake, medians of {found['rounds']}; a bare PocketBase with the same settings: first byte after "
          f"{bare['first_byte_ms']} ms, {bare['cpu_ms']} ms of CPU.\n")
    head = ["", *names]
    rows = [["first byte, ms", *(found[name]["first_byte_ms"] for name in names)],
            ["jailer and instance", *(found[name]["jailer_and_instance_ms"] for name in names)],
            ["pocketfleet", *(found[name]["pocketfleet_ms"] for name in names)]]
    kinds = sorted({kind for name in names for kind in found[name]["by_thread_ms"]})
    rows += [[f"pocketfleet: {kind}", *(found[name]["by_thread_ms"].get(kind, 0) for name in names)] for kind in kinds]
    for row in [head, *rows]:
        print(f"  {row[0]:<40}" + "".join(f"{cell!s:>10}" for cell in row[1:]))
    spent = {name: {(row["whose"], row["what"]): row["ms"] for row in found[name].get("spent_on", [])} for name in names}
    keys = sorted({key for name in names for key in spent[name]}, key=lambda key: -max(spent[name].get(key, 0) for name in names))
    if keys:
        print("\nWhat it is spent on (perf), PocketBase's own left out; falling asleep again is in it:\n")
    for key in keys:
        print(f"  {key[0] + ': ' + key[1]:<70}" + "".join(f"{spent[name].get(key, 0):>9.2f}" for name in names))
