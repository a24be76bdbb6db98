#!/usr/bin/env python3
"""Storage links: under a verifying write load to three copies one storage link of a node is cut, then both, then it comes back.
No replica leaves the in-sync set, no request fails or reads back wrong; the state is shown and an event tells of it."""

import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import LAB, MIB, cables, check, note, run, wait_for  # noqa: E402

LOAD = ["fio", "--name=links", "--ioengine=nbd", "--uri=nbd+unix:///links?socket=/run/cohort/nbd.sock", "--rw=randwrite",
        "--bsrange=4k-256k", "--iodepth=16", "--size=256m", "--rate=12m", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
        "--output-format=json"]
HOLD_S = 4  # longer than a silent replica is waited for (2.5 s)


def links(lab, seen_from, node):
    return {link["address"]: link["state"] for link in lab.api_on(seen_from, "GET", f"/nodes/{node}")["storage_links"]}


def generations(lab):
    return {s["index"]: (s["generation"], s["in_sync"]) for s in lab.api("GET", "/volumes/links")["shards"]}


def down_and_up(lab, load, cut):
    """`cut`: cables of n2 that are out for a while; the rest has to carry on."""
    addresses = cables.storage_addresses(lab.lab, lab.node("n2"))
    before = generations(lab)
    for cable in cut:
        lab.cut("n2", cable)
    lost = [addresses[int(cable[4:])] for cable in cut]
    wait_for(lambda: all(links(lab, "n1", "n2")[a] == "down" for a in lost), 10, f"{lost} to be seen as down")
    time.sleep(HOLD_S)  # the length of the outage is the test's input
    check(load.poll() is None, "the load ended before the outage did")
    now = generations(lab)
    check(now == before, f"{', '.join(cut)} out: the in-sync set changed from {before} to {now} (generation, members)")
    for cable in cut:
        lab.heal("n2", cable)
    wait_for(lambda: "down" not in links(lab, "n1", "n2").values(), 20, "the links to come back")
    check(generations(lab) == before, "the in-sync set changed when the links came back")
    note(f"{', '.join(cut)} of n2 out and back: every copy stayed in sync")


def scenario(lab, args):
    lab.api("POST", "/volumes", {"name": "links", "size_bytes": 256 * MIB, "replicas": 3})
    lab.exec("n1", *LOAD[:5], "--rw=write", "--bs=1m", "--size=16m")  # makes the shard; n1 owns it
    wait_for(lambda: all(n == 3 for _, n in generations(lab).values()), 30, "three copies in sync")
    check(sorted(links(lab, "n1", "n2").values()) == ["up"] * 3, f"not all links are up: {links(lab, 'n1', 'n2')}")
    argv = [LAB, "exec", "--id", lab.id, "n1", *LOAD]
    load = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        down_and_up(lab, load, ["stor0"])
        down_and_up(lab, load, ["stor0", "stor1"])
        text, _ = load.communicate(timeout=90)
    finally:
        load.kill()
    check(load.returncode == 0, f"the load failed: {text[-2000:]}")
    result = json.loads(text[text.index("{"):text.rindex("}") + 1])["jobs"][0]
    check(result["error"] == 0, f"fio reports error {result['error']}")
    note(f"verified; slowest write {result['write']['clat_ns']['max'] / 1e9:.2f} s")
    told = [e for e in lab.api("GET", "/events") if "storage link" in e["message"]]
    check(any(e["severity"] == "warning" for e in told), "no warning about the lost link")
    check(any("works again" in e["message"] for e in told), "no word that the link works again")


if __name__ == "__main__":
    run("links", scenario, limit_s=150, options=["--storage-links", "2"])
