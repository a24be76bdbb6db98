#!/usr/bin/env python3
"""Live migration under write load: no record lost, the service answers meanwhile, downtime and lost pings are measured. A
migration whose destination dies in the middle leaves the guest running at the source."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import LabError, Pings, Watcher, check, note, print_table, run, wait_for  # noqa: E402


def settled(guest, host, timeout=120):
    def done():
        row = guest.row()
        return row if row["host"] == host and row["state"] == "running" and not row["migrate_to"] else None
    return wait_for(done, timeout, f"the guest to run on {host}, not migrating")


def migrate(lab, guest, to):
    before = guest.last()
    lab.probe_on(to)
    source = guest.row()["host"]
    with Watcher(guest, 0.01) as seen:
        pings = Pings(lab, guest)
        wait_for(lambda: seen.answers > 20, 20, "the watcher")
        start = time.monotonic()
        lab.api("POST", f"/vms/{guest.name}/migrate", {"to": to})
        settled(guest, to)
        took = time.monotonic() - start
        answers = seen.answers
        wait_for(lambda: seen.answers > answers + 50, 20, "answers from the new place")
        lost = pings.stop()
    check(seen.boots == [before["boot_id"]], "the guest was restarted instead of migrated")
    check(seen.errors == 0, "the guest saw I/O errors")
    guest.verify(seen.acked)
    wait_for(lambda: not lab.guest_processes(source), 30, "the source's process to end")
    check(len(lab.guest_processes(to)) == 1, f"not exactly one guest process on {to}")
    return {"from": source, "to": to, "total s": f"{took:.2f}", "ping gap ms": lost["gap_ms"], "lost pings": f"{lost['lost']}/{lost['sent']}",
            "HTTP gap s": f"{seen.gap_s:.2f}", "records": sum(seen.acked)}


def destination_dies(lab, guest, to):
    source, before = guest.row()["host"], guest.last()
    lab.probe_on(next(n for n in lab.names if n not in (source, to)))
    with Watcher(guest) as seen:
        wait_for(lambda: seen.answers > 5, 20, "the watcher")
        lab.api("POST", f"/vms/{guest.name}/migrate", {"to": to})
        wait_for(lambda: lab.guest_processes(to), 60, "the destination's process", 0.002)
        lab.kill(to)
        row = settled(guest, source, 120)
        answers = seen.answers
        wait_for(lambda: seen.answers > answers + 20, 60, "answers from the source")
    check(seen.boots == [before["boot_id"]], "the guest was restarted")
    check(seen.errors == 0, "the guest saw I/O errors")
    guest.verify(seen.acked)
    note(f"destination {to} died in the middle: the guest runs on {row['host']} as before, silent for {seen.gap_s:.2f} s")
    lab.start(to)
    lab.wait_node(to, "up")
    lab.wait_healthy(guest.disk())


def refusals(lab, guest):
    host = guest.row()["host"]
    for to, why in ((host, "to where it is"), ("nowhere", "to a node that is none")):
        try:
            lab.api("POST", f"/vms/{guest.name}/migrate", {"to": to})
        except LabError as e:
            note(f"refused {why}: {e}")
        else:
            check(False, f"a migration {why} was accepted")


def scenario(lab, args):
    guest = lab.make_guest("mig")
    guest.set_load(2)
    refusals(lab, guest)
    rows = []
    for _ in range(args.rounds):
        rows.append(migrate(lab, guest, lab.others(guest.row()["host"])[0]))
    print_table("live migration under write load", rows)
    destination_dies(lab, guest, lab.others(guest.row()["host"])[0])


if __name__ == "__main__":
    run("migrate", scenario, limit_s=340, arguments=lambda p: p.add_argument("--rounds", type=int, default=3))
