"""The probe: a network namespace with a port on a guest network, as a guest would have. What runs in it reaches guests
through OVN and the tunnels like any neighbour of theirs.

For each network it uses a Port without a machine (named lab-probe), made through the REST API and plugged into br-int of
one node by iface-id, as OVN binds any port. The node can be chosen, and if it dies the probe moves to another."""

import ipaddress
import os

from . import api, node as nodes, util
from .util import LabError

PORT_NAME = "lab-probe"
OVERLAY = 58  # bytes that Geneve takes of the underlay's 1500


def _holder(lab):
    probe = lab.state.setdefault("probe", {"ports": {}, "node": None, "process": None})
    if not util.alive(probe["process"]):
        pid = util.spawn(["unshare", "--net", "sleep", "infinity"], lab.path("probe.log"), lab.environment())
        probe["process"], probe["node"] = util.identity(pid), None
        lab.save()
        own = os.stat("/proc/self/ns/net").st_ino
        util.wait_for(lambda: util.alive(probe["process"]) and os.stat(f"/proc/{pid}/ns/net").st_ino != own, 10,
                      "the probe's namespace", interval=0.005)
        util.ip_in(pid, "link", "set", "lo", "up")
        lab.name_netns("probe", pid)
    return probe


def _network(lab, name):
    networks = api.call_any(lab, "GET", "/networks")
    if name:
        for n in networks:
            if name in (n["name"], n["id"]):
                return n
        raise LabError(f"no network {name!r}")
    if len(networks) == 1:
        return networks[0]
    if not networks:
        raise LabError("the cluster has no network yet: deploy/lab cohort network create NAME --cidr 198.18.1.0/24")
    raise LabError("which network? --network " + " | ".join(sorted(n["name"] for n in networks)))


def _port(lab, network):
    """The Port row that is ours on this network; made when first asked for."""
    name = f"{PORT_NAME}-{network['name']}"

    def find():
        return next((p for p in api.call_any(lab, "GET", "/ports") if p["name"] == name and p["network_id"] == network["id"]), None)

    row = find()
    if row:
        return row
    api.call_any(lab, "POST", "/ports", {"network": network["name"], "name": name})
    return util.wait_for(find, 10, "the probe's port")


def _unplug(lab, probe):
    old = probe["node"]
    if old:
        at = lab.node(old["name"])
        if util.alive(at.get("process")) and at["process"] == old["process"]:
            for port in probe["ports"].values():
                util.run(nodes.enter(lab, at) + ["ovs-vsctl", "--timeout=10", "--if-exists", "del-port", "br-int", port["dev"]],
                         check=False)
                util.ip_in(at["process"]["pid"], "link", "del", port["dev"], check=False)
    probe["node"] = None


def _plug(lab, probe, at, port):
    pid, inner, outer, dev = probe["process"]["pid"], port["eth"], at["process"]["pid"], port["dev"]
    util.ip_in(outer, "link", "del", dev, check=False)
    util.ip_in(pid, "link", "del", inner, check=False)
    util.ip_in(outer, "link", "add", dev, "type", "veth", "peer", "name", inner, "netns", str(pid))
    for ns, name in ((outer, dev), (pid, inner)):  # the userspace datapath wants finished checksums
        util.run(["nsenter", f"--net=/proc/{ns}/ns/net", "ethtool", "-K", name, "tx", "off"])
        util.ip_in(ns, "link", "set", name, "mtu", str(port["mtu"]))
    util.ip_in(pid, "link", "set", inner, "address", port["mac"])
    util.ip_in(pid, "addr", "add", f"{port['ip']}/{port['prefix']}", "dev", inner)
    util.ip_in(pid, "link", "set", inner, "up")
    util.ip_in(outer, "link", "set", dev, "up")
    vsctl = nodes.enter(lab, at) + ["ovs-vsctl", "--timeout=30"]
    util.run(vsctl + ["--may-exist", "add-port", "br-int", dev, "--", "set", "interface", dev, f"external_ids:iface-id={port['id']}"])
    util.run(vsctl + ["wait-until", "interface", dev, "external_ids:ovn-installed=true"])


def ensure(lab, network_name=None, at=None):
    """A plugged probe on the network; moves it to node `at` if given, and off a dead node in any case. Lab locked."""
    probe = _holder(lab)
    known = probe["ports"].get(network_name) if network_name else (
        next(iter(probe["ports"].values())) if len(probe["ports"]) == 1 else None)
    here = probe["node"]
    fits = here and util.alive(here["process"]) and (at is None or at["name"] == here["name"])
    if not (known and fits):
        network = _network(lab, network_name)
        if network["name"] not in probe["ports"]:
            row = _port(lab, network)
            k = len(probe["ports"])
            probe["ports"][network["name"]] = {
                "id": row["id"], "mac": row["mac"], "ip": row["ip"], "dev": f"probe{k}", "eth": f"eth{k}",
                "prefix": ipaddress.ip_network(network["cidr"]).prefixlen, "mtu": network.get("mtu") or 1500 - OVERLAY}
            fits = False
    if not fits:
        target = at or lab.any_live()
        if not util.alive(target.get("process")):
            raise LabError(f"{target['name']} is off")
        _unplug(lab, probe)
        lab.save()
        for port in probe["ports"].values():
            _plug(lab, probe, target, port)
        probe["node"] = {"name": target["name"], "process": target["process"]}
        lab.save()
    return probe


def enter(probe, argv):
    return ["nsenter", f"--net=/proc/{probe['process']['pid']}/ns/net", "--", *argv]
