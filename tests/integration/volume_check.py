#!/usr/bin/env python3
"""Damage on disks, in a cluster that runs: bits of one copy flip and a check repairs them; the copy that serves reads is damaged
and the reader does not notice; all copies of a block are damaged and it is refused, never served, and named; blocks of the last copy are damaged and the administrator
gives them up; whole structures of
a disk are damaged while its node is off (seeded), and the node comes back: the data stay right, the volume becomes healthy again or
the disk is refused with the volumes it held, and `cohort disk replace` brings it back. Limits (QoS) are measured, and the
plaintext of an encrypted volume is searched for on all disks.

Damage on a running node is done to disks at rest: the journal empty, so that the extents are what is read and nothing moves them,
and the scrub's round of the day over, so that it repairs nothing before the test looks. `--seed N --rounds N` for long runs."""

import json
import os
import random
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import MIB, check, note, run, wait_for  # noqa: E402

SIZE = 64 * MIB
BLOCK = 4096


def uri(volume):
    return f"nbd+unix:///{volume}?socket=/run/cohort/nbd.sock"


def capacity(lab, node):
    return os.path.join(lab.lab.dir, node, "disks", "capacity")


def fast(lab, node):
    return os.path.join(lab.lab.dir, node, "disks", "fast")


def find_blocks(lab, node, needle):
    """Offsets in the node's extent file at which the 4 KiB block lies."""
    path = os.path.join(capacity(lab, node), "extents.dat")
    with open(path, "rb") as f:
        data = f.read()
    found, at = [], data.find(needle)
    while at >= 0:
        found.append(at)
        at = data.find(needle, at + BLOCK)
    return path, found


def flip(path, offset, rng):
    with open(path, "r+b") as f:
        f.seek(offset)
        old = f.read(1)
        f.seek(offset)
        f.write(bytes([old[0] ^ 1 << rng.randrange(8)]))
        f.flush()
        os.fsync(f.fileno())


def at_rest(lab):
    """All is in the extents and nobody but the test looks at it."""
    def scrubbed(node):
        """The file says where the scrub is: version, beginning of the round, volume, shard, offset; no volume: the round is over."""
        with open(os.path.join(capacity(lab, node), "scrub")) as f:
            _, _, volume, shard, offset = f.read().split()
        return not volume.strip("0-") and (shard, offset) == ("0", "0")

    def resting(node):
        return all(d["dirty_bytes"] == 0 for d in lab.api_on(node, "GET", "/debug/asan")["disks"]) and scrubbed(node)
    for node in lab.names:
        wait_for(lambda: resting(node), 60, f"{node} to destage and to end its scrub", 0.2)


