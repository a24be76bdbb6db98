#!/usr/bin/env python3
"""Storage figures on a lab: the raw disk (io_uring, O_DIRECT|O_DSYNC) and volumes with one and three copies through NBD, the same
fio jobs in one run; then the memory of each daemon.

    sudo bench/storage.py [--seconds 10] [--rounds 3] > table.md"""

import json
import os
import platform
import statistics
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "lib"))
from lab import MIB, check, note, run, util  # noqa: E402

SIZE_MIB = 512
# name, fio options, figure of interest
JOBS = [
    ("4 KiB random write, QD 1", ["--rw=randwrite", "--bs=4k", "--iodepth=1"], "write"),
    ("4 KiB random write, QD 32", ["--rw=randwrite", "--bs=4k", "--iodepth=32"], "write"),
    ("4 KiB random read, QD 1", ["--rw=randread", "--bs=4k", "--iodepth=1"], "read"),
    ("4 KiB random read, QD 32", ["--rw=randread", "--bs=4k", "--iodepth=32"], "read"),
    ("1 MiB sequential write, QD 8", ["--rw=write", "--bs=1m", "--iodepth=8"], "write"),
    ("1 MiB sequential read, QD 8", ["--rw=read", "--bs=1m", "--iodepth=8"], "read"),
]


def targets():
    yield "raw disk", ["--ioengine=io_uring", "--direct=1", "--sync=dsync", "--filename=/srv/bench.raw"]
    for replicas in (1, 3):
        yield f"volume, {replicas} cop{'y' if replicas == 1 else 'ies'}", [
            "--ioengine=nbd", f"--uri=nbd+unix:///bench{replicas}?socket=/run/cohort/nbd.sock"]


def fio(lab, node, options, seconds):
    text = lab.exec(node, "fio", "--name=b", f"--size={SIZE_MIB}m", "--output-format=json", "--randrepeat=0", "--norandommap",
                    "--group_reporting", *options, *(["--time_based", f"--runtime={seconds}"] if seconds else []), timeout=600)
    return json.loads(text[text.index("{"):])["jobs"][0]


def figure(result):
    return {"iops": result["iops"], "mib_s": result["bw_bytes"] / MIB, "p50_us": result["clat_ns"]["percentile"]["50.000000"] / 1000,
            "p99_us": result["clat_ns"]["percentile"]["99.000000"] / 1000}


def median(figures):
    return {k: statistics.median(f[k] for f in figures) for k in figures[0]}


def measure(lab, node, args):
    for replicas in (1, 3):
        lab.api("POST", "/volumes", {"name": f"bench{replicas}", "size_bytes": SIZE_MIB * MIB, "replicas": replicas})
    for name, options in targets():  # every block is there before anything is measured
        note(f"filling: {name}")
        fio(lab, node, [*options, "--rw=write", "--bs=1m", "--iodepth=8"], None)
    table = {}
    for round_number in range(args.rounds):  # targets in turn, so that a noisy minute meets all of them
        for job, job_options, side in JOBS:
            for name, options in targets():
                got = figure(fio(lab, node, [*options, *job_options], args.seconds)[side])
                table.setdefault(job, {}).setdefault(name, []).append(got)
        note(f"round {round_number + 1} of {args.rounds} done")
    return {job: {name: median(f) for name, f in row.items()} for job, row in table.items()}


def cell(f):
    rate = f"{f['mib_s']:.0f} MiB/s" if f["mib_s"] > f["iops"] / 2 else f"{f['iops']:.0f} IOPS"
    return f"{rate}, p50 {f['p50_us']:.0f} µs, p99 {f['p99_us']:.0f} µs"


def memory(lab):
    """MiB of proportional set size: pages that several daemons share count once."""
    for comm in ("cohortd", "ovsdb-server", "ovs-vswitchd", "ovn-controller", "ovn-northd"):
        for node in lab.names:
            total = 0
            for pid in lab.processes(node, comm):
                with open(f"/proc/{pid}/smaps_rollup") as f:
                    total += sum(int(line.split()[1]) for line in f if line.startswith("Pss:"))
            yield comm, node, total / 1024


def scenario(lab, args):
    table = measure(lab, lab.names[0], args)
    names = [name for name, _ in targets()]
    check(all(len(row) == len(names) for row in table.values()), "a figure is missing")
    with open("/proc/cpuinfo") as f:
        cpu = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "?")
    print(f"\n{os.cpu_count()} × {cpu}, Linux {platform.release()}; median of {args.rounds} × {args.seconds} s; "
          f"{util.run(['fio', '--version']).stdout.strip()}\n")
    print("| | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for job, row in table.items():
        print(f"| {job} | " + " | ".join(cell(row[n]) for n in names) + " |")
    print("\n| memory (PSS, MiB) | " + " | ".join(lab.names) + " |\n|---|" + "---|" * len(lab.names))
    sizes = {}
    for comm, node, mib in memory(lab):
        sizes.setdefault(comm, {})[node] = mib
    for comm, row in sizes.items():
        print(f"| {comm} | " + " | ".join(f"{row[n]:.0f}" for n in lab.names) + " |")


def arguments(parser):
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)


if __name__ == "__main__":
    run("bench", scenario, limit_s=3600, arguments=arguments)
