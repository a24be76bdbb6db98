#!/usr/bin/env python3
"""Damage on disks, in a cluster that runs: bits of one copy flip and a check repairs them; the copy that serves reads is damaged
and the reader does not notice; all copies of a block are damaged and it is refused, never served, and named; whole structures of
a disk are damaged while its node is off (seeded), and the node comes back: the data stay right, the volume becomes healthy again or
the disk is refused with the volumes it held. Limits (QoS) are measured, and the
plaintext of an encrypted volume is searched for on all disks."""

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


def destaged(lab, node, needle):
    """The block has left the journal for the extents (idle destage), so that damage there matters."""
    return wait_for(lambda: find_blocks(lab, node, needle)[1], 30, f"{node} to destage", 0.5)


def damage(lab, nodes, rng, source, n_blocks):
    """On several nodes at once: the scrub repairs what it finds from a copy that is still good."""
    with open(source, "rb") as f:
        data = f.read()
    blocks = rng.sample(range(len(data) // BLOCK), n_blocks)
    places = []
    for b in blocks:
        needle = data[b * BLOCK:(b + 1) * BLOCK]
        for node in nodes:
            destaged(lab, node, needle)
            path, found = find_blocks(lab, node, needle)
            places += [(path, at) for at in found]
    for path, at in places:
        flip(path, at + rng.randrange(BLOCK), rng)
    return blocks


def run_check(lab, volume):
    lab.cli("volume", "check", volume, "--wait", "--timeout", "60s")
    return lab.api("GET", f"/volumes/{volume}")["check"]


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
    lab.api("POST", "/volumes/v/check", {})
    result = wait_for(lambda: (c := lab.api("GET", "/volumes/v")["check"]) and not c["wanted"] and c, 60, "the check")
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


def structure(lab, rng, node):
    """Damages one structure of a node that is off; says what."""
    meta = os.path.join(capacity(lab, node), "meta")
    files = [os.path.join(fast(lab, node), f) for f in os.listdir(fast(lab, node))]
    files += [os.path.join(capacity(lab, node), f) for f in os.listdir(capacity(lab, node)) if f not in ("meta", "scrub")]
    files += [os.path.join(meta, f) for f in os.listdir(meta) if not f.startswith(("LOG", "LOCK", "OPTIONS", "IDENTITY"))]
    files = [f for f in files if os.path.isfile(f) and os.path.getsize(f)]
    path = rng.choice(sorted(files))
    size = os.path.getsize(path)
    if rng.random() < 0.3:
        with open(path, "r+b") as f:
            f.truncate(rng.randrange(size))
        return f"{os.path.basename(path)} truncated"
    for _ in range(8):
        flip(path, rng.randrange(min(size, 1 << 20)), rng)
    return f"8 bits of {os.path.basename(path)} flipped"


def disk_of(lab, node):
    return next(d for d in lab.api("GET", "/disks") if d["node"] == node)


def offline(lab, rng, node, source, rounds):
    victim = lab.others(node)[-1]
    for _ in range(rounds):
        lab.kill(victim)
        what = structure(lab, rng, victim)
        lab.exec(node, "qemu-io", "-f", "raw", "-c", f"write -s {source} {0} {BLOCK}", uri("v"))
        lab.start(victim)
        lab.wait_node(victim, "up")
        wait_for(lambda: disk_of(lab, victim)["state"] == "failed" or lab.api("GET", "/volumes/v")["health"] == "healthy", 60,
                 f"{victim} to be judged after {what}")
        disk = disk_of(lab, victim)
        if disk["state"] == "failed":
            events = [e["message"] for e in lab.api("GET", "/events") if e["object"] == f"disk {disk['name']}"]
            check(any("v" in m.split("volumes ")[-1].split(";")[0].replace(",", " ").split() for m in events if "volumes " in m),
                  f"no event of the failed disk names volume v: {events}")
            note(f"{victim}: {what}: refused: {disk['message'][:100]}")
            replace(lab, victim, disk)
        else:
            note(f"{victim}: {what}: opened")
        lab.wait_healthy("v", 90)
        equal(lab, node, source, "v")
        equal(lab, victim, source, "v")
        result = run_check(lab, "v")
        check(result["unrepairable_bytes"] == 0, f"after {what}: {result}")


def replace(lab, victim, disk):
    """What the admin does: an empty disk in the place of the refused one."""
    for root in (fast(lab, victim), capacity(lab, victim)):
        subprocess.run(["find", root, "-mindepth", "1", "-delete"], check=True)
    lab.cli("disk", "replace", f"{victim}:{disk['name']}")


def limits(lab, node):
    lab.api("POST", "/volumes", {"name": "slow", "size_bytes": 16 * MIB, "replicas": 3})
    lab.cli("volume", "set", "slow", "--iops", "100", "--burst", "1s")
    text = lab.exec(node, "fio", "--name=q", "--ioengine=nbd", f"--uri={uri('slow')}", "--rw=randwrite", "--bs=4k", "--size=16m", "--iodepth=8",
                    "--time_based", "--runtime=5", "--output-format=json", "--aux-path=/tmp", timeout=60)
    total = json.loads(text[text.index("{"):])["jobs"][0]["write"]["total_ios"]
    check(450 <= total <= 720, f"100 IOPS with 1 s saved up allow about 600 writes in 5 s, there were {total}")
    note(f"100 IOPS, burst 1 s: {total} writes in 5 s")


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
    row = lab.api("GET", "/volumes/secret")
    check(row["health"] == "parked" and "unlock" in row["health_reason"], f"a locked volume does not say so: {row}")
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
    bits(lab, rng, node, source)
    served_copy(lab, rng, node, source)
    all_copies(lab, rng, node, source)
    limits(lab, node)
    encryption(lab, node, scratch)
    offline(lab, rng, node, source, args.rounds)


def arguments(p):
    p.add_argument("--seed", type=int, default=int(time.time()))
    p.add_argument("--rounds", type=int, default=2)


if __name__ == "__main__":
    run("volume_check", scenario, limit_s=240, arguments=arguments)
