#!/usr/bin/env python3
"""Snapshots, judged by qemu-img and by a writer that numbers its writes: a snapshot of two volumes holds exactly a prefix of
what was written to both, while writing goes on; it stays what it was through the loss and the return of a node; a clone
begins as it, a revert ends as it."""

import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import MIB, LAB, check, note, run, wait_for  # noqa: E402

BLOCK = 4096
SIZE = 32 * MIB
# Write number i goes to block i * 7919 % BLOCKS of the first volume, then of the second. 5 of 8 blocks are hit late, so that
# most first writes after a snapshot fall into chunks that are not in the new layer yet.
WRITER = r"""
import nbd, os, sys, time
a, b, log, stop = nbd.NBD(), nbd.NBD(), sys.argv[3], sys.argv[4]
a.connect_uri(sys.argv[1]); b.connect_uri(sys.argv[2])
blocks, i = a.get_size() // 4096, 0
while not os.path.exists(stop):
    i += 1
    data = i.to_bytes(8, "little") * 512
    at = i * 7919 % blocks * 4096
    a.pwrite(data, at)
    b.pwrite(data, at)
    with open(log + ".new", "w") as f:
        f.write(str(i))
    os.rename(log + ".new", log)
a.shutdown(); b.shutdown()
"""


def uri(volume):
    return f"nbd+unix:///{volume}?socket=/run/cohort/nbd.sock"


def prefix_of(path, base):
    """How many writes the file holds; fails if it is no prefix on top of `base`."""
    with open(path, "rb") as f:
        data = f.read()
    blocks = SIZE // BLOCK
    newest = 0
    for k in range(blocks):
        block = data[k * BLOCK:(k + 1) * BLOCK]
        if block == base[k * BLOCK:(k + 1) * BLOCK]:
            continue
        n = int.from_bytes(block[:8], "little")
        check(block == block[:8] * 512 and n * 7919 % blocks == k, f"{path}: block {k} is torn or misplaced")
        newest = max(newest, n)
    for i in range(max(1, newest - blocks + 1), newest + 1):
        k = i * 7919 % blocks
        n = int.from_bytes(data[k * BLOCK:k * BLOCK + 8], "little")
        check(n == i, f"{path}: write {newest} is there, the earlier write {i} is not (block {k} holds {n})")
    return newest


def acknowledged(log):
    with open(log, encoding="ascii") as f:
        return int(f.read())


def compare(lab, node, file, volume):
    lab.exec(node, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, uri(volume), timeout=120)


def to_file(lab, node, volume, file):
    lab.exec(node, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri(volume), file, timeout=120)


def take(lab, name, *volumes):
    argv = ["snapshot", "create", volumes[0], "--name", name]
    for v in volumes[1:]:
        argv += ["--with", v]
    lab.cli(*argv)


def written_while_cut(lab, node, scratch, base):
    """The writer runs; two snapshots of both volumes; both are prefixes and in step."""
    log, stop, script = (os.path.join(scratch, n) for n in ("acked", "stop", "writer.py"))
    with open(script, "w", encoding="ascii") as f:
        f.write(WRITER)
    job = subprocess.Popen([LAB, "exec", "--id", lab.id, node, "/usr/bin/python3", script, uri("sa"), uri("sb"), log, stop],
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: job.poll() is not None or (os.path.exists(log) and acknowledged(log) > 200), 60, "the writer to write")
        counts = []
        for name in ("s1", "s2"):
            before = acknowledged(log)
            take(lab, name, "sa", "sb")
            after = acknowledged(log)
            for v in ("sa", "sb"):
                to_file(lab, node, f"{v}@{name}", os.path.join(scratch, f"{v}-{name}"))
            na, nb = (prefix_of(os.path.join(scratch, f"{v}-{name}"), base) for v in ("sa", "sb"))
            check(na - nb in (0, 1), f"the volumes are not of one moment: {na} and {nb} writes")
            check(before <= nb and na <= after + 1, f"snapshot of {na} writes; {before} were acknowledged before, {after} after")
            note(f"{name}: {na} writes in sa, {nb} in sb; {before} acknowledged when asked, {after} when told")
            wait_for(lambda: acknowledged(log) > after + 100, 60, "writing to go on")
            counts.append(na)
        victim = lab.others(node)[-1]
        lab.kill(victim)
        wait_for(lambda: lab.node_state(victim) == "dead", 60, f"{victim} to be declared dead")
        seen = acknowledged(log)
        wait_for(lambda: acknowledged(log) > seen + 50, 60, "writing to go on without a copy")
        compare(lab, node, os.path.join(scratch, "sa-s1"), "sa@s1")
        take(lab, "s3", "sa")
        lab.start(victim)
        lab.wait_node(victim, "up")
    finally:
        with open(stop, "w", encoding="ascii"):
            pass
        try:
            text, _ = job.communicate(timeout=60)
        finally:
            if job.poll() is None:
                job.kill()
                job.wait()
    check(job.returncode == 0, f"the writer failed:\n{text[-2000:]}")
    total = acknowledged(log)
    to_file(lab, node, "sa", os.path.join(scratch, "sa-end"))
    check(prefix_of(os.path.join(scratch, "sa-end"), base) == total, "the volume does not end with the last write")
    return counts, victim


