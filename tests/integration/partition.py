#!/usr/bin/env python3
"""A cable is pulled. A cut that heals within the lease disturbs nothing. A longer one: the guest on the cut node is paused by
the lease and runs again elsewhere; when the cable is back the old copy is killed. Never are two copies on the network, and
writes of the fenced side are refused."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
import rpc  # noqa: E402
from lab import Watcher, check, note, run, util, wait_for  # noqa: E402

PAUSED = 0.05  # share of a core below which a guest counts as standing still


def short_cut(lab, guest):
    row = guest.row()
    with Watcher(guest) as seen:
        wait_for(lambda: seen.answers > 5, 20, "the watcher")
        lab.cut(row["host"])
        time.sleep(1.5)  # less than the lease: the length of the outage is the test's input
        lab.heal(row["host"])
        answers = seen.answers
        wait_for(lambda: seen.answers > answers + 20, 30, "answers after a short cut")
    now = guest.row()
    check((now["host"], now["generation"]) == (row["host"], row["generation"]), f"a short cut moved the guest: {row} -> {now}")
    check(len(seen.boots) == 1, "a short cut restarted the guest")
    check(seen.errors == 0, "a short cut gave the guest I/O errors")
    guest.verify(seen.acked)
    note(f"a cut of 1.5 s: same guest, silent for {seen.gap_s:.2f} s, no error")


def late_write(lab, guest, old_host, old_epoch):
    """What the fenced owner would still send if its lease and its daemon were both mad: a write under its own certificate
    and its old epoch. Every copy that has the new epoch must refuse it as stale."""
    volume = lab.api("GET", f"/volumes/{guest.disk()}")
    check(volume["epoch"] > old_epoch, f"the volume's epoch was not raised: {volume['epoch']}")
    pki = os.path.join(lab.lab.node_dir(lab.node(old_host)), "lib/cohort/pki")
    disks = {d["id"]: d for d in lab.api("GET", "/disks")}
    refused = 0
    for copy in volume["shards"][0]["replicas"]:
        if copy["node"] == old_host:
            continue
        to = lab.node(copy["node"])
        c = rpc.Connection(util.socket_in(to["process"]["pid"], (to["address"], 7701), 5), os.path.join(pki, "node.pem"),
                           os.path.join(pki, "node.key"))
        data = os.urandom(4096)
        try:
            c.call(rpc.STORE_WRITE, rpc.write_request(volume["id"], 0, copy["disk_id"], disks[copy["disk_id"]]["incarnation"],
                                                      old_epoch, 1 << 40, data), data)
            check(False, f"{copy['node']} took a write of the fenced epoch {old_epoch}")
        except rpc.Refused as e:
            check(e.code == rpc.E_STALE, f"{copy['node']} refused the late write for another reason: {e}")
            note(f"late write of epoch {old_epoch} refused by {copy['node']}: {e}")
            refused += 1
        finally:
            c.close()
    check(refused > 0, "no copy outside the fenced node: nothing was shown")


def long_cut(lab, guest):
    row = guest.row()
    old_host, old_boot = row["host"], guest.last()["boot_id"]
    old_pid, old_epoch = lab.guest_processes(old_host)[0], lab.api("GET", f"/volumes/{guest.disk()}")["epoch"]
    with Watcher(guest) as before:
        wait_for(lambda: before.answers > 5, 20, "the watcher")
        lab.cut(old_host)
        cut_at = time.monotonic()
    wait_for(lambda: guest.row()["host"] not in (old_host, ""), 60, "the guest to be placed elsewhere")
    share = lab.cpu_share(old_pid)
    check(share < PAUSED, f"the cut-off guest still runs ({share:.0%} of a core) while another copy is started")
    after = guest.wait_http(90, other_than=old_boot)
    note(f"runs on {guest.row()['host']} {time.monotonic() - cut_at:.2f} s after the cut; the old copy stands still")
    guest.verify(before.acked)
    late_write(lab, guest, old_host, old_epoch)

    with Watcher(guest) as during:
        lab.heal(old_host)
        wait_for(lambda: old_pid not in lab.guest_processes(old_host), 60, "the old copy's end after healing")
        lab.wait_node(old_host, "up")
        lab.probe_on(old_host)  # from the old node, too, only the new copy may answer
        answers = during.answers
        wait_for(lambda: during.answers > answers + 20, 30, "answers as seen from the healed node")
    check(old_boot not in during.boots and len(during.boots) == 1, f"two copies were on the network: {during.boots}")
    check(during.boots[0] == after["boot_id"], "the guest was restarted by the healing")
    lab.wait_healthy(guest.disk())
    final = guest.last(5)
    check(final["errors"] == 0, f"I/O errors in the guest: {final}")
    guest.verify([max(a, b) for a, b in zip(before.acked, during.acked)])
    note("healed: the old copy was killed, the new one undisturbed")


def scenario(lab, args):
    guest = lab.make_guest("part")
    guest.set_load(2)
    short_cut(lab, guest)
    long_cut(lab, guest)


if __name__ == "__main__":
    run("partition", scenario, limit_s=280)
