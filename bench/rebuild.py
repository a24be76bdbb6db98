#!/usr/bin/env python3
"""A node dies. How long until the writes to all shards it had a copy of go on (200 volumes of 10 shards), how fast are its
copies made anew elsewhere (10 GiB, or --mib), and what do a guest's writes see meanwhile.

    sudo bench/rebuild.py [--volumes 200] [--shards 10] [--mib 10240] > table.md"""

import json
import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "lib"))
from lab import LAB, MIB, Failure, check, note, run, wait_for  # noqa: E402

GIB = 1 << 30
SOCKET = "/run/cohort/nbd.sock"
ABSENT_S = 5
LOGGED = "does not answer", "change in one transaction"


def uri(volume):
    return f"nbd+unix:///{volume}?socket={SOCKET}"


def copied(lab, without):
    """Bytes copied so far, as the others count them: what `without` has counted dies with it."""
    return sum(lab.metric(n, "cohort_asan_resync_bytes_total") for n in lab.others(without))


class Cost:
    """CPU seconds of cohortd and of the database's server on the nodes but one, and transactions of the storage and cluster
    parts there, since it was made."""

    def __init__(self, lab, without):
        self.lab, self.nodes = lab, lab.others(without)
        self.begin, self.start = time.monotonic(), self.now()

    def now(self):
        total = {"cohortd": 0.0, "ovsdb-server": 0.0, "transactions": 0.0}
        for n in self.nodes:
            for line in self.lab.exec(n, "sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null").splitlines():
                name, rest = line[line.index("(") + 1:].rsplit(")", 1)
                if name in total:
                    total[name] += sum(map(int, rest.split()[11:13])) / os.sysconf("SC_CLK_TCK")
            total["transactions"] += self.lab.metric(n, "cohort_cdb_transactions_total")
        return total

    def figures(self):
        s, d = time.monotonic() - self.begin, {k: v - self.start[k] for k, v in self.now().items()}
        return f"{d['cohortd']:.1f} + {d['ovsdb-server']:.1f} CPU s (cohortd + ovsdb-server) in {s:.1f} s, {d['transactions']:.0f} transactions"


def resident_mib(lab, nodes):
    """The largest cohortd."""
    text = "".join(lab.exec(n, "sh", "-c", "grep -h VmRSS /proc/$(pgrep -o cohortd)/status") for n in nodes)
    return max(int(line.split()[1]) for line in text.splitlines()) / 1024


def log_lines(lab, node, text):
    log = os.path.join(lab.lab.dir, node, "log", "cohort", "cohortd.log")
    with open(log, encoding="utf-8", errors="replace") as f:
        return [line for line in f if text in line]