UNIT = 64 * 1024

# Prints the extents that context argv[2] of export argv[1] calls dirty, as JSON.
STATUS = r"""
import json, nbd, sys
h, out = nbd.NBD(), []
h.add_meta_context(sys.argv[2])
h.connect_uri(sys.argv[1])
assert h.can_meta_context(sys.argv[2]), "the context is not offered"
at, size = 0, h.get_size()
def told(name, offset, entries, err):
    global at
    for length, flags in zip(entries[::2], entries[1::2]):
        if flags & 1:
            out.append([offset, length])
        offset += length
    at = offset
while at < size:
    h.block_status(min(size - at, 1 << 30), at, told)
h.shutdown()
print(json.dumps(out))
"""


def units(extents):
    return {u for at, length in extents for u in range(at // UNIT, (at + length + UNIT - 1) // UNIT)}


def differing(a, b):
    """Units in which two files differ."""
    with open(a, "rb") as f, open(b, "rb") as g:
        x, y = f.read(), g.read()
    return {u for u in range(len(x) // UNIT) if x[u * UNIT:(u + 1) * UNIT] != y[u * UNIT:(u + 1) * UNIT]}


def check_units(extents, must, what):
    named = units(extents)
    check(must <= named, f"{what}: units {sorted(must - named)[:8]} differ and are not named")
    return named - must


def changed(lab, scratch, node):
    """Every way to ask what changed names all that differs, and next to nothing else."""
    files = {n: os.path.join(scratch, f"sa-{n}") for n in ("s1", "s2", "end")}
    to_file(lab, node, "sa@s3", os.path.join(scratch, "sa-s3"))
    files["s3"] = os.path.join(scratch, "sa-s3")
    for to, frm in (("s2", "s1"), ("s3", "s1"), ("s3", "s2"), (None, "s2"), (None, "s1")):
        argv = ["volume", "changed", "sa", "--from", frm] + (["--to", to] if to else [])
        got = lab.cli(*argv)
        must = differing(files[frm], files[to or "end"])
        extra = check_units(got["extents"], must, " ".join(argv))
        check(sum(n for _, n in got["extents"]) == got["changed_bytes"] and not extra, f"{argv}: {len(extra)} units too many")
    script = os.path.join(scratch, "status.py")
    with open(script, "w", encoding="ascii") as f:
        f.write(STATUS)
    for n, export in ((node, "sa@s2"), (lab.others(node)[0], "sa@s2"), (node, "sa")):
        out = lab.exec(n, "/usr/bin/python3", script, uri(export), "cohort:changed:sa@s1", timeout=60)
        must = differing(files["s1"], files["s2" if "@" in export else "end"])
        check(not check_units(json.loads(out), must, f"NBD {export} on {n}"), f"NBD {export}: more than what differs")
    note("changed blocks: exact between snapshots and up to now, by command and by NBD, on several nodes")
    image = f"driver=nbd,export=sa@s2,server.type=unix,server.path=/run/cohort/nbd.sock,x-dirty-bitmap=cohort:changed:sa@s1"
    rows = json.loads(lab.exec(node, "qemu-img", "map", "--output=json", "--image-opts", image, timeout=60))
    dirty = [[r["start"], r["length"]] for r in rows if not r["data"]]  # qemu shows dirty as "no data"
    check(not check_units(dirty, differing(files["s1"], files["s2"]), "qemu-img map"), "qemu-img map: more than what differs")
    note("qemu-img map reads the same from x-dirty-bitmap=cohort:changed:sa@s1")


def flatten(lab, node, scratch):
    """A clone becomes a volume of its own while its node dies in the middle; then what it came from can go."""
    lab.cli("volume", "clone", "sb@s2", "flat")
    compare(lab, node, os.path.join(scratch, "sb-s2"), "flat")
    want = os.path.join(scratch, "flat")
    with open(os.path.join(scratch, "sb-s2"), "rb") as f, open(want, "wb") as out:
        out.write(f.read())
        out.seek(9 * MIB + 512)
        out.write(bytes([0x46]) * 200 * 1024)
    lab.exec(node, "qemu-io", "-f", "raw", "-c", f"write -P 0x46 {9 * MIB + 512} 200k", uri("flat"), timeout=60)
    lab.cli("volume", "check", "flat", "--wait")
    shown = lab.cli("volume", "show", "flat")
    check(shown["check"]["bad_bytes"] == 0 and shown["check"]["checked_bytes"] == SIZE and shown["parent"] == "sb@s2", f"the clone's check found {shown['check']}")
    note("a clone was checked")
    lab.cli("volume", "flatten", "flat")
    busy = wait_for(lambda: [t for t in lab.tasks("flatten") if t["object"] == "volume flat"] or
                    (lab.api("GET", "/volumes/flat")["parent"] == "" and ["over"]), 60, "flatten to begin")
    if busy != ["over"]:
        worker = busy[0]["node"]
        if worker != node:
            lab.kill(worker)
            lab.start(worker)
            lab.wait_node(worker, "up")
    wait_for(lambda: lab.api("GET", "/volumes/flat")["parent"] == "", 90, "the clone to stand alone")
    compare(lab, node, want, "flat")
    lab.cli("volume", "check", "flat", "--wait")
    check(lab.cli("volume", "show", "flat")["check"]["bad_bytes"] == 0, "the flattened volume's copies differ")
    note("the clone was flattened; it holds what it did")


def backup(lab, node, scratch):
    """Full and incremental exports, imported elsewhere one after the other; what does not fit or is damaged is refused."""
    files = {n: os.path.join(scratch, f"{n}.cohort") for n in ("full", "inc2", "inc3", "cut", "flipped")}
    want = {n: os.path.join(scratch, f"sa-{n}") for n in ("s1", "s2", "s3")}
    other = lab.others(node)[0]
    lab.cli("volume", "export", "sa@s1", files["full"])
    lab.cli("volume", "export", "sa@s2", files["inc2"], "--from", "s1")
    lab.cli("volume", "export", "sa@s3", files["inc3"], "--from", "sa@s2")
    sizes = [os.path.getsize(files[n]) for n in ("full", "inc2", "inc3")]
    must = len(differing(want["s1"], want["s2"])) * UNIT
    check(sizes[0] < SIZE + MIB and sizes[1] < must + 64 * 1024, f"exports have {sizes} bytes; {must} differ between s1 and s2")
    with open(files["inc2"], "rb") as f:
        data = bytearray(f.read())
    with open(files["cut"], "wb") as f:
        f.write(data[:len(data) * 2 // 3])
    data[len(data) // 2] ^= 1
    with open(files["flipped"], "wb") as f:
        f.write(data)
    lab.refused("there is no volume copy", "volume", "import", files["inc2"], "--name", "copy")
    lab.refused("exists already", "volume", "import", files["full"])
    lab.cli("volume", "import", files["full"], "--name", "copy")
    for n in (node, other):
        compare(lab, n, want["s1"], "copy")
    lab.refused("the file continues s2", "volume", "import", files["inc3"], "--name", "copy")
    for bad, why in (("cut", "truncated"), ("flipped", "damaged")):
        lab.refused(why, "volume", "import", files[bad], "--name", "copy")
        wait_for(lambda: lab.api("GET", "/volumes/copy")["owner"] == "", 30, "the volume to be let go")
        check(lab.api("GET", "/volumes/copy")["state"] == "importing", "a broken import does not show")
        lab.refused("broke off", "volume", "import", files["inc2"], "--name", "copy")
        lab.cli("snapshot", "revert", "copy@s1")
    lab.cli("volume", "import", files["inc2"], "--name", "copy")
    compare(lab, other, want["s2"], "copy")
    lab.cli("volume", "import", files["inc3"], "--name", "copy")
    compare(lab, node, want["s3"], "copy")
    compare(lab, node, want["s1"], "copy@s1")
    ids = {s["name"]: s for s in lab.cli("snapshot", "list")}
    check(ids["copy@s3"]["content"] == ids["sa@s3"]["id"], "the copy does not know what it is a copy of")
    lab.exec(node, "qemu-io", "-f", "raw", "-c", "write -P 1 0 512", uri("copy"), timeout=60)
    wait_for(lambda: lab.api("GET", "/volumes/copy")["owner"] == "", 30, "the volume to be let go")
    lab.cli("volume", "export", "copy", os.path.join(scratch, "written.cohort"), "--from", "s3")
    lab.refused("exists already", "volume", "import", files["inc3"], "--name", "copy")
    note(f"exported {sizes} bytes; imported step by step; what does not fit, is cut or damaged was refused")

    slowly(lab, node, "export", ["--limit-rate", "512K", "-o", os.path.join(scratch, "slow"), "http://localhost/api/v1/volumes/sa@s1/export"])
    note("a canceled export is cut off, so that nobody takes it for whole")
    text = slowly(lab, node, "import", ["--limit-rate", "4M", "--fail-with-body", "-T", files["full"], "http://localhost/api/v1/imports?name=slow"])
    check("the import was canceled" in text, f"the client is not told: {text}")
    check(lab.api("GET", "/volumes/slow")["state"] == "importing", "a volume whose import was canceled looks whole")
    wait_for(lambda: lab.api("GET", "/volumes/slow")["owner"] == "", 30, "the volume to be let go")
    lab.cli("volume", "delete", "slow", "--wait")
    note("a canceled import tells its client, and its volume is not taken for whole")


def slowly(lab, node, kind, curl):
    """Begins an export or import and cancels its task; what curl said, which must have failed."""
    job = subprocess.Popen([LAB, "exec", "--id", lab.id, node, "curl", "-sS", "--unix-socket", "/run/cohort/api.sock", *curl], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        task = wait_for(lambda: [t for t in lab.tasks(kind) if t["state"] == "running"], 30, f"the slow {kind} to begin")[0]
        lab.cli("task", "cancel", task["id"])
        text, _ = job.communicate(timeout=60)
    finally:
        if job.poll() is None:
            job.kill()
            job.wait()
    check(job.returncode != 0, f"the {kind} that was canceled looks whole: {text}")
    wait_for(lambda: lab.api("GET", f"/tasks/{task['id']}")["state"] == "canceled", 30, "the task to be canceled")
    return text


def encrypted(lab, node, scratch):
    """A snapshot and a clone of an encrypted volume, and its export."""
    key, want, out = (os.path.join(scratch, n) for n in ("key", "secret-want", "secret.cohort"))
    with open(key, "w", encoding="ascii") as f:
        f.write("a long enough passphrase\n")
    lab.cli("cluster", "key", "set", "--key-file", key)
    lab.cli("volume", "create", "secret", "--size", "16M", "--encrypted")
    data = bytearray(16 * MIB)
    data[MIB:2 * MIB] = bytes([0x51]) * MIB
    lab.exec(node, "qemu-io", "-f", "raw", "-c", "write -P 0x51 1M 1M", uri("secret"), timeout=60)
    take(lab, "one", "secret")
    lab.exec(node, "qemu-io", "-f", "raw", "-c", f"write -P 0x52 {MIB + 512} 4k", "-c", "write -P 0x53 5M 512", uri("secret"), timeout=60)
    with open(want, "wb") as f:
        f.write(data)
    compare(lab, lab.others(node)[0], want, "secret@one")
    lab.cli("volume", "clone", "secret@one", "secret2")
    lab.exec(node, "qemu-io", "-f", "raw", "-c", f"write -P 0x54 {MIB + 1024} 512", uri("secret2"), timeout=60)
    data[MIB + 1024:MIB + 1536] = bytes([0x54]) * 512
    with open(want, "wb") as f:
        f.write(data)
    compare(lab, node, want, "secret2")
    check(lab.api("GET", "/volumes/secret2")["encrypted"], "the clone of an encrypted volume is not encrypted")
    wait_for(lambda: lab.api("GET", "/volumes/secret2")["owner"] == "", 30, "the volume to be let go")
    lab.cli("volume", "export", "secret2", out)
    lab.cli("volume", "import", out, "--name", "secret3", "--encrypted")
    compare(lab, node, want, "secret3")
    note("encrypted: snapshot, clone, export and import read back right")


def scenario(lab, args):
    node = lab.names[0]
    scratch = os.path.join(lab.lab.dir, "scratch")
    os.makedirs(scratch, exist_ok=True)
    base = os.urandom(SIZE // 2) + bytes(SIZE // 2)
    with open(os.path.join(scratch, "base"), "wb") as f:
        f.write(base)
    for v in ("sa", "sb"):
        lab.api("POST", "/volumes", {"name": v, "size_bytes": SIZE, "replicas": 3})
        lab.exec(node, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", os.path.join(scratch, "base"), uri(v), timeout=120)
    counts, victim = written_while_cut(lab, node, scratch, base)
    check(counts[1] > counts[0], "the second snapshot is no later than the first")

    for v in ("sa", "sa@s1", "sa@s2", "sa@s3"):
        wait_for(lambda v=v: lab.api("GET", f"/volumes/{v}")["health"] == "healthy", 120, f"{v} to be in sync again")
    for n in (node, victim):
        compare(lab, n, os.path.join(scratch, "sa-s1"), "sa@s1")
        compare(lab, n, os.path.join(scratch, "sa-s2"), "sa@s2")
    note("both snapshots read the same after the loss and the return of a node, there too")

    changed(lab, scratch, node)
    flatten(lab, node, scratch)
    backup(lab, node, scratch)
    encrypted(lab, node, scratch)
    lab.cli("volume", "clone", "sa@s1", "clone1")
    compare(lab, node, os.path.join(scratch, "sa-s1"), "clone1")
    with open(os.path.join(scratch, "sa-s1"), "rb") as f:
        want = bytearray(f.read())
    ops = [(12345 * 512, 4096 + 512), (BLOCK * 3, 512), (5 * MIB - 1024, 70 * 1024), (SIZE - 1536, 1536)]
    for i, (at, length) in enumerate(ops):
        want[at:at + length] = bytes([0x41 + i]) * length
        lab.exec(node, "qemu-io", "-f", "raw", "-c", f"write -P {0x41 + i} {at} {length}", uri("clone1"), timeout=60)
    lab.exec(node, "qemu-io", "-f", "raw", "-c", f"write -z {20 * MIB + 512} {300 * 1024}", uri("clone1"), timeout=60)
    want[20 * MIB + 512:20 * MIB + 512 + 300 * 1024] = bytes(300 * 1024)
    with open(os.path.join(scratch, "want"), "wb") as f:
        f.write(want)
    compare(lab, node, os.path.join(scratch, "want"), "clone1")
    lab.cli("volume", "check", "clone1", "--wait")
    compare(lab, lab.others(node)[0], os.path.join(scratch, "want"), "clone1")
    compare(lab, node, os.path.join(scratch, "sa-s1"), "sa@s1")
    note("a clone takes writes of any alignment, its snapshot stays as it was")

    wait_for(lambda: lab.api("GET", "/volumes/sa")["owner"] == "", 30, "the volume to be let go")
    lab.cli("snapshot", "revert", "sa@s1")
    compare(lab, node, os.path.join(scratch, "sa-s1"), "sa")
    names = sorted(s["name"] for s in lab.cli("snapshot", "list") if s["name"][:2] in ("sa", "sb"))
    check(names == ["sa@s1", "sa@s2", "sa@s3", "sb@s1", "sb@s2"], f"snapshots are {names}")
    note("reverted; the later snapshots are still there")

    for name in ("sa@s2", "sa@s3", "sa@s1"):  # s1 stays below clone1 and sa until one of them is left
        lab.cli("snapshot", "delete", name)
    compare(lab, node, os.path.join(scratch, "sa-s1"), "sa")
    lab.cli("volume", "delete", "clone1")
    wait_for(lambda: lab.api("GET", "/volumes/sa")["parent"] == "", 60, "the last layer to be merged into the volume")
    compare(lab, node, os.path.join(scratch, "sa-s1"), "sa")
    note("snapshots deleted, their layers merged or dropped")


if __name__ == "__main__":
    run("snapshot", scenario, limit_s=340)
