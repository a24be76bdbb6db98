"""Nodes and the switch between them.

    switch namespace            node namespace (pid, mount, net, uts, ipc, cgroup)
    br0 ── p1 ═══ veth ═══ up0 ── br-phy 192.0.2.11/24 (ovs-vswitchd)
     ├──── p2 ═══ …                 init.py (pid 1): ovsdb-server, ovs-vswitchd, cohortd
     └──── p3 ═══ …                 /var/lib, /var/log, /etc/cohort, /etc/openvswitch, /srv: own directories on disk
    st0 ── s0p1 ═══ veth ═══ stor0 198.51.100.11/26 (cables.py)

The host keeps no interface, route or mount of all this."""

import os
import sys

from . import cables, cgroups, disks, util
from .state import ROOT
from .util import LabError, say

HERE = os.path.dirname(os.path.abspath(__file__))
INIT = os.path.join(HERE, "init.py")


def check_disk(path):
    """The journal needs O_DIRECT; tmpfs, for one, has none."""
    name = os.path.join(path, ".o_direct")
    try:
        os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
    except OSError as e:
        raise LabError(f"{path} is on a file system without O_DIRECT ({e.strerror}); put the repository on a real disk") from None
    finally:
        if os.path.exists(name):
            os.unlink(name)


def start_switch(lab):
    if util.alive(lab.state.get("switch")):
        return
    pid = util.spawn(["unshare", "--net", "sleep", "infinity"], lab.path("switch.log"), lab.environment())
    lab.state["switch"] = util.identity(pid)
    lab.save()
    own = os.stat("/proc/self/ns/net").st_ino
    util.wait_for(lambda: util.alive(lab.state["switch"]) and os.stat(f"/proc/{pid}/ns/net").st_ino != own, 10,
                  "the switch's namespace", interval=0.005)
    util.ip_in(pid, "link", "set", "lo", "up")
    cables.make_bridges(lab)
    lab.name_netns("switch", pid)


def write_config(lab, node):
    d = lab.node_dir(node)
    for sub in ("etc/cohort", "disks/fast", "disks/capacity"):
        os.makedirs(os.path.join(d, sub), exist_ok=True)
    check_disk(os.path.join(d, "disks"))
    conf = {
        "node_name": node["name"], "address": node["address"], "state_dir": "/var/lib/cohort", "run_dir": "/run/cohort",
        "storage_addresses": cables.storage_addresses(lab, node),
        "uplink": "", "control_port": 7700, "storage_port": 7701, "migrate_port": 7702, "api_port": 7443, "nbd_port": 10809,
        "journal_bytes": lab.state["journal_bytes"], "election_ms": lab.state["election_ms"],
        "disks": [{"name": "disk0", "fast": "/srv/fast", "capacity": "/srv/capacity"}],
    }
    if lab.state.get("disk_limit_bytes"):
        conf["disks"][0]["limit_bytes"] = lab.state["disk_limit_bytes"]
    target = os.path.join(d, "etc/cohort/cohortd.json")
    if not os.path.exists(target):  # what somebody changed by hand stays
        util.write_json(target, conf)
    util.write_json(os.path.join(d, "node.json"), {
        "name": node["name"], "address": node["address"], "dir": d, "mac": f"0a:00:00:00:00:{node['index']:02x}",
        "cgroups": cgroups.hierarchies(), "daemon": lab.state["daemon"], "lossy": lab.state.get("lossy") is not None})


