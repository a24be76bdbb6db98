#!/usr/bin/env python3
"""Volumes of class memory: their copies live in the nodes' memory and nowhere else. They outlive a daemon that is killed, and one copy
outlives the power cut of the other's node, which gets its copy anew. When both nodes lose power the volume is lost and says so: its
I/O waits until it is reset, then it is empty. A volume on storage beside it keeps everything all the time."""

import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import LAB, MIB, check, note, run, wait_for  # noqa: E402

SIZE_MIB = 48


def uri(name):
    return f"nbd+unix:///{name}?socket=/run/cohort/nbd.sock"


def disk(lab, name):
    return lab.api("GET", f"/disks/{name}")


def volume(lab, name):
    return lab.api("GET", f"/volumes/{name}")


def copies(lab, name):
    """{(node, disk): in sync} of all shards."""
    return {(c["node"], c["disk"]): c["in_sync"] for s in volume(lab, name)["shards"] for c in s["replicas"]}


def holders(lab, name):
    return sorted(node for node, _ in copies(lab, name))


def write(lab, node, name, data):
    lab.exec(node, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", data, uri(name), timeout=60)


def verify(lab, node, name, data):
    lab.exec(node, "qemu-img", "compare", "-f", "raw", "-F", "raw", data, uri(name), timeout=60)


def random_file(path):
    with open(path, "wb") as f:
        f.write(os.urandom(SIZE_MIB // 2 * MIB))
        f.truncate(SIZE_MIB * MIB)
    return path


def mounts(lab, node):
    return [line.split() for line in lab.exec(node, "cat", "/proc/mounts").splitlines() if line.startswith("cohort-memory ")]


def once_let_go(lab, *argv):
    """Refused while the node of its last client still owns the volume: for a moment."""
    wait_for(lambda: lab.cli(*argv) is not False, 30, " ".join(argv), 0.3)


def offer(lab):
    lab.refused("--memory SIZE", "volume", "create", "scratch", "--size", f"{SIZE_MIB}M", "--class", "memory")
    lab.refused("may take half", "disk", "add", "n1:ram", "--memory", "1T")
    for node in lab.names:
        check(not mounts(lab, node), f"{node} gives memory that nobody asked for")
        lab.cli("disk", "add", f"{node}:ram", "--memory", "256M")
    for node in lab.names:
        wait_for(lambda: disk(lab, f"{node}:ram")["size_bytes"] > 0, 30, f"the memory of {node}")
        where, = mounts(lab, node)
        check(where[2] == "tmpfs" and {"nosuid", "nodev", "noexec", "mode=700", "size=262144k"} <= set(where[3].split(",")), f"mounted as {where}")
    size = disk(lab, "n1:ram")["size_bytes"]
    check(96 * MIB <= size < 256 * MIB, f"of 256 MiB a volume may use {size >> 20}")
    note(f"three disks in memory, {size >> 20} MiB each may be used")


def make(lab, node, data):
    text = lab.command("cohort", "volume", "create", "scratch", "--size", f"{SIZE_MIB}M", "--class", "memory", "--replicas", "2")
    check("lost with its last replica" in text, f"nobody is warned: {text}")
    lab.cli("volume", "create", "kept", "--size", f"{SIZE_MIB}M", "--replicas", "3")
    for name in ("scratch", "kept"):
        write(lab, node, name, data)
        verify(lab, node, name, data)
    check(len(copies(lab, "scratch")) == 2 and all(d == "ram" for _, d in copies(lab, "scratch")), f"scratch is on {copies(lab, 'scratch')}")
    check(len(copies(lab, "kept")) == 3 and all(d == "disk0" for _, d in copies(lab, "kept")), f"kept is on {copies(lab, 'kept')}")
    check(volume(lab, "scratch")["class"] == "memory" and volume(lab, "kept")["class"] == "storage", "the class is not shown")


def daemons_killed(lab, node, data):
    """Both that have a copy, at once: nothing but the memory has it then."""
    both = holders(lab, "scratch")
    was = {n: disk(lab, f"{n}:ram")["incarnation"] for n in both}
    pids = {n: lab.kill_daemon(n) for n in both}
    for n in both:
        wait_for(lambda: lab.processes(n, "cohortd") not in ([], [pids[n]]), 30, f"{n}'s daemon to be started again")
    for name in ("scratch", "kept"):
        wait_for(lambda: verify(lab, node, name, data) is None, 30, f"{name} to be served again", 0.5)
        lab.wait_healthy(name, 60)
    now = {n: disk(lab, f"{n}:ram")["incarnation"] for n in both}
    check(was == now, f"a restart of the daemon cost the contents: incarnations {was}, then {now}")
    note("both daemons killed: the contents are there")


def power_cut(lab, victim, witness, data):
    """Its copy is gone with its memory, and made anew from the other one."""
    resyncs = {t["id"] for t in lab.tasks("resync")}
    was = disk(lab, f"{victim}:ram")["incarnation"]
    lab.kill(victim)
    lab.wait_node(victim, "dead")
    for name in ("scratch", "kept"):
        verify(lab, witness, name, data)
    check(volume(lab, "scratch")["health"] == "degraded", f"scratch is {volume(lab, 'scratch')['health']}")
    lab.start(victim)
    lab.wait_node(victim, "up")
    for name in ("scratch", "kept"):
        lab.wait_healthy(name, 60)
    check(disk(lab, f"{victim}:ram")["incarnation"] > was, "memory that came up empty is believed")
    check(all(copies(lab, "scratch").values()) and victim in holders(lab, "scratch"), f"{victim}'s copy was not made anew: {copies(lab, 'scratch')}")
    task = next((t for t in lab.tasks("resync") if t["id"] not in resyncs and t["object"] == "volume scratch"), None)
    check(task, "no task shows that the copy is made anew")
    note(f"{victim} lost power: its copy was made anew")


def all_lost(lab, data, zeroes):
    both = holders(lab, "scratch")
    for n in both:
        lab.kill(n)
    for n in both:
        lab.start(n)
    for n in both:
        lab.wait_node(n, "up")
    wait_for(lambda: volume(lab, "scratch")["health"] == "lost" or None, 30, "the volume to be called lost")
    row = volume(lab, "scratch")
    check(row["state"] == "lost" and "cohort volume reset scratch" in row["health_reason"], f"what is to be done is not said: {row}")

    def told():
        return [e for e in lab.api("GET", "/events?limit=200") if e["object"] == "volume scratch" and e["severity"] == "alarm"]
    wait_for(told, 10, "the alarm")
    check("cohort volume reset scratch" in told()[0]["message"], f"the alarm: {told()[0]['message']}")
    lab.wait_healthy("kept", 60)
    verify(lab, lab.names[0], "kept", data)
    note(f"both nodes lost power: {told()[0]['message']}")
    # A request waits, for ever: neither an error nor data. Its client keeps the volume from being reset.
    job = subprocess.Popen([LAB, "exec", "--id", lab.id, both[0], "qemu-io", "-f", "raw", "-r", "-c", "read 0 64k", uri("scratch")],
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: volume(lab, "scratch")["owner"], 20, "a client to use the lost volume")
        lab.refused("in use on node", "volume", "reset", "scratch")
        check(job.poll() is None, f"a request to a lost volume ended: {job.poll()}")
    finally:
        for pid in lab.processes(both[0], "qemu-io"):
            os.kill(pid, 9)
        job.wait(20)
    lab.refused("on storage", "volume", "reset", "kept")

    once_let_go(lab, "volume", "reset", "scratch")
    check(volume(lab, "scratch")["health"] == "healthy" and volume(lab, "scratch")["lost_ms"] == 0, f"after the reset: {volume(lab, 'scratch')}")
    verify(lab, lab.names[0], "scratch", zeroes)
    write(lab, both[0], "scratch", data)
    verify(lab, both[1], "scratch", data)
    check(sorted(copies(lab, "scratch").values()) == [True, True], f"after the reset its copies are {copies(lab, 'scratch')}")
    lab.refused("is not lost", "volume", "reset", "scratch")
    note("reset: empty, and in use again")


def given_back(lab):
    once_let_go(lab, "volume", "delete", "scratch")
    for node in lab.names:
        wait_for(lambda: disk(lab, f"{node}:ram")["shard_copies"] == 0, 30, f"{node}:ram to be empty")
        lab.cli("disk", "remove", f"{node}:ram")
        wait_for(lambda: not mounts(lab, node), 30, f"{node}'s memory to be free")
    lab.cli("disk", "add", "n1:again", "--memory", "256M")
    wait_for(lambda: disk(lab, "n1:again")["size_bytes"] > 0 and mounts(lab, "n1"), 30, "memory that is given a second time")
    note("removed: nothing is mounted any more")


def scenario(lab, args):
    scratch = os.path.join(lab.lab.dir, "scratch")
    os.makedirs(scratch, exist_ok=True)
    data, zeroes = random_file(os.path.join(scratch, "data")), os.path.join(scratch, "zeroes")
    with open(zeroes, "wb") as f:
        f.truncate(SIZE_MIB * MIB)
    offer(lab)
    make(lab, "n1", data)
    away = next(n for n in holders(lab, "scratch") if n != "n1")
    daemons_killed(lab, lab.others("n1", away)[0], data)
    power_cut(lab, away, "n1", data)
    power_cut(lab, "n1", away, data)  # what was made anew is the only copy now
    all_lost(lab, data, zeroes)
    lab.wait_healthy("kept", 60)
    verify(lab, "n1", "kept", data)
    given_back(lab)


if __name__ == "__main__":
    run("memory_volume", scenario, limit_s=150)
