#!/usr/bin/env python3
"""Copies are made anew by themselves: a node that stays away is replaced and its old copies are dropped when it returns, a
drained disk empties and is removed, a new disk takes copies, a node in maintenance is waited for, and one that returns in
time copies only what was written meanwhile (a ratio of bytes). The data is compared after each step."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import MIB, check, note, run, wait_for  # noqa: E402

ABSENT_S = 3


class Volume:
    """A volume and the file that says what must be in it."""

    def __init__(self, lab, name, mib, replicas, node, scratch):
        self.lab, self.name, self.mib, self.node = lab, name, mib, node
        self.file = os.path.join(scratch, name)
        lab.api("POST", "/volumes", {"name": name, "size_bytes": mib * MIB, "replicas": replicas})
        self.write(0, mib)

    def uri(self):
        return f"nbd+unix:///{self.name}?socket=/run/cohort/nbd.sock"

    def write(self, at_mib, mib):
        with open(self.file, "r+b" if os.path.exists(self.file) else "w+b") as f:
            f.seek(at_mib * MIB)
            f.write(os.urandom(mib * MIB))
        part = self.file + ".part"
        with open(self.file, "rb") as f, open(part, "wb") as out:
            f.seek(at_mib * MIB)
            out.write(f.read(mib * MIB))
        self.lab.exec(self.node, "qemu-io", "-f", "raw", "-c", f"write -s {part} {at_mib}M {mib}M", self.uri(), timeout=120)

    def verify(self, node=None):
        self.lab.exec(node or self.node, "qemu-img", "compare", "-f", "raw", "-F", "raw", self.file, self.uri(), timeout=120)

    def copies(self):
        """Node names of the in-sync copies of shard 0."""
        shards = self.lab.api("GET", f"/volumes/{self.name}")["shards"]
        return sorted(c["node"] for c in shards[0]["replicas"] if c["in_sync"]) if shards else []

    def wait_copies(self, n, without=None, timeout=90):
        def there():
            got = self.copies()
            return got if len(got) == n and without not in got else None
        return wait_for(there, timeout, f"{n} copies of {self.name}" + (f", none on {without}" if without else ""))


def disk(lab, name):
    return lab.api("GET", f"/disks/{name}")


def copied(lab):
    return sum(lab.metric(n, "cohort_asan_resync_bytes_total") for n in lab.names if lab.node_state(n) == "up")


def stays_away(lab, v):
    victim = next(n for n in v.copies() if n != v.node)
    other = lab.others(v.node, victim)[0]
    lab.kill(victim)
    v.wait_copies(2, without=victim)
    check(other in v.copies(), f"the new copy is not on {other}: {v.copies()}")
    v.verify()
    note(f"{victim} stayed away: its copy was made anew on {other}")
    lab.start(victim)
    lab.wait_node(victim, "up")
    wait_for(lambda: lab.metric(victim, "cohort_asan_copies_dropped_total") >= 1, 60, f"{victim} to drop its old copy")
    check(disk(lab, f"{victim}:disk0")["shard_copies"] == 0, "a dropped copy is still in the database")
    v.verify(victim)
    note(f"{victim} is back and has dropped what it need not keep")


def drains(lab, v):
    victim = next(n for n in v.copies() if n != v.node)
    name = f"{victim}:disk0"
    lab.cli("disk", "drain", name)
    v.wait_copies(2, without=victim)
    wait_for(lambda: disk(lab, name)["shard_copies"] == 0, 60, f"{name} to be empty")
    v.verify()
    lab.cli("disk", "remove", name)
    note(f"{name} drained and removed")
    before = {d["id"] for d in lab.api("GET", "/disks")}
    lab.cli("disk", "add", f"{victim}:new", "--capacity", "/var/lib/cohort/new-disk")
    wait_for(lambda: disk(lab, f"{victim}:new")["size_bytes"] > 0, 30, "the new disk's size")
    check(disk(lab, f"{victim}:new")["id"] not in before, "the new disk has an old id")
    keep = [n for n in v.copies() if n != v.node] or v.copies()
    lab.cli("disk", "drain", f"{keep[0]}:disk0")
    v.wait_copies(2, without=keep[0])
    check(victim in v.copies(), f"the new disk got no copy: {v.copies()}")
    lab.cli("disk", "use", f"{keep[0]}:disk0")
    v.verify()
    note(f"{victim}:new took a copy")


def returns(lab, v):
    """In maintenance the node is waited for longer than repair_absent_s; what is copied is what was written."""
    victim = next(n for n in v.copies() if n != v.node)
    lab.cli("node", "maintenance", victim, "on")
    lab.kill(victim)
    lab.wait_node(victim, "dead")
    before, written = copied(lab), 6
    v.write(8, written)
    dead_since = lab.api("GET", f"/nodes/{victim}")["state_ms"]
    wait_for(lambda: lab.api("GET", "/repair")["now_ms"] - dead_since > (ABSENT_S + 2) * 1000, 30,
             "the time after which it would be replaced")
    plan = lab.api("GET", "/repair")
    check(plan["steps"] == [], "a node in maintenance is replaced")
    check(plan["copying"]["shards_behind"] > 0, f"no shard is behind although a copy is: {plan}")
    check(any(c["node"] == victim for c in lab.api("GET", f"/volumes/{v.name}")["shards"][0]["replicas"]), "its copy is not listed any more")
    lab.start(victim)
    lab.wait_node(victim, "up")
    v.wait_copies(2)
    check(lab.api("GET", "/repair")["copying"]["shards_behind"] == 0, "a shard is behind although all copies are in sync")
    ratio = (copied(lab) - before) / (written * MIB)
    lab.cli("node", "maintenance", victim, "off")
    v.verify(victim)
    note(f"{victim} returned: {written} MiB were written meanwhile, {ratio * written:.2f} MiB copied, ratio {ratio:.2f}")
    check(0.95 <= ratio <= 1.5, f"a returning node copied {ratio:.2f} times what was written meanwhile")


def scenario(lab, args):
    node = lab.names[0]
    scratch = os.path.join(lab.lab.dir, "scratch")
    os.makedirs(scratch, exist_ok=True)
    lab.cli("cluster", "set", "repair_absent_s", str(ABSENT_S))
    v = Volume(lab, "r", args.mib, 2, node, scratch)
    v.wait_copies(2)
    for step in (stays_away, drains, returns):
        step(lab, v)
    for e in lab.api("GET", "/events?limit=200"):
        if e["object"] == "copies":
            note(f"event: {e['message']}")


if __name__ == "__main__":
    run("repair", scenario, limit_s=240, arguments=lambda p: p.add_argument("--mib", type=int, default=32))
