#!/usr/bin/env python3
"""Cohort beside its peers on this machine, in one run: raw files, Ceph RBD, GlusterFS, QEMU quorum, Cohort with one and three
copies; the same fio workloads, CPU of servers and client, and the ratios that docs/performance.md speaks of.

    sudo bench/compare.py [--seconds 8] [--image-mib 4096] [--peers raw,ceph,gluster,qemu-quorum,cohort] > table.md

Each peer is set up, filled, measured and taken down before the next (peers/*.sh; their heads name the Debian packages).
A peer whose packages are missing is named and left out."""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
PEERS = {"raw": "fio", "ceph": "ceph-osd", "gluster": "glusterd", "qemu-quorum": "qemu-storage-daemon", "cohort": "fio"}
WORKLOADS = {
    "randwrite_qd1": "4 KiB random write QD 1", "randwrite_qd32": "4 KiB random write QD 32",
    "randread_qd1": "4 KiB random read QD 1", "randread_qd32": "4 KiB random read QD 32",
    "seqwrite_1M_qd8": "1 MiB sequential write QD 8", "seqread_1M_qd8": "1 MiB sequential read QD 8",
    "randwrite_qd1_fsync": "4 KiB random write + flush QD 1",
}
# what is compared, workload, figure, with which peer, divided by, aim
AIMS = [
    ("3 copies, write QD 1 / Ceph", "randwrite_qd1", "iops", "ceph3", 1, ">= 8"),
    ("3 copies, write QD 1 / one of three raw", "randwrite_qd1", "iops", "raw3", 3, ">= 0.6"),
    ("3 copies, write QD 32 / Ceph", "randwrite_qd32", "iops", "ceph3", 1, ">= 10"),
    ("3 copies, write QD 32 / one of three raw", "randwrite_qd32", "iops", "raw3", 3, ">= 0.5"),
    ("3 copies, read QD 1 / Ceph", "randread_qd1", "iops", "ceph3", 1, ">= 4"),
    ("3 copies, read QD 32 / Ceph", "randread_qd32", "iops", "ceph3", 1, ">= 4"),
    ("3 copies, sequential write / Ceph", "seqwrite_1M_qd8", "mbps", "ceph3", 1, ">= 2"),
    ("3 copies, sequential read / Ceph", "seqread_1M_qd8", "mbps", "ceph3", 1, ">= 1.5"),
    ("3 copies, CPU per write QD 1 / Ceph", "randwrite_qd1", "cpu_us", "ceph3", 1, "<= 0.067"),
    ("3 copies, CPU per write QD 32 / Ceph", "randwrite_qd32", "cpu_us", "ceph3", 1, "<= 0.067"),
]


def note(text):
    print(f"# {text}", file=sys.stderr, flush=True)


def parse(line):
    """A line of a peer's `bench`: see common.sh for the columns."""
    f = line.split()
    if len(f) < 10 or f[2] == "FAILED":
        note(f"no figure: {line}")
        return None
    names = ("iops", "mbps", "p50_us", "p99_us", "server_s", "client_s", "cpu_us", "other_cores")
    return f[0], f[1], dict(zip(names, map(float, f[2:10])))


def measure(peer, args, table):
    work = tempfile.mkdtemp(prefix=f"{peer}-", dir=args.dir)
    env = dict(os.environ, WORKDIR=work, IMG_MB=str(args.image_mib), SECS=str(args.seconds), SIZES="3", TRANSPORT="unix",
               WL=" ".join(args.workloads.split(",")))
    script = os.path.join(HERE, "peers", f"{peer}.sh")
    note(f"{peer}: setting up")
    try:
        subprocess.run([script, "up"], env=env, stdout=subprocess.DEVNULL, check=True)
        with subprocess.Popen([script, "bench"], env=env, stdout=subprocess.PIPE, text=True) as run:
            for line in run.stdout:
                note(line.strip())
                got = parse(line)
                if got:
                    table.setdefault(got[1], {})[got[0]] = got[2]
    except subprocess.CalledProcessError as e:
        note(f"{peer}: left out, its set-up failed with status {e.returncode}")
    finally:
        subprocess.run([script, "down"], env=env, check=False)


def show(table, args):
    with open("/proc/cpuinfo") as f:
        cpu = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "?")
    fio = subprocess.run(["fio", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    print(f"{os.cpu_count()} x {cpu}, Linux {platform.release()}, {fio}; image {args.image_mib} MiB, {args.seconds} s per figure\n")
    for wl, row in table.items():
        print(f"### {WORKLOADS.get(wl, wl)}\n\n| | IOPS | MB/s | p50 µs | p99 µs | CPU s per 100k I/O | other cores busy |\n|---|---|---|---|---|---|---|")
        for peer, f in row.items():
            print(f"| {peer} | {f['iops']:.0f} | {f['mbps']:.1f} | {f['p50_us']:.0f} | {f['p99_us']:.0f} | {f['cpu_us'] / 10:.1f} | {f['other_cores']:.2f} |")
        print()
    print("| ratio | is | aim |\n|---|---|---|")
    for text, wl, figure, peer, divisor, aim in AIMS:
        row = table.get(wl, {})
        if "cohort3" in row and peer in row and row[peer][figure]:
            print(f"| {text} | {row['cohort3'][figure] / (row[peer][figure] / divisor):.2f} | {aim} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--image-mib", type=int, default=4096)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--dir", default=os.path.join(os.path.dirname(HERE), "build"), help="where the data lies; a real disk")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("compare: needs root (the lab's namespaces)")
    os.makedirs(args.dir, exist_ok=True)
    table = {}
    for peer in args.peers.split(","):
        if peer not in PEERS:
            sys.exit(f"compare: no peer {peer!r}; there are {', '.join(PEERS)}")
        if not shutil.which(PEERS[peer]):
            note(f"{peer}: left out, {PEERS[peer]} is not installed (packages: head of peers/{peer}.sh)")
            continue
        measure(peer, args, table)
    show(table, args)


if __name__ == "__main__":
    main()
