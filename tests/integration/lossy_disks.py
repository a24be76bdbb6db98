#!/usr/bin/env python3
"""The lossy disks of the lab (deploy/lossyfs) themselves: what was synced survives a power cut unharmed, of the rest every
sector is old or new, and over some cuts something of every kind must be seen lost, else the layer proves nothing. Then the
faults on command, and what the store needs: io_uring with O_DIRECT, holes, locks."""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import Failure, LabError, TestLab, check, note, skip, state, util  # noqa: E402

SIZE, SECTOR = 256 << 10, 512
KEEP_SIZE, PUNCH_HOLE = 1, 2
LOSSES = ("sectors", "a growth", "a truncate", "a hole", "a creation", "a rename", "an unlink")


def content(seed, name):
    return random.Random(f"{seed} {name}").randbytes(SIZE)


def dirsync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


# ---- inside the node ----

def put(path, data, flags=0, sync=False, at=0):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    if flags & os.O_DIRECT:
        buffer = mmap.mmap(-1, len(data))
        buffer.write(data)
        check(os.pwritev(fd, [buffer], at) == len(data), "short write")
    else:
        check(os.pwrite(fd, data, at) == len(data), "short write")
    if sync:
        os.fsync(fd)
    got = os.pread(fd, len(data), at) if not flags & os.O_DIRECT else data
    check(got == data, f"{path} reads differently from what was just written")
    os.close(fd)


def write(d, seed):
    old, new = content(seed, "old"), content(seed, "new")
    for name in ("synced", "torn", "grown", "cut", "holed", "moved", "gone", "kept"):
        put(f"{d}/{name}", old, sync=True)
    os.mkdir(f"{d}/sub")
    put(f"{d}/sub/file", old, sync=True)
    dirsync(f"{d}/sub")
    put(f"{d}/dsync", old, os.O_DIRECT | os.O_DSYNC)
    dirsync(d)
    put(f"{d}/dsync", new, os.O_DIRECT | os.O_DSYNC)
    put(f"{d}/grown-dsync", old, sync=True)
    put(f"{d}/grown-dsync", new, os.O_DSYNC, at=SIZE)
    os.rename(f"{d}/kept", f"{d}/kept-moved")
    dirsync(d)
    # Nothing from here on is promised.
    put(f"{d}/torn", new)
    put(f"{d}/torn", new[:4096], os.O_DIRECT)
    put(f"{d}/grown", new, at=SIZE)
    os.truncate(f"{d}/cut", 5000)
    hole(f"{d}/holed", 64 << 10, 128 << 10)
    put(f"{d}/created", new, sync=True)  # its data, not its name
    os.rename(f"{d}/moved", f"{d}/moved-away")
    os.unlink(f"{d}/gone")
    check(sorted(os.listdir(d)) == sorted("synced torn grown cut holed moved-away kept-moved sub dsync grown-dsync created".split()),
          f"the directory shows {os.listdir(d)}")


def hole(path, offset, length):
    """By the system call: the program fallocate(1) syncs at its end."""
    fd = os.open(path, os.O_RDWR)
    rc = ctypes.CDLL(None, use_errno=True).fallocate(fd, PUNCH_HOLE | KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(length))
    check(rc == 0, f"punch a hole: {os.strerror(ctypes.get_errno())}")
    os.close(fd)
    with open(path, "rb") as f:
        f.seek(offset)
        check(f.read(length) == bytes(length), "a hole does not read as zeroes")


def abilities(d):
    fd = os.open(f"{d}/locked", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    other = os.open(f"{d}/locked", os.O_RDWR)
    for lock in (lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB), lambda: os.pwrite(direct, b"x" * 100, 0)):
        direct = os.open(f"{d}/locked", os.O_RDWR | os.O_DIRECT)
        try:
            lock()
        except OSError as e:
            check(e.errno in (errno.EWOULDBLOCK, errno.EINVAL), f"{e}")
            continue
        check(False, "a second lock, or a misaligned O_DIRECT write, was accepted")
    os.posix_fallocate(fd, 0, 1 << 20)
    check(os.fstat(fd).st_size == 1 << 20 and os.fstat(fd).st_blocks * 512 >= 1 << 20, "fallocate reserved nothing")


# ---- outside, on the directory below ----

def lower(path, name):
    try:
        with open(os.path.join(path, name), "rb") as f:
            return f.read()
    except FileNotFoundError:
        return None


def mixture(got, old, new, what):
    """Every sector is the old or the new one; the number of old ones."""
    lost = 0
    for at in range(0, max(len(got), len(new)), SECTOR):
        g, o, n = (x[at:at + SECTOR] for x in (got, old, new))
        check(g in (o, n), f"{what}: the sector at {at} is neither old nor new")
        lost += g != n
    return lost


def judge(path, seed):
    """What was lost of what was not promised; fails if more was."""
    old, new = content(seed, "old"), content(seed, "new")
    for name, want in (("synced", old), ("sub/file", old), ("dsync", new), ("kept-moved", old), ("grown-dsync", old + new)):
        check(lower(path, name) == want, f"{name} was synced and is lost or damaged")
    check(lower(path, "kept") is None, "a synced rename was undone")
    lost = set()
    if mixture(lower(path, "torn"), old, new, "torn"):
        lost.add("sectors")
    grown = lower(path, "grown")
    check(grown[:SIZE] == old, "an append damaged what was there")
    mixture(grown[SIZE:], bytes(len(grown) - SIZE), new[:len(grown) - SIZE], "grown")
    if len(grown) < 2 * SIZE:
        lost.add("a growth")
    truncated = lower(path, "cut")
    check(truncated in (old, old[:5000]), "a truncate was done by half")
    if truncated == old:
        lost.add("a truncate")
    if mixture(lower(path, "holed"), old, old[:64 << 10] + bytes(128 << 10) + old[192 << 10:], "holed"):
        lost.add("a hole")
    # Names change in order, so: if a later one happened, the earlier ones did.
    created, moved, gone = lower(path, "created"), lower(path, "moved-away"), lower(path, "gone")
    check(created in (None, new), "data that was synced before its name are damaged")
    check((moved is None) == (lower(path, "moved") is not None), "a rename was done by half")
    check(not (moved and created is None) and not (gone is None and moved is None), "names changed out of order")
    lost |= {what for what, undone in (("a creation", created is None), ("a rename", moved is None), ("an unlink", gone is not None))
             if undone}
    return lost