def stall(lab, node, victim, args):
    """Writes to every shard, before and just after the node's power is cut."""
    for i in range(args.volumes):
        lab.api("POST", "/volumes", {"name": f"s{i}", "size_bytes": args.shards * GIB, "shard_bytes": GIB, "replicas": 3})
    job = subprocess.Popen([LAB, "exec", "--id", lab.id, node, "python3", os.path.join(ROOT, "bench", "nbdload.py"), SOCKET, "s",
                            str(args.volumes), str(args.shards), str(GIB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        line = job.stdout.readline()
        check(line.startswith("primed"), f"nbdload ended early: {line}")
        note(f"{args.volumes} volumes of {args.shards} shards made in {line.split()[1]} s")

        def all_writes():
            job.stdin.write("go\n")
            job.stdin.flush()
            return json.loads(job.stdout.readline())

        quiet = all_writes()
        idle = Cost(lab, victim)
        time.sleep(5)  # what 2000 open shards cost while nothing happens
        idle = idle.figures()
        cost = Cost(lab, victim)
        before = {text: len(log_lines(lab, node, text)) for text in LOGGED}
        cut = time.monotonic()
        lab.kill(victim)
        hit = all_writes()
        done = {text: log_lines(lab, node, text)[before[text]:] for text in LOGGED}
        for line in sum((lines[:1] + lines[-3:] for lines in done.values()), []):
            note(f"log: {line.strip()}")
        late = hit["begin"] - cut
        check(hit["failed"] == 0, f"{hit['failed']} writes failed")
        check(hit["n"] == args.volumes * args.shards, f"{hit['n']} writes were answered")
        later = all_writes()
        cost, resident = cost.figures(), resident_mib(lab, lab.others(victim))
        job.stdin.close()
        job.wait(30)
    finally:
        if job.poll() is None:
            job.kill()
            job.wait()
    return {"writes at once": hit["n"], "before the power cut: all answered after s": f"{quiet['all']:.2f}",
            "after it: writes begin, s": f"{late:.2f}", "first answered, s": f"{late + hit['first']:.2f}", "half, s": f"{late + hit['half']:.2f}",
            "all, s": f"{late + hit['all']:.2f}", "shards in each transaction of many": ", ".join(re.search(r"of (\d+) shards", line)[1] for line in done[LOGGED[1]]), "next round: all, s": f"{later['all']:.2f}", "failed": hit["failed"],
            "cost before, idle": idle, "cost from the cut to the end of the next round": cost, "largest cohortd, MiB": f"{resident:.0f}"}


def fio(lab, node, seconds):
    return subprocess.Popen([LAB, "exec", "--id", lab.id, node, "fio", "--name=g", "--ioengine=nbd", f"--uri={uri('guest')}", "--rw=randwrite",
                             "--bs=4k", "--iodepth=4", "--size=64m", "--time_based", f"--runtime={seconds}", "--output-format=json"],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def figures(job, timeout):
    text, _ = job.communicate(timeout=timeout)
    check("{" in text, f"fio: {text[-500:]}")
    w = json.loads(text[text.index("{"):])["jobs"][0]["write"]
    return w["iops"], w["clat_ns"]["percentile"]["99.000000"] / 1e6


def most_copies(lab, node):
    """The other node whose loss means most work. (Placement follows the room on the disks, so it is not always the same one.)"""
    disks = lab.api("GET", "/disks")
    return max(lab.others(node), key=lambda n: sum(d["shard_copies"] for d in disks if d["node"] == n))


def rebuild(lab, node, args):
    lab.cli("cluster", "set", "repair_absent_s", str(ABSENT_S))
    lab.cli("cluster", "set", "rebuild_p99_ms", str(args.p99_ms))
    names = [f"d{i}" for i in range(4)]
    for n in names:
        lab.api("POST", "/volumes", {"name": n, "size_bytes": args.mib // len(names) * MIB, "replicas": 2})
        lab.exec(node, "fio", "--name=f", "--ioengine=nbd", f"--uri={uri(n)}", "--rw=write", "--bs=1m", "--iodepth=4",
                 f"--size={args.mib // len(names)}m", timeout=600)
    lab.api("POST", "/volumes", {"name": "guest", "size_bytes": 64 * MIB, "replicas": 2})
    iops, p99 = figures(fio(lab, node, 8), 60)
    victim = most_copies(lab, node)
    before, cost = copied(lab, victim), Cost(lab, victim)
    lab.kill(victim)
    lab.wait_node(victim, "dead")
    try:
        wait_for(lambda: copied(lab, victim) > before, 60, "copying to begin")
    except Failure:
        note(f"plan: {lab.api('GET', '/repair')}")
        for n in [*names, "guest"]:
            note(f"{n}: {lab.api('GET', f'/volumes/{n}')}")
        for d in lab.api("GET", "/disks"):
            note(f"disk {d}")
        raise
    start = time.monotonic()
    load = fio(lab, node, 3600)
    seen = []

    def whole_again():
        done = (copied(lab, victim) - before) / MIB
        seen.append(f"{time.monotonic() - start:.0f} s: {done:.0f} MiB, limit {lab.metric(node, 'cohort_asan_resync_limit_bytes') / MIB:.0f} MiB/s, "
                    f"p99 {lab.metric(node, 'cohort_asan_guest_p99_us') / 1000:.1f} ms")
        return all(lab.api("GET", f"/volumes/{n}")["health"] == "healthy" for n in [*names, "guest"])
    wait_for(whole_again, 1500, "all volumes to be healthy", 1)
    for line in seen:
        note(line)
    whole = time.monotonic() - start
    lab.exec(node, "pkill", "-INT", "-x", "fio")  # of this node: its process namespace ends there
    busy_iops, busy_p99 = figures(load, 60)
    mib = (copied(lab, victim) - before) / MIB
    return {"copied, MiB": f"{mib:.0f}", "in s": f"{whole:.1f}", "MiB/s": f"{mib / whole:.0f}",
            "guest 4 KiB write QD 4 before: IOPS": f"{iops:.0f}", "p99 ms before": f"{p99:.2f}",
            "IOPS during": f"{busy_iops:.0f}", "p99 ms during": f"{busy_p99:.2f}", "cost": cost.figures()}


def back(lab, victim, args):
    """Each shard was written to once meanwhile: 4 KiB, so one chunk of 64 KiB each is to be copied."""
    before, cost = copied(lab, victim), Cost(lab, victim)
    lab.start(victim)
    lab.wait_node(victim, "up")
    up = time.monotonic()

    def sick():
        return [v for v in lab.api("GET", "/volumes") if v["health"] != "healthy"]
    wait_for(lambda: not sick(), 600, "all volumes to be healthy", 0.5)
    return {"all shards in sync again after s": f"{time.monotonic() - up:.1f}",
            "copied, chunks of 64 KiB": f"{(copied(lab, victim) - before) / 65536:.0f}", "cost": cost.figures()}


def delete(lab):
    names, cost, begin = [v["name"] for v in lab.api("GET", "/volumes")], Cost(lab, ""), time.monotonic()
    for name in names:
        lab.api("DELETE", f"/volumes/{name}")
    asked = time.monotonic() - begin
    wait_for(lambda: not lab.api("GET", "/volumes"), 600, "the volumes to be gone", 0.5)
    return {"asked for in s": f"{asked:.1f}", "gone after s": f"{time.monotonic() - begin:.1f}", "cost": cost.figures()}


def table(title, row):
    print(f"\n**{title}**\n")
    for k, v in row.items():
        print(f"- {k}: {v}")
    sys.stdout.flush()


def scenario(lab, args):
    node, victim = lab.names[0], lab.names[-1]
    if args.volumes:
        table("A node with a copy of every shard loses its power", stall(lab, node, victim, args))
        table("It returns", back(lab, victim, args))
        table("The volumes are deleted", delete(lab))
    if args.mib:
        table("Its copies are made anew", rebuild(lab, node, args))


def arguments(p):
    p.add_argument("--volumes", type=int, default=200, help="0: only the rebuild")
    p.add_argument("--shards", type=int, default=10)
    p.add_argument("--mib", type=int, default=10240, help="of data, in copies on two of three nodes; 0: no rebuild")
    p.add_argument("--p99-ms", type=int, default=20, help="setting rebuild_p99_ms")


if __name__ == "__main__":
    run("rebuild-bench", scenario, nodes=3, limit_s=3000, arguments=arguments)
