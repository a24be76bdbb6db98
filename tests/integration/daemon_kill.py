#!/usr/bin/env python3
"""cohortd alone is killed (SIGKILL) on a node whose guest writes. The guest and its process live on; it sees a pause but no
error and no lost record: requests in flight are taken up by the next daemon."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import Watcher, check, note, print_table, run, wait_for  # noqa: E402


def one_round(lab, guest, number):
    row, boot = guest.row(), guest.last()["boot_id"]
    host = row["host"]
    pid = lab.guest_processes(host)
    with Watcher(guest, 0.01) as seen:
        wait_for(lambda: seen.answers > 10, 20, "the watcher")
        old = lab.kill_daemon(host)
        wait_for(lambda: lab.processes(host, "cohortd") not in ([], [old]), 30, "cohortd to be started again")
        acked = list(seen.acked)
        # All writers have got a new number through the new daemon: the disk serves again.
        wait_for(lambda: all(b > a + 20 for a, b in list(zip(acked, seen.acked))[1:3]), 60, "the guest's writes to go on")
    check(lab.guest_processes(host) == pid, "the guest's process did not survive its daemon")
    check(seen.boots == [boot], "the guest was restarted")
    check(seen.errors == 0, f"the guest saw {seen.errors} I/O errors")
    guest.verify(seen.acked)
    now = guest.row()
    check((now["host"], now["generation"]) == (host, row["generation"]), f"the guest was moved: {row} -> {now}")
    return {"round": number, "node": host, "longest HTTP silence s": f"{seen.gap_s:.2f}", "records": sum(seen.acked)}


def scenario(lab, args):
    guest = lab.make_guest("dmn")
    guest.set_load(2)
    print_table("cohortd killed", [one_round(lab, guest, i + 1) for i in range(args.rounds)])
    # The daemons of the other nodes hold the guest's other copies.
    with Watcher(guest) as seen:
        wait_for(lambda: seen.answers > 5, 20, "the watcher")
        for n in lab.others(guest.row()["host"]):
            old = lab.kill_daemon(n)
            wait_for(lambda: lab.processes(n, "cohortd") not in ([], [old]), 30, "cohortd to be started again")
            lab.wait_node(n, "up")
            lab.wait_healthy(guest.disk())
    check(seen.errors == 0, f"the guest saw {seen.errors} I/O errors")
    guest.verify(seen.acked)
    note("replica nodes' daemons killed, too: no error, no lost record")


if __name__ == "__main__":
    run("daemon_kill", scenario, limit_s=240, arguments=lambda p: p.add_argument("--rounds", type=int, default=5))
