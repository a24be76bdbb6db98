#!/usr/bin/env python3
"""Disks that fail in their own ways, while a guest writes: a slow one is put out of service, a frozen one too, one whose fast
device fails is taken out, and for one whose capacity device fails a hot spare takes over. Then its node is put in maintenance and
the guest moves away by itself. The guest sees no I/O error and is never restarted; what it wrote is there at the end."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import Watcher, check, note, run, wait_for  # noqa: E402

SLOW_MS, SLOW_S = 1000, 3  # far more than the real disk below ever takes for so long


def disk(lab, name):
    return lab.api("GET", f"/disks/{name}")


def wait_state(lab, name, wanted, timeout=60):
    return wait_for(lambda: disk(lab, name)["state"] == wanted, timeout, f"{name} to be {wanted}") and disk(lab, name)


def in_sync(lab, guest):
    """Disks, as NODE:DISK, that have every shard of the guest's volume in sync."""
    shards = lab.api("GET", f"/volumes/{guest.disk()}")["shards"]
    sets = [{f"{c['node']}:{c['disk']}" for c in s["replicas"] if c["in_sync"]} for s in shards]
    return set.intersection(*sets)


def wait_copies(lab, guest, n, timeout=60):
    return wait_for(lambda: len(in_sync(lab, guest)) == n and in_sync(lab, guest), timeout, f"{n} copies in sync")


def goes_on(seen, what):
    """The guest gets answers from its disk: new records are acknowledged."""
    acked = sum(seen.acked)
    wait_for(lambda: sum(seen.acked) > acked + 5, 30, f"the guest to write on {what}")
    check(seen.errors == 0, f"the guest saw I/O errors {what}")


def has_event(lab, name, severity, words):
    rows = lab.api("GET", "/events?limit=200")
    return any(e["object"] == f"disk {name}" and e["severity"] == severity and words in e["message"] for e in rows)


def put_back(lab, guest, name, how):
    node = name.partition(":")[0]
    lab.command("disk", node, "ok")
    lab.cli("disk", how, name)
    wait_state(lab, name, "up")
    wait_copies(lab, guest, 3)


def judge_disks(lab, slow_ms, isolate_ms, seconds):
    for key, value in (("disk_slow_ms", slow_ms), ("disk_isolate_ms", isolate_ms), ("disk_slow_s", seconds)):
        lab.cli("cluster", "set", key, str(value))


def slow(lab, guest, seen, name):
    judge_disks(lab, SLOW_MS // 2, SLOW_MS // 2, SLOW_S)
    node, started = name.partition(":")[0], time.monotonic()
    lab.command("disk", node, "slow", str(SLOW_MS), "fast")
    row = wait_state(lab, name, "isolated")
    took = time.monotonic() - started
    check("per request" in row["message"] and has_event(lab, "disk0", "alarm", "isolated"), f"no alarm that says why: {row['message']}")
    check(name not in in_sync(lab, guest), "an isolated disk counts as in sync")
    goes_on(seen, "with a slow disk isolated")
    note(f"{name}, {SLOW_MS} ms per request, isolated after {took:.1f} s: {row['message']}")
    judge_disks(lab, SLOW_MS // 2, SLOW_MS // 2, 60)  # from here on none is too slow before it counts as frozen
    put_back(lab, guest, name, "use")


def frozen(lab, guest, seen, name):
    lab.cli("cluster", "set", "disk_slow_s", "60")  # else it is too slow before it counts as frozen
    node, started = name.partition(":")[0], time.monotonic()
    lab.command("disk", node, "stall")
    goes_on(seen, "while a disk is frozen")
    on = time.monotonic() - started
    row = wait_state(lab, name, "isolated")
    took = time.monotonic() - started
    check("has not answered" in row["message"], row["message"])
    check(lab.node_state(node) == "up", f"{node} is {lab.node_state(node)} because of its disk")
    note(f"{name} frozen: the guest writes on after {on:.1f} s, isolated after {took:.1f} s: {row['message']}")
    put_back(lab, guest, name, "use")


def fast_fails(lab, guest, seen, name):
    node = name.partition(":")[0]
    lab.command("disk", node, "eio", "fast")
    row = wait_state(lab, name, "failed")
    wait_copies(lab, guest, 2)
    goes_on(seen, "without the failed disk")
    check(row["message"] and has_event(lab, "disk0", "alarm", ""), "no alarm about a failed disk")
    note(f"{name}'s fast device failed: {row['message']}")
    put_back(lab, guest, name, "replace")


def spare_takes_over(lab, guest, seen, name):
    node, started = name.partition(":")[0], time.monotonic()
    spare = f"{node}:spare"
    lab.cli("disk", "add", spare, "--capacity", "/var/lib/cohort/spare", "--spare")
    wait_for(lambda: disk(lab, spare)["size_bytes"] > 0, 30, "the spare's size")
    check(disk(lab, spare)["state"] == "spare", f"the spare is {disk(lab, spare)['state']}")
    check(disk(lab, spare)["shard_copies"] == 0, "a spare was given copies")
    lab.command("disk", node, "eio", "capacity")
    wait_state(lab, name, "failed")
    wait_state(lab, spare, "up")
    copies = wait_copies(lab, guest, 3)
    check(spare in copies and name not in copies, f"the spare has no copy: {copies}")
    check(disk(lab, name)["replaced_by"] == spare, f"replaced by {disk(lab, name)['replaced_by']!r}")
    goes_on(seen, "with the spare")
    note(f"{name} failed, {spare} has its copies after {time.monotonic() - started:.1f} s")
    lab.command("disk", node, "ok")


def evacuated(lab, guest, seen):
    source, boot = guest.row()["host"], seen.boots[:]
    started = time.monotonic()
    lab.cli("node", "maintenance", source, "on")

    def moved():
        row = guest.row()
        return row["host"] != source and row["state"] == "running" and not row["migrate_to"] and row
    row = wait_for(moved, 60, f"the guest to leave {source}")
    goes_on(seen, "after its node was evacuated")
    check(seen.boots == boot, "the guest was restarted instead of moved")
    wait_for(lambda: not lab.guest_processes(source), 30, "the source's process to end")
    lab.cli("node", "maintenance", source, "off")
    note(f"{source} in maintenance: the guest runs on {row['host']} after {time.monotonic() - started:.1f} s, silent for {seen.gap_s:.2f} s")


def scenario(lab, args):
    guest = lab.make_guest("g", host="n1")
    guest.set_load(2)
    wait_copies(lab, guest, 3)
    with Watcher(guest) as seen:
        goes_on(seen, "at the beginning")
        slow(lab, guest, seen, "n2:disk0")
        frozen(lab, guest, seen, "n3:disk0")
        fast_fails(lab, guest, seen, "n2:disk0")
        spare_takes_over(lab, guest, seen, "n3:disk0")
        evacuated(lab, guest, seen)
        acked = list(seen.acked)
    guest.verify(acked)
    check(len(seen.boots) == 1 and seen.errors == 0, f"restarted or saw errors: {seen.boots} {seen.errors}")
    note(f"{sum(acked)} records are there")


if __name__ == "__main__":
    run("disks", scenario, limit_s=200, options=("--lossy", "--seed", "1"))
