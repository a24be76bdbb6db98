#!/usr/bin/env python3
"""The main job: lose the node of a guest, at a random moment and under write load, and lose nothing else.

Each round: the power of the guest's node is cut. The guest must answer again from another node, and every record whose
fsync it had reported must be there and intact. Then the node returns, catches up (a Task shows it) and the volume is healthy
again; the next round takes whichever node has the guest now. The disks forget what was not synced (lab up --lossy).

    tests/integration/main_job.py --rounds 10 [--seed N]"""

import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import Watcher, check, note, print_table, run, wait_for  # noqa: E402


def one_round(lab, guest, number, rng):
    row = guest.row()
    victim, volume = row["host"], guest.disk()
    lab.probe_on(rng.choice(lab.others(victim)))
    guest.set_load(2)
    with Watcher(guest) as before:
        wait_for(lambda: before.answers > 5 and len(before.acked) > 2 and before.acked[1] > 0, 30, "the write load")
        time.sleep(rng.uniform(0.2, 3.0))  # the moment of the failure is the test's random input
        lab.kill(victim)
        cut_at = time.monotonic()
    check(before.errors == 0, f"the guest saw {before.errors} I/O errors before the cut")
    wait_for(lambda: any(lab.guest_processes(n) for n in lab.others(victim)), 60, "a new guest process", 0.02)
    process_s = time.monotonic() - cut_at
    after = guest.wait_http(90, other_than=before.boots[-1])
    http_s = time.monotonic() - cut_at
    row = guest.row()
    check(row["host"] != victim, f"the guest is still said to be on {victim}")
    guest.verify(before.acked)
    check(after["errors"] == 0, f"the guest saw I/O errors: {after}")
    note(f"round {number}: {victim} lost, guest on {row['host']}: process after {process_s:.2f} s, HTTP after {http_s:.2f} s, "
         f"{sum(before.acked)} records verified")

    known = {t["id"] for t in lab.tasks("resync")}
    returned_at = time.monotonic()
    lab.start(victim)
    lab.wait_node(victim, "up")
    lab.wait_healthy(volume)
    healthy_s = time.monotonic() - returned_at
    tasks = [t for t in lab.tasks("resync") if t["id"] not in known]
    check(tasks, "no resync task was shown while the returned node caught up")
    final = guest.last(5)
    check(final["errors"] == 0, f"the guest saw I/O errors during the resync: {final}")
    guest.verify(final["writers"])
    return {"round": number, "lost": victim, "now on": row["host"], "process s": f"{process_s:.2f}", "HTTP s": f"{http_s:.2f}",
            "records": sum(before.acked), "healthy s": f"{healthy_s:.1f}"}


def scenario(lab, args):
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    note(f"seed {seed}")
    rng = random.Random(seed)
    guest = lab.make_guest("job", host=rng.choice(lab.names))
    rows = [one_round(lab, guest, i + 1, rng) for i in range(args.rounds)]
    print_table("from the power cut to …", rows)


def arguments(parser):
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int)


if __name__ == "__main__":
    run("main_job", scenario, limit_s=int(os.environ.get("COHORT_TEST_LIMIT", 280)), options=["--lossy"], arguments=arguments)
