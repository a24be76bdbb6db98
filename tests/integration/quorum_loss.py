#!/usr/bin/env python3
"""All cables are pulled: no node can hold a lease, guests pause, no I/O fails. When the cables are back everything goes on by
itself: the same guest, without an error, without a lost record."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import Watcher, check, note, run, wait_for  # noqa: E402


def scenario(lab, args):
    guest = lab.make_guest("quo")
    guest.set_load(2)
    row, boot = guest.row(), guest.last()["boot_id"]
    lab.probe_on(row["host"])  # beside the guest: silence then means that it stands still
    with Watcher(guest) as before:
        wait_for(lambda: before.answers > 5, 20, "the watcher")
        for n in lab.names:
            lab.cut(n)
        cut_at = time.monotonic()
        wait_for(lambda: time.monotonic() - before._last > 3, 60, "the guest to pause")
    pid = lab.guest_processes(row["host"])[0]
    check(lab.cpu_share(pid) < 0.05, "the guest is silent but not paused")
    note(f"all cables out: the guest stands still {before._last - cut_at:.2f} s later")
    time.sleep(args.outage)  # the length of the outage is the test's input

    healed_at = time.monotonic()
    for n in lab.names:
        lab.heal(n)
    got = guest.wait_http(120)
    note(f"answers again {time.monotonic() - healed_at:.2f} s after healing")
    check(got["boot_id"] == boot, "the guest was restarted")
    with Watcher(guest) as after:
        wait_for(lambda: after.answers > 20 and after.acked[0] > before.acked[0], 60, "the guest's records to go on")
    check(after.errors == 0, f"the guest saw {after.errors} I/O errors")
    for n in lab.names:
        lab.wait_node(n, "up")
    now = guest.wait_state("running")
    check(now["host"] == row["host"] and now["generation"] == row["generation"], f"the guest was moved: {row} -> {now}")
    lab.wait_healthy(guest.disk())
    guest.verify(after.acked)
    note("same guest, no error, no lost record")


if __name__ == "__main__":
    run("quorum_loss", scenario, limit_s=240, arguments=lambda p: p.add_argument("--outage", type=float, default=10))
