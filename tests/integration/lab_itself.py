#!/usr/bin/env python3
"""The lab's own promises, without a cluster: nodes reach each other, cut, heal, kill and start do what they say, two labs do
not meet, exec passes the exit status on, and `down` leaves no process, namespace link, control group or file."""

import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import Failure, LabError, TestLab, cables, check, note, skip, state, util, wait_for  # noqa: E402


def reaches(lab, a, b, address=None):
    return "1 received" in lab.exec(a, "ping", "-c1", "-W1", address or lab.node(b)["address"], check_status=False)


def ping_ms(lab, a, b):
    """The quickest of three."""
    text = lab.exec(a, "ping", "-c3", "-i0.3", "-W1", lab.node(b)["address"])
    return min(float(t) for t in re.findall(r"time=([\d.]+)", text))


def host_view():
    """What the lab must not touch: the host's interfaces, addresses, routes and mounts. (Named namespaces of other
    programs are mounts, too, and not our business.)"""
    lines = [line for args in (["-br", "link"], ["-br", "-4", "addr"], ["route"]) for line in util.run(["ip", *args]).stdout.splitlines()]
    with open("/proc/self/mounts") as f:
        return set(lines) | {line.strip() for line in f if " /run/netns" not in line}


def checks(a, b):
    a.up()
    b.up()
    wait_for(lambda: reaches(a, "n1", "n2") and reaches(b, "n1", "n2"), 10, "the nodes to reach each other")
    a.command("delay", "n2", "40")
    wait_for(lambda: reaches(a, "n1", "n2"), 10, "the delayed node")
    took = ping_ms(a, "n1", "n2")
    check(80 <= took < 160, f"a delay of 40 ms each way gives a ping of {took} ms")
    a.cut("n2")
    check(not reaches(a, "n1", "n2"), "a cut and delayed node is reached")
    a.heal("n2")
    a.command("delay", "n2", "0")
    wait_for(lambda: reaches(a, "n1", "n2"), 10, "the node without delay")
    check(ping_ms(a, "n1", "n2") < 40, "the delay stayed")
    storage = cables.storage_addresses(a.lab, a.node("n2"))[0]
    check(reaches(a, "n1", "n2", storage), "the storage link does not work")
    a.cut("n2", "stor0")
    check(reaches(a, "n1", "n2") and not reaches(a, "n1", "n2", storage), "not just the storage link is cut")
    a.heal("n2", "stor0")
    check(reaches(a, "n1", "n2", storage), "the storage link did not heal")
    a.cut("n2")
    check(not reaches(a, "n1", "n2") and not reaches(a, "n1", "n2", storage), "a cut node is reached")
    check(reaches(b, "n1", "n2"), "a cut in one lab cut the other")
    a.heal("n2")
    wait_for(lambda: reaches(a, "n1", "n2"), 10, "the healed node")
    a.kill("n2")
    check(not reaches(a, "n1", "n2"), "a dead node answers")
    a.exec("n1", "sh", "-c", "echo kept > /var/lib/cohort/mark")
    a.start("n2")
    wait_for(lambda: reaches(a, "n1", "n2"), 10, "the returned node")
    a.kill("n1")
    a.start("n1")
    check(a.exec("n1", "cat", "/var/lib/cohort/mark") == "kept\n", "a node's files did not survive its power cut")
    check("n1" == a.exec("n1", "hostname").strip(), "exec is not inside the node")
    done = util.run([os.path.join(state.ROOT, "deploy/lab"), "exec", "--id", a.id, "n1", "sh", "-c", "exit 7"], check=False)
    check(done.returncode == 7, f"exec gave {done.returncode} for an exit status of 7")
    switchd = a.processes("n1", "ovs-vswitchd")[0]
    os.kill(switchd, 9)
    wait_for(lambda: a.processes("n1", "ovs-vswitchd") not in ([], [switchd]) and reaches(a, "n1", "n2"), 20, "the node's switch to come back")
    for bad in (["kill", "n9"], ["start", "n1"], ["up", "--nodes", "3"], ["exec", "n1"]):
        try:
            a.command(*bad)
        except LabError:
            continue
        check(False, f"lab {' '.join(bad)} was accepted")
    a.command("up", "--daemon", "/bin/true", "--no-cluster")  # again: does nothing


def main():
    if os.geteuid() != 0:
        skip("needs root for namespaces")
    before = host_view()
    options = ["--no-cluster", "--daemon", os.path.join(state.ROOT, "tests/lib/idle")]
    labs = [TestLab("self-a", 2, state.ROOT, options), TestLab("self-b", 2, state.ROOT, options)]
    labs[1].id += "b"
    labs[1].lab = state.Lab(labs[1].id)
    try:
        checks(*labs)
    finally:
        for lab in labs:
            lab.down()
    for lab in labs:
        check(not lab.lab.strays(), f"processes are left: {lab.lab.strays()}")
        check(not os.path.exists(lab.lab.dir), f"{lab.lab.dir} is left")
        left = [n for n in (os.listdir(state.NETNS_DIR) if os.path.isdir(state.NETNS_DIR) else []) if lab.id in n]
        check(not left, f"namespace names are left: {left}")
        groups = util.run(["find", "/sys/fs/cgroup", "-maxdepth", "3", "-name", f"cohort-lab-{lab.id}"], check=False).stdout
        check(not groups, f"control groups are left: {groups}")
    changed = before ^ host_view()
    check(not changed, f"the host's interfaces, routes or mounts changed: {changed}")
    note("PASS")


if __name__ == "__main__":
    try:
        main()
    except (Failure, LabError) as e:
        note(f"FAIL: {e}")
        sys.exit(1)
