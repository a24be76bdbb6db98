"""A node's cables into the switch, made inside the two namespaces and never seen on the host.

    up0            the uplink: under the node's Open vSwitch (br-phy), carries the cluster address, guests' traffic, everything
    stor0, stor1   plain network cards for storage (198.51.100.0/26, .64/26), not under the virtual switch, as on real nodes

Each leads to a bridge of its own in the switch's namespace. A cable can be out ("cut"), or delayed: then delay.py sits
between its port and the bridge."""

import os
import sys

from . import util
from .util import LabError

DELAY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "delay.py")
STORAGE_LINKS_MAX = 2


def names(lab):
    return ["up0"] + [f"stor{k}" for k in range(lab.state.get("storage_links", 0))]


def choose(lab, link):
    """The cables that `--link` means; all without it."""
    if link is None:
        return names(lab)
    if link not in names(lab):
        raise LabError(f"no link {link!r}; the nodes of this lab have {', '.join(names(lab))}")
    return [link]


def storage_addresses(lab, node):
    return [f"198.51.100.{64 * k + 10 + node['index']}" for k in range(lab.state.get("storage_links", 0))]


def bridge(cable):
    return "br0" if cable == "up0" else f"st{cable[4:]}"


def port(node, cable):
    return f"p{node['index']}" if cable == "up0" else f"s{cable[4:]}p{node['index']}"


def is_cut(node, cable="up0"):
    return cable in (node.get("cut") or [])


def in_switch(lab, *args, check=True):
    util.ip_in(lab.state["switch"]["pid"], *args, check=check)


def offload(pid, dev, on):
    """Frames that pass a program (Open vSwitch in user space, delay.py) need their checksums."""
    util.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ethtool", "-K", dev, "tx", "on" if on else "off"])


def plugged(node, cable):
    """What of the cable is in the bridge: the far end of its delay, if it has one."""
    own = port(node, cable)
    return f"d{own}" if util.alive(node.get("delays", {}).get(cable)) else own


def plug(lab, node, cable):
    if not is_cut(node, cable):
        in_switch(lab, "link", "set", plugged(node, cable), "master", bridge(cable))


def make_bridges(lab):
    for cable in names(lab):
        in_switch(lab, "link", "add", bridge(cable), "type", "bridge", "forward_delay", "0", "stp_state", "0", "mcast_snooping", "0")
        in_switch(lab, "link", "set", bridge(cable), "up")


def connect(lab, node):
    switch, pid = lab.state["switch"]["pid"], node["process"]["pid"]
    for cable in reversed(names(lab)):  # the uplink last: the node's start waits for it
        own = port(node, cable)
        in_switch(lab, "link", "del", own, check=False)  # of a life that ended a moment ago
        in_switch(lab, "link", "add", own, "type", "veth", "peer", "name", cable, "netns", str(pid))
        if cable == "up0":
            offload(switch, own, False)
        else:
            address = storage_addresses(lab, node)[int(cable[4:])]
            util.ip_in(pid, "addr", "add", f"{address}/26", "dev", cable)
            util.ip_in(pid, "link", "set", cable, "up")
        in_switch(lab, "link", "set", own, "up")
        plug(lab, node, cable)


def disconnect(lab, node):
    for cable in names(lab):
        in_switch(lab, "link", "del", port(node, cable), check=False)


def end_delay(lab, node, cable):
    util.kill_and_wait(node.get("delays", {}).pop(cable, None))
    in_switch(lab, "link", "del", f"d{port(node, cable)}", check=False)


def end_delays(lab, node):
    for cable in list(node.get("delays", {})):
        end_delay(lab, node, cable)


def cut(lab, node, link):
    """Takes cables out of the switch. Their links stay up: nothing tells the node."""
    chosen = choose(lab, link)
    node["cut"] = sorted(set(node.get("cut") or []) | set(chosen))
    lab.save()
    if util.alive(node.get("process")):
        for cable in chosen:
            in_switch(lab, "link", "set", plugged(node, cable), "nomaster")


def heal(lab, node, link):
    chosen = choose(lab, link)
    node["cut"] = [c for c in node.get("cut") or [] if c not in chosen]
    lab.save()
    if util.alive(node.get("process")):
        for cable in chosen:
            plug(lab, node, cable)


def delay(lab, node, ms, link):
    """Delays what leaves and what enters the node by `ms` each, until its power is cut; 0 ends it. By a relay in user space
    (delay.py), because not every kernel has netem."""
    if not util.alive(node.get("process")):
        raise LabError(f"{node['name']} is off")
    switch = lab.state["switch"]["pid"]
    for cable in choose(lab, link):
        own = port(node, cable)
        near, far = f"d{own}", f"e{own}"
        end_delay(lab, node, cable)
        if cable != "up0":
            offload(node["process"]["pid"], cable, not ms)
        if ms:
            in_switch(lab, "link", "set", own, "nomaster")
            in_switch(lab, "link", "add", near, "type", "veth", "peer", "name", far)
            for dev in (near, far, own):
                offload(switch, dev, False)
                in_switch(lab, "link", "set", dev, "addrgenmode", "none", "up")
            argv = ["nsenter", f"--net=/proc/{switch}/ns/net", sys.executable, "-B", DELAY, own, far, str(ms)]
            who = util.identity(util.spawn(argv, os.path.join(lab.node_dir(node), f"delay-{cable}.log"), lab.environment()))
            node.setdefault("delays", {})[cable] = who
        lab.save()
        plug(lab, node, cable)
