#!/usr/bin/env python3
"""What one small request costs: 4 KiB random writes and reads over NBD to a volume with one and with three copies, all engines in
one process (cohort-bench-node). Per request: CPU of that process (user and system), system calls, context switches, and how
often it wrote to the disk; fio's own CPU apart. Several builds are measured by turns, so that noise meets all of them.

    bench/request.py [--seconds 5] [--rounds 3] [--size-mib 512] BUILD [BUILD…]"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

JOBS = {"write QD 1": ("randwrite", 1), "write QD 32": ("randwrite", 32), "read QD 1": ("randread", 1), "read QD 32": ("randread", 32)}
EVENTS = "raw_syscalls:sys_enter,context-switches"

def schedstat_us(pid):
    """CPU time of all threads, in ns precision; threads that have ended are not in it, and storage has lasting ones."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as f:
            total += int(f.read().split()[0])
    return total / 1000


def fio(sock, rw, depth, args, seconds):
    job = ["fio", "--name=b", "--ioengine=nbd", f"--uri=nbd+unix:///bench?socket={sock}", f"--size={args.size_mib}m", "--output-format=json",
           "--randrepeat=0", "--norandommap", f"--rw={rw}", f"--iodepth={depth}", *(["--time_based", f"--runtime={seconds}", "--bs=4k"] if seconds else ["--bs=1m"])]
    text = subprocess.run(job, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(text[text.index("{"):])["jobs"][0]


class Node:
    def __init__(self, build, copies, args):
        self.dir = tempfile.mkdtemp(prefix="request-bench-", dir=args.dir)
        self.sock = os.path.join(self.dir, "nbd.sock")
        self.proc = subprocess.Popen([os.path.join(build, "storage/asan/cohort-bench-node"), "--dir", self.dir, "--size", str(args.size_mib << 20),
                                      "--copies", str(copies), "--nbd", self.sock], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if "ready" not in self.proc.stdout.readline():
            raise SystemExit("cohort-bench-node did not start")
        fio(self.sock, "write", 4, args, None)

    def measure(self, job, args):
        pid = self.proc.pid
        stat = None
        if shutil.which("perf"):
            stat = subprocess.Popen(["perf", "stat", "-x,", "-e", EVENTS, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
            time.sleep(0.3)  # perf attaches; nothing tells when it has
        before = schedstat_us(pid)
        result = fio(self.sock, *JOBS[job], args, args.seconds)
        cpu = schedstat_us(pid) - before
        side = result["write" if "write" in job else "read"]
        n = side["total_ios"]
        f = {"iops": side["iops"], "p50": side["clat_ns"]["percentile"]["50.000000"] / 1000,
             "p99": side["clat_ns"]["percentile"]["99.000000"] / 1000, "cpu": cpu / n}
        if stat:
            stat.send_signal(2)
            for line in stat.communicate()[1].splitlines():
                v = line.split(",")
                if len(v) > 2 and v[0].isdigit():
                    f["calls" if "sys_enter" in v[2] else "switches"] = int(v[0]) / n
        return f

    def close(self):
        self.proc.terminate()
        self.proc.wait(30)
        shutil.rmtree(self.dir, ignore_errors=True)


def cell(figures):
    m = {k: statistics.median(f[k] for f in figures) for k in figures[0]}
    counts = f", {m['calls']:.1f} calls, {m['switches']:.1f} switches" if "calls" in m else ""
    return f"{m['iops']:.0f} IOPS, p50 {m['p50']:.0f}, p99 {m['p99']:.0f} µs, CPU {m['cpu']:.0f} µs{counts}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("build", nargs="+")
    p.add_argument("--dir", default=".", help="on the disk to be measured")
    p.add_argument("--seconds", type=int, default=5)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--size-mib", type=int, default=512)
    p.add_argument("--copies", default="1,3")
    p.add_argument("--jobs", default=",".join(JOBS))
    args = p.parse_args()
    jobs = args.jobs.split(",")
    busy = os.getloadavg()[0]
    table = {}
    for copies in map(int, args.copies.split(",")):
        nodes = []
        try:
            for build in args.build:
                nodes.append((build, Node(build, copies, args)))
            for _ in range(args.rounds):
                for job in jobs:
                    for build, node in nodes:
                        table.setdefault((copies, job), {}).setdefault(build, []).append(node.measure(job, args))
        finally:
            for _, node in nodes:
                node.close()
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, load {busy:.1f} before; median of {args.rounds} x {args.seconds} s, per request\n")
    print("| copies, 4 KiB random | " + " | ".join(args.build) + " |\n|---|" + "---|" * len(args.build))
    for (copies, job), row in table.items():
        print(f"| {copies}, {job} | " + " | ".join(cell(row[b]) for b in args.build) + " |")


if __name__ == "__main__":
    sys.exit(main())
