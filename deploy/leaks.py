#!/usr/bin/env python3
"""Looks for what Cohort's tests and labs may have left on this machine: processes, network namespaces, mounts, interfaces,
control groups, files in memory. Prints each find; exit status 1 if there is any.

    deploy/leaks.py [--since FILE]      only what is neither in FILE nor of a lab named there
    deploy/leaks.py --record FILE       writes what there is now to FILE: it is somebody's and may stay"""

import argparse
import json
import os
import re
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from labkit import util  # noqa: E402
from labkit.state import LABS, NETNS_DIR, ROOT  # noqa: E402

BUILD = os.path.join(ROOT, "build") + "/"
PROGRAMS = tuple(BUILD + preset + "/" for preset in ("dev", "asan", "tsan", "release", "fuzz"))  # CMakePresets.json


def read(path):
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:
        return b""


def ancestors():
    pid, mine = os.getpid(), set()
    while pid > 1:
        mine.add(pid)
        pid = int(read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])
    return mine


def processes(ignored):
    """Marked by a lab, or running a program of one of our builds. Zombies have ended; their parent just has not asked yet."""
    mine = ancestors()
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if pid in mine or util.start_ticks(pid) is None:
            continue
        env = read(f"/proc/{pid}/environ").split(b"\0")
        lab = next((e[len(b"COHORT_LAB="):].decode() for e in env if e.startswith(b"COHORT_LAB=")), None)
        words = [w.decode(errors="replace") for w in read(f"/proc/{pid}/cmdline").split(b"\0")]
        try:
            program = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            program = ""
        if lab in ignored:
            continue
        if lab is not None or program.startswith(PROGRAMS):
            yield f"process {pid}: {' '.join(words)[:120]}"


def netns_names():
    return [n for n in (os.listdir(NETNS_DIR) if os.path.isdir(NETNS_DIR) else []) if n.startswith("cohort-")]


def labs():
    """Labs of this tree, and those of other trees, known by the names of their namespaces."""
    mine = {lab for lab in (os.listdir(LABS) if os.path.isdir(LABS) else []) if not lab.startswith(".")}
    return mine | {m[1] for m in (re.fullmatch(r"cohort-(.+)-[a-z0-9]+", n) for n in netns_names()) if m}


def names(ignored):
    for name in netns_names():
        if not any(name.startswith(f"cohort-{i}-") for i in ignored):
            yield f"network namespace {NETNS_DIR}/{name}"
    for line in read("/proc/self/mounts").decode(errors="replace").splitlines():
        if "cohort" in line or BUILD in line:
            yield f"mount {line.split()[1]}"
    for name in os.listdir("/sys/class/net"):
        if name.startswith(("cohort", "vh-", "br-phy", "br-int", "ovs-")):
            yield f"interface {name}"
    for base, dirs, _ in os.walk("/sys/fs/cgroup"):
        for d in dirs:
            if d.startswith("cohort") and d not in {f"cohort-lab-{i}" for i in ignored}:
                yield f"control group {os.path.join(base, d)}"
        dirs[:] = [d for d in dirs if not d.startswith("cohort")]
        if base.count("/") > 5:
            dirs.clear()
    for name in os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []:
        if name.startswith("cohort-"):
            yield f"memory /dev/shm/{name}"
    for path in ("/run/cohort", "/var/lib/cohort", "/etc/cohort"):
        if os.path.exists(path) and not os.path.exists("/lib/systemd/system/cohortd.service"):
            yield f"{path} (no cohort package is installed)"
    for lab in os.listdir(LABS) if os.path.isdir(LABS) else []:
        if not lab.startswith(".") and lab not in ignored:
            yield f"lab {os.path.join(LABS, lab)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--since", metavar="FILE")
    parser.add_argument("--record", metavar="FILE")
    args = parser.parse_args()
    if args.record:
        with open(args.record, "w", encoding="utf-8") as f:
            json.dump({"labs": sorted(labs()), "found": list(processes(set())) + list(names(set()))}, f, indent=1)
        return
    before = {"labs": [], "found": []}
    if args.since:
        with open(args.since, encoding="utf-8") as f:
            before = json.load(f)
    ignored, known = set(before["labs"]), set(before["found"])
    found = [f for f in list(processes(ignored)) + list(names(ignored)) if f not in known]
    print("\n".join(f"left behind: {f}" for f in found) if found else "no process, namespace or mount of Cohort is left")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