def child_of(parent):
    """The process whose parent is `parent`; None while there is none."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", "rb") as f:
                if int(f.read().rpartition(b")")[2].split()[1]) == parent:
                    return int(pid)
        except OSError:
            pass
    return None


def start(lab, node, timeout=60):
    """Power on. Returns when the node's init has its switch up and has started the daemon."""
    if util.alive(node.get("process")):
        raise LabError(f"{node['name']} is on already")
    start_switch(lab)
    write_config(lab, node)
    d = lab.node_dir(node)
    ready = os.path.join(d, "ready")
    if os.path.exists(ready):
        os.unlink(ready)
    disks.start(lab, node)
    groups = cgroups.create(lab.id, node["name"])
    outer = util.spawn(
        ["unshare", "--fork", "--kill-child=SIGKILL", "--pid", "--mount", "--net", "--uts", "--ipc", "--cgroup", "--mount-proc",
         "--propagation", "slave", sys.executable, "-B", INIT, os.path.join(d, "node.json")],
        os.path.join(d, "init.log"), dict(lab.environment(), PATH=node_path(lab)), groups)
    who = util.identity(outer)
    pid = util.wait_for(lambda: child_of(outer) or not util.alive(who), 10, f"{node['name']}'s namespaces", interval=0.005)
    if pid is True:
        raise LabError(f"{node['name']} did not start:\n{util.tail(os.path.join(d, 'init.log'))}")
    cgroups.leave(groups, outer)
    node["process"] = util.identity(pid)
    lab.save()
    own = os.stat("/proc/self/ns/net").st_ino
    util.wait_for(lambda: not util.alive(node["process"]) or os.stat(f"/proc/{pid}/ns/net").st_ino != own, 10, "its network")
    try:
        cables.connect(lab, node)
        lab.name_netns(node["name"], pid)
        util.wait_for(lambda: os.path.exists(ready) or not util.alive(node["process"]), timeout, f"{node['name']} to start")
    except (LabError, OSError) as e:
        if util.alive(node["process"]):
            raise
        raise LabError(f"{node['name']} did not start: {e}\n{util.tail(os.path.join(d, 'init.log'))}") from None
    if not util.alive(node["process"]):
        raise LabError(f"{node['name']} did not start:\n{util.tail(os.path.join(d, 'init.log'))}")


def node_path(lab):
    """The lab's own build of cohort, cohort-guard and so on before everything else."""
    return os.path.join(lab.state["build"], "bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def power_off(lab, node):
    """Power cut. The cables go first: a dying kernel would close the node's TCP connections properly, and peers would
    learn from that what nobody learns when the power fails. Then the disks stop, so that the dying processes change nothing
    any more. On ordinary directories (no --lossy) what the node had written but not synced survives in the host's page
    cache; that part of a power cut is then not imitated."""
    if not util.alive(node.get("process")):
        raise LabError(f"{node['name']} is off already")
    cables.disconnect(lab, node)
    disks.freeze(lab, node)
    util.kill(node["process"])
    disks.cut(lab, node)
    util.kill_and_wait(node["process"])
    cables.end_delays(lab, node)
    lab.unname_netns(node["name"])
    cgroups.remove(lab.id, node["name"])
    node["process"] = None
    lab.save()


def enter(lab, node, workdir=None):
    """Command prefix that runs something inside a node, as if logged in there."""
    if not util.alive(node.get("process")):
        raise LabError(f"{node['name']} is off; power it on: deploy/lab start {node['name']}")
    pid = str(node["process"]["pid"])
    argv = ["nsenter", "-t", pid, "-p", "-m", "-n", "-u", "-i", "-C"]
    if workdir and os.path.isdir(f"/proc/{pid}/root{workdir}"):
        argv.append(f"--wdns={workdir}")
    return argv


def show_cut_warning(node):
    if node.get("cut"):
        say(f"note: {node['name']}: out: {', '.join(node['cut'])} (deploy/lab heal {node['name']})")


def daemon_argv(build, override):
    if override:
        return [override]
    path = os.path.join(build, "bin", "cohortd")
    if not os.access(path, os.X_OK):
        raise LabError(f"{path} is not built; run: cmake --preset dev && cmake --build --preset dev (in {ROOT}), or deploy/quickstart")
    return [path, "--config", "/etc/cohort/cohortd.json"]