def damage(lab, nodes, rng, source, n_blocks):
    """Flips a bit of each of n_blocks blocks, on each of the nodes."""
    at_rest(lab)
    with open(source, "rb") as f:
        data = f.read()
    blocks = rng.sample(range(len(data) // BLOCK), n_blocks)
    places = []
    for b in blocks:
        needle = data[b * BLOCK:(b + 1) * BLOCK]
        for node in nodes:
            path, found = find_blocks(lab, node, needle)
            check(found, f"block {b} is not in the extents of {node}")
            places += [(path, at) for at in found]
    for path, at in places:
        flip(path, at + rng.randrange(BLOCK), rng)
    return blocks


def run_check(lab, volume):
    """The result of a check that began after this call (any node may answer, and one may be behind the others)."""
    asked = int(time.time() * 1000)

    def ask():
        row = lab.api("GET", f"/volumes/{volume}")["check"]
        if row["asked_ms"] < asked and not row["wanted"]:
            lab.command("cohort", "volume", "check", volume, "--wait", "--timeout", "60s", check_status=False)  # 4: unrepairable
        return row if row["asked_ms"] >= asked and not row["wanted"] else None

    return wait_for(ask, 90, f"the check of {volume}", 0.2)


def equal(lab, node, source, volume):
    lab.exec(node, "qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri(volume), timeout=60)


def bits(lab, rng, node, source):
    result = run_check(lab, "v")
    check(result["bad_bytes"] == 0 and result["checked_bytes"] == SIZE, f"a sound volume is not found sound: {result}")
    bad = lab.others(node)[0]
    damage(lab, [bad], rng, source, 7)
    result = run_check(lab, "v")
    check(result["bad_bytes"] == 7 * BLOCK == result["repaired_bytes"], f"7 blocks were damaged on {bad}; the check says {result}")
    check(result["unrepairable_bytes"] == 0, f"{result}")
    result = run_check(lab, "v")
    check(result["bad_bytes"] == 0, f"the repair did not hold: {result}")
    events = [e["message"] for e in lab.api("GET", "/events") if e["object"] == "volume v"]
    check(any("28 KiB repaired" in m for m in events), f"no event tells of the repair: {events}")
    note(f"7 blocks damaged on {bad}: found, repaired, clean")


def served_copy(lab, rng, node, source):
    damage(lab, [node], rng, source, 5)
    equal(lab, node, source, "v")
    result = run_check(lab, "v")
    check(result["unrepairable_bytes"] == 0, f"{result}")
    note("the copy that is read was damaged: the reader got the right bytes")


def all_copies(lab, rng, node, source):
    blocks = damage(lab, lab.names, rng, source, 1)
    offset = blocks[0] * BLOCK
    result = run_check(lab, "v")
    check(result["unrepairable_bytes"] == BLOCK and result["unrepairable"] == [f"{offset}+{BLOCK}"], f"expected {offset}+{BLOCK} lost: {result}")
    text = lab.exec(node, "qemu-io", "-f", "raw", "-c", f"read {offset} {BLOCK}", uri("v"), check_status=False)
    check("failed" in text, f"a block without a good copy was served: {text}")
    with open(source, "rb") as f:
        f.seek(offset)
        good = f.read(BLOCK)
    patch = os.path.join(os.path.dirname(source), "patch")
    with open(patch, "wb") as f:
        f.write(good)
    lab.exec(node, "qemu-io", "-f", "raw", "-c", f"write -s {patch} {offset} {BLOCK}", uri("v"))
    equal(lab, node, source, "v")
    result = run_check(lab, "v")
    check(result["bad_bytes"] == 0, f"{result}")
    note(f"offset {offset} damaged on all three: refused, named by the check; written again it is whole")


def salvage(lab, node, volume, path):
    """Reads all that can be read; what cannot is zero in the result."""
    lab.exec(node, "qemu-img", "convert", "--salvage", "-f", "raw", "-O", "raw", uri(volume), path, timeout=60)
    with open(path, "rb") as f:
        return f.read(8 * MIB)


def last_copy(lab, rng, node, scratch):
    """Two of three disks are lost, and blocks of the third are damaged: said, given up, refused to readers, healed by writing."""
    lab.api("POST", "/volumes", {"name": "last", "size_bytes": 16 * MIB, "replicas": 3})
    source, out, patch = (os.path.join(scratch, f) for f in ("last", "salvaged", "patch"))
    data = bytearray(rng.randbytes(8 * MIB))
    with open(source, "wb") as f:
        f.write(data)
    lab.exec(node, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri("last"), timeout=60)
    blocks = damage(lab, [node], rng, source, 3)
    for name in lab.others(node):
        lab.kill(name)
    for name in lab.others(node):
        empty(lab, name)
        lab.start(name)
    for name in lab.names:
        lab.wait_node(name, "up")
    wanted = [f"{b * BLOCK}+{BLOCK}" for b in sorted(blocks)]
    wait_for(lambda: ranges(lab.api("GET", "/volumes/last")["unreadable"]) == ranges(wanted), 60, f"volume last to say that {wanted} cannot be read")
    row = lab.api("GET", "/volumes/last")
    check(row["health"] == "parked" and "give-up" in row["health_reason"], f"a volume with one copy, and that damaged, does not say so: {row}")
    check(any("give-up last" in e["message"] for e in lab.api("GET", "/events") if e["object"] == "volume last"), "no event says what to do")
    lab.command("cohort", "volume", "give-up", "last", check_status=False)
    check(lab.api("GET", "/volumes/last")["unreadable"], "blocks were given up without the flag")
    lab.cli("volume", "give-up", "last", "--accept-data-loss")
    for volume in ("last", "v"):
        lab.wait_healthy(volume, 90)
    for b in blocks:
        data[b * BLOCK:(b + 1) * BLOCK] = bytes(BLOCK)
    for name in (node, lab.others(node)[0]):
        for b in blocks:
            text = lab.exec(name, "qemu-io", "-f", "raw", "-c", f"read {b * BLOCK} {BLOCK}", uri("last"), check_status=False)
            check("failed" in text, f"{name} served a block that was given up: {text}")
        check(salvage(lab, name, "last", out) == data, f"{name}: what was not given up differs")
    for b in blocks:
        with open(source, "rb") as f, open(patch, "wb") as p:
            f.seek(b * BLOCK)
            p.write(f.read(BLOCK))
        lab.exec(node, "qemu-io", "-f", "raw", "-c", f"write -s {patch} {b * BLOCK} {BLOCK}", uri("last"))
    for name in lab.names:
        equal(lab, name, source, "last")
    result = run_check(lab, "last")
    check(result["bad_bytes"] == 0, f"{result}")
    note(f"two disks lost, {wanted} damaged on the third: parked and said; given up: 3 copies, EIO for those blocks; written again: whole")


def ranges(texts):
    """The blocks of "offset+length" texts: neighbours may be one range or two."""
    return sorted(at for t in texts for at in range(int(t.split("+")[0]), sum(map(int, t.split("+"))), BLOCK))


def structures(lab, node):
    """The files that make a disk, but for RocksDB's own logs and the scrub's memory of where it was."""
    meta = os.path.join(capacity(lab, node), "meta")
    files = [os.path.join(fast(lab, node), f) for f in os.listdir(fast(lab, node))]
    files += [os.path.join(capacity(lab, node), f) for f in os.listdir(capacity(lab, node)) if f not in ("meta", "scrub")]
    files += [os.path.join(meta, f) for f in os.listdir(meta) if not f.startswith(("LOG", "LOCK", "OPTIONS", "IDENTITY"))]
    return sorted(f for f in files if os.path.isfile(f) and os.path.getsize(f))


def swap(path, size, rng):
    """Two blocks of 4 KiB change places: each is right in itself."""
    a, b = (rng.randrange(max(1, min(size, 1 << 22) // BLOCK)) * BLOCK for _ in range(2))
    with open(path, "r+b") as f:
        f.seek(a)
        first = f.read(BLOCK)
        f.seek(b)
        second = f.read(BLOCK)
        for at, data in ((a, second), (b, first)):
            f.seek(at)
            f.write(data)
    return f"blocks at {a} and {b} of {os.path.basename(path)} exchanged"


def spoil(path, kind, rng):
    """Damages one file of a node that is off; says what it did."""
    size, name = os.path.getsize(path), os.path.basename(path)
    if kind == "truncate":
        with open(path, "r+b") as f:
            f.truncate(rng.randrange(size))
        return f"{name} truncated"
    if kind == "zero":
        at = rng.randrange(min(size, 1 << 20))
        with open(path, "r+b") as f:
            f.seek(at)
            f.write(bytes(min(size - at, 64 << 10)))
        return f"{name}: zeroes from {at}"
    if kind == "swap":
        return swap(path, size, rng)
    for _ in range(8):
        flip(path, rng.randrange(min(size, 1 << 20)), rng)
    return f"8 bits of {name} flipped"


def disk_of(lab, node):
    return next(d for d in lab.api("GET", "/disks") if d["node"] == node)


def judged(lab, victim, what):
    """Waits until the disk is refused, or everything on it is in sync. True: refused, seen in the event, and replaced."""
    def decided():
        return disk_of(lab, victim)["state"] == "failed" or lab.api("GET", "/volumes/v")["health"] == "healthy"
    wait_for(decided, 90, f"{victim} to be judged after {what}")
    disk = disk_of(lab, victim)
    if disk["state"] != "failed":
        return False
    events = [e["message"] for e in lab.api("GET", "/events") if e["object"] == f"disk {disk['name']}"]
    check(any("v" in m.split("volumes ")[-1].split(";")[0].replace(",", " ").split() for m in events if "volumes " in m),
          f"no event of the failed disk names volume v: {events}")
    note(f"{victim}: {what}: refused: {disk['message']}")
    replace(lab, victim, disk)
    lab.wait_healthy("v", 90)
    note(f"{victim}: disk replaced, volume v healthy")
    return True


def new_block(lab, rng, node, source):
    """Overwrites a block of the volume, and of what it is compared with."""
    at = rng.randrange(8 * MIB // BLOCK) * BLOCK
    patch = os.path.join(os.path.dirname(source), "patch")
    with open(patch, "wb") as f:
        f.write(rng.randbytes(BLOCK))
    with open(patch, "rb") as f, open(source, "r+b") as out:
        out.seek(at)
        out.write(f.read())
    lab.exec(node, "qemu-io", "-f", "raw", "-c", f"write -s {patch} {at} {BLOCK}", uri("v"))


def put_back_old(lab, rng, node, victim, source):
    """A file as it was before the node's last life is put in the place of what it has become since."""
    path = rng.choice(structures(lab, victim))
    old = os.path.join(os.path.dirname(source), "old")
    subprocess.run(["cp", "--sparse=always", path, old], check=True)
    lab.start(victim)
    lab.wait_node(victim, "up")
    lab.wait_healthy("v", 90)
    for _ in range(3):
        new_block(lab, rng, node, source)
    lab.kill(victim)
    subprocess.run(["cp", "--sparse=always", old, path], check=True)
    return f"{os.path.basename(path)} as it was a life ago"


def offline(lab, rng, node, source, rounds):
    victim, refused = lab.others(node)[-1], 0
    for _ in range(rounds):
        lab.kill(victim)
        kind = rng.choice(("flip", "flip", "truncate", "zero", "swap", "old"))
        if kind == "old":
            what = put_back_old(lab, rng, node, victim, source)
        else:
            what = spoil(rng.choice(structures(lab, victim)), kind, rng)
        new_block(lab, rng, node, source)
        lab.start(victim)
        lab.wait_node(victim, "up")
        once = judged(lab, victim, what)
        if not once:
            note(f"{victim}: {what}: opened")
        equal(lab, node, source, "v")
        equal(lab, victim, source, "v")
        result = run_check(lab, "v")
        check(result["unrepairable_bytes"] == 0, f"after {what}: {result}")
        once = judged(lab, victim, what) or once  # what is met only by reading it all
        refused += once
    note(f"{rounds} disks damaged while off: {refused} refused and replaced, {rounds - refused} opened; all data right on both nodes")


def empty(lab, node):
    for root in (fast(lab, node), capacity(lab, node)):
        subprocess.run(["find", root, "-mindepth", "1", "-delete"], check=True)


def replace(lab, victim, disk):
    """What the admin does: an empty disk in the place of the refused one."""
    empty(lab, victim)
    lab.cli("disk", "replace", f"{victim}:{disk['name']}")


def limits(lab, node):
    lab.api("POST", "/volumes", {"name": "slow", "size_bytes": 16 * MIB, "replicas": 3})
    lab.cli("volume", "set", "slow", "--iops", "100", "--burst", "1s")
    text = lab.exec(node, "fio", "--name=q", "--ioengine=nbd", f"--uri={uri('slow')}", "--rw=randwrite", "--bs=4k", "--size=16m", "--iodepth=8",
                    "--time_based", "--runtime=5", "--output-format=json", "--aux-path=/tmp", timeout=60)
    job = json.loads(text[text.index("{"):])["jobs"][0]
    total = job["write"]["total_ios"]
    took = job["job_runtime"] / 1000
    check(total <= 100 * (took + 1) + 20, f"100 IOPS with 1 s saved up allow about {100 * (took + 1):.0f} writes in {took} s, there were {total}")
    check(total >= 100, f"the second that was saved up allows 100 writes at once, there were {total} in {took} s")
    note(f"100 IOPS, burst 1 s: {total} writes in {took} s")


def on_disks(lab, marker):
    """Nodes on whose disks the marker lies in clear: journals, extents, metadata, everything."""
    found = []
    for name in lab.names:
        for root in (fast(lab, name), capacity(lab, name)):
            done = subprocess.run(["grep", "-rlaF", marker, root], stdout=subprocess.PIPE, text=True)
            found += [name] if done.stdout else []
    return sorted(set(found))


def encryption(lab, node, scratch):
    key, wrong, marker = os.path.join(scratch, "key"), os.path.join(scratch, "wrong"), "Plainly-Readable-7f3a91"
    for path, text in ((key, "a long enough passphrase\n"), (wrong, "another passphrase\n")):
        with open(path, "w") as f:
            f.write(text)
    text = os.path.join(scratch, "text")
    with open(text, "w") as f:
        f.write((marker + "\n") * 4000)
    os.truncate(text, 64 * 1024)
    lab.cli("cluster", "key", "set", "--key-file", key)
    lab.cli("volume", "create", "secret", "--size", "16M", "--encrypted")
    lab.cli("volume", "create", "open", "--size", "16M")
    lab.exec(node, "qemu-io", "-f", "raw", "-c", f"write -s {text} 1M 64k", uri("secret"))
    check(on_disks(lab, marker) == [], f"plaintext of an encrypted volume lies on the disks of {on_disks(lab, marker)}")
    lab.exec(node, "qemu-io", "-f", "raw", "-c", f"write -s {text} 1M 64k", uri("open"))
    check(on_disks(lab, marker) == sorted(lab.names), "the search for plaintext finds none where there is some")
    whole = os.path.join(scratch, "whole")
    with open(text, "rb") as f, open(whole, "wb") as out:
        out.write(bytes(MIB) + f.read())
        out.truncate(16 * MIB)
    equal(lab, node, whole, "secret")
    equal(lab, lab.others(node)[0], whole, "secret")
    result = run_check(lab, "secret")
    check(result["bad_bytes"] == 0 and result["checked_bytes"] == 16 * MIB, f"{result}")
    note("encrypted: no plaintext on any disk (and some of the other volume); read back right on two nodes; copies equal")
    for name in lab.names:
        lab.kill(name)
    for name in lab.names:
        lab.start(name)
    for name in lab.names:
        lab.wait_node(name, "up")
    wait_for(lambda: lab.api("GET", "/cluster")["key"] == "locked", 30, "the cluster to be locked after a power cut")
    wait_for(lambda: (row := lab.api("GET", "/volumes/secret"))["health"] == "parked" and "unlock" in row["health_reason"], 30,
             "the locked volume to say that it is, and how to unlock")
    lab.command("cohort", "cluster", "key", "unlock", "--key-file", wrong, check_status=False)
    check(lab.api("GET", "/cluster")["key"] == "locked", "a wrong passphrase unlocks")
    lab.cli("cluster", "key", "unlock", "--key-file", key)
    for name in lab.names:
        wait_for(lambda: lab.api_on(name, "GET", "/cluster")["key"] == "unlocked", 20, f"{name} to get the key from a peer")
    equal(lab, lab.others(node)[0], whole, "secret")
    note("power cut of all nodes: locked, parked and said; unlocked at one node all serve again")


def scenario(lab, args):
    rng = random.Random(args.seed)
    note(f"seed {args.seed}")
    node = lab.names[0]
    scratch = os.path.join(lab.lab.dir, "scratch")
    os.makedirs(scratch, exist_ok=True)
    source = os.path.join(scratch, "data")
    with open(source, "wb") as f:
        f.write(rng.randbytes(8 * MIB))
        f.truncate(SIZE)
    lab.api("POST", "/volumes", {"name": "v", "size_bytes": SIZE, "replicas": 3})
    lab.exec(node, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri("v"), timeout=60)
    os.truncate(source, 8 * MIB)
    scenes = {"bits": lambda: bits(lab, rng, node, source), "served": lambda: served_copy(lab, rng, node, source),
              "all": lambda: all_copies(lab, rng, node, source), "limits": lambda: limits(lab, node),
              "encryption": lambda: encryption(lab, node, scratch), "last": lambda: last_copy(lab, rng, node, scratch),
              "offline": lambda: offline(lab, rng, node, source, args.rounds)}
    for name in args.only.split(",") if args.only else scenes:
        scenes[name]()


def arguments(p):
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--rounds", type=int, default=2, help="disks damaged while their node is off")
    p.add_argument("--only", default="", metavar="SCENE,…", help="bits, served, all, limits, encryption, last, offline")


if __name__ == "__main__":
    run("volume_check", scenario, limit_s=380, arguments=arguments)