def inside(lab, what, *args, check_status=True):
    return lab.exec("n1", sys.executable, os.path.abspath(__file__), "--inside", what, *args, check_status=check_status)


def cuts(lab, below, rounds):
    """Alternately a cut of a running node and of one whose disk is stalled."""
    seen = set()
    for i in range(rounds):
        name = f"round{i}"
        inside(lab, "write", f"/srv/capacity/{name}", str(i))
        if i % 2:
            lab.command("disk", "n1", "stall")
        lab.kill("n1")
        lost = judge(os.path.join(below, "capacity", name), i)
        seen |= lost
        lab.start("n1")
    note(f"{rounds} power cuts: synced data intact each time; lost in at least one: {', '.join(sorted(seen))}")
    check(seen == set(LOSSES), f"never lost: {set(LOSSES) - seen}: these disks forget too little to test anything")


def faults(lab):
    def dd(*more):
        return lab.exec("n1", "dd", "if=/dev/zero", "of=/srv/fast/dd", "bs=64K", "count=16", *more, check_status=False)

    def status():
        return {d["name"]: d for d in json.loads(lab.command("disk", "n1", "status"))["disks"]}["fast"]

    def attempt(*argv):
        node = util.run([os.path.join(state.ROOT, "deploy/lab"), "exec", "--id", lab.id, "n1", *argv], check=False)
        return node.returncode, node.stderr

    dd()
    check(status()["unsynced_bytes"] > 0, "nothing counts as unsynced after a write")
    attempt("sync", "/srv/fast/dd")
    check(status()["unsynced_bytes"] == 0, "something counts as unsynced after fsync")
    lab.command("disk", "n1", "eio", "fast")
    code, said = attempt("dd", "if=/dev/zero", "of=/srv/fast/dd", "bs=4K", "count=1", "conv=notrunc")
    check(code != 0 and "Input/output error" in said, f"eio: {code} {said}")
    check(attempt("touch", "/srv/capacity/fine")[0] == 0, "a fault of one disk hit the other")
    lab.command("disk", "n1", "ok")
    lab.command("disk", "n1", "full", "fast")
    check(attempt("dd", "if=/dev/zero", "of=/srv/fast/dd", "bs=4K", "count=1", "conv=notrunc")[0] == 0, "a full disk refuses overwriting")
    code, said = attempt("dd", "if=/dev/zero", "of=/srv/fast/dd", "bs=64K", "count=16", "oflag=append", "conv=notrunc")
    check(code != 0 and "No space left" in said, f"full: {code} {said}")
    lab.command("disk", "n1", "ok")
    lab.command("disk", "n1", "slow", "200", "fast")
    started = time.monotonic()
    attempt("dd", "if=/dev/zero", "of=/srv/fast/dd", "bs=4K", "count=1", "conv=notrunc")
    check(time.monotonic() - started > 0.4, "slow: two requests were not slowed down")
    lab.command("disk", "n1", "ok")
    for bad in (["disk", "n1", "slow"], ["disk", "n1", "slow", "x"], ["disk", "n1", "eio", "nowhere"], ["disk", "n1", "size", "0"]):
        try:
            lab.command(*bad)
        except LabError:
            continue
        check(False, f"lab {' '.join(bad)} was accepted")
    note("faults: eio, full, slow, ok do what they say and only on their disk")


def uring(lab):
    said = lab.exec("n1", "fio", "--name=v", "--filename=/srv/capacity/fio", "--size=8M", "--rw=randwrite", "--bs=4k-64k",
                    "--ioengine=io_uring", "--iodepth=16", "--direct=1", "--verify=crc32c", "--fsync=32", "--minimal")
    note(f"fio over io_uring with O_DIRECT: verified ({len(said)} bytes of report)")


def main():
    if os.geteuid() != 0:
        skip("needs root for namespaces")
    if not os.path.exists("/dev/fuse"):
        skip("needs /dev/fuse")
    build = os.environ.get("COHORT_BUILD", os.path.join(state.ROOT, "build", "dev"))
    lab = TestLab("lossy", 1, build, ["--no-cluster", "--daemon", os.path.join(state.ROOT, "tests/lib/idle"), "--lossy", "--seed", "1"])
    try:
        lab.up()
        inside(lab, "abilities", "/srv/fast")
        uring(lab)
        faults(lab)
        cuts(lab, os.path.join(lab.lab.node_dir(lab.node("n1")), "disks"), 8)
    finally:
        lab.down()
    check(not lab.lab.strays(), f"processes are left: {lab.lab.strays()}")
    note("PASS")


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--inside"]:
            if sys.argv[2] == "write":
                os.mkdir(sys.argv[3])
                dirsync(os.path.dirname(sys.argv[3]))
                write(sys.argv[3], int(sys.argv[4]))
            else:
                abilities(sys.argv[3])
        else:
            main()
    except (Failure, LabError, OSError) as e:
        note(f"FAIL: {e}")
        sys.exit(1)
