"""Disks that forget: with `lab up --lossy` a node's /srv is served by cohort-lossyfs (deploy/lossyfs), one process per node and
power-on. It runs outside the node, so it survives the power cut and decides what the disks then hold.

    power on:   start() -> init.py mounts fuse on /srv and hands /dev/fuse over
    power cut:  freeze() -> the node's processes are killed -> cut(): unsynced writes are lost or torn, the process ends"""

import json
import os
import socket

from . import util
from .util import LabError

SOCKET = "lossyfs.sock"
MODES = ("eio", "stall", "slow", "full", "size", "ok", "status")
DISKS = ("fast", "capacity")


def ask(directory, line, fds=(), timeout=60):
    """One command to the lossyfs whose control directory this is; what follows "ok". The socket's path goes through
    /proc/self/fd, because sockaddr_un is short."""
    at = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(timeout)
            s.connect(f"/proc/self/fd/{at}/{SOCKET}")
            socket.send_fds(s, [line.encode()], list(fds))
            with s.makefile() as f:
                answer = f.readline().strip()
    finally:
        os.close(at)
    word, _, rest = answer.partition(" ")
    if word != "ok":
        raise LabError(f"lossyfs: {rest or 'no answer'}")
    return rest


def start(lab, node):
    """Before the node is powered on. What a power cut destroys follows from the lab's seed, the node and the number of this
    power-on."""
    if lab.state.get("lossy") is None:
        return
    d = lab.node_dir(node)
    if util.alive(node.get("disks")):  # of a node that died by itself: its mount is gone, so it is about to end
        util.wait_for(lambda: not util.alive(node["disks"]), 30, f"the end of {node['name']}'s former disks")
    spare, sock = os.path.join(d, "disks.new"), os.path.join(d, SOCKET)
    os.makedirs(spare, exist_ok=True)
    if os.path.exists(sock):
        os.unlink(sock)
    node["power_ons"] = node.get("power_ons", 0) + 1
    seed = lab.state["lossy"] * 1000003 + node["index"] * 10007 + node["power_ons"]
    program = os.path.join(lab.state["build"], "bin", "cohort-lossyfs")
    pid = util.spawn([program, os.path.join(d, "disks"), spare, d, str(seed)], os.path.join(d, "lossyfs.log"), lab.environment())
    node["disks"] = util.identity(pid)
    lab.save()
    util.wait_for(lambda: os.path.exists(sock) or not util.alive(node["disks"]), 10, f"{node['name']}'s disks", interval=0.01)
    if not util.alive(node["disks"]):
        raise LabError(f"{node['name']}'s disks: {util.tail(os.path.join(d, 'lossyfs.log'))}")


def freeze(lab, node):
    """From here on the disks answer nothing and keep nothing. No process of the node learns of it: it waits."""
    if util.alive(node.get("disks")):
        ask(lab.node_dir(node), "freeze")


def cut(lab, node):
    """What was not synced is dropped or torn; then the requests that still wait are ended, so that their (killed) processes
    can go."""
    if util.alive(node.get("disks")):
        ask(lab.node_dir(node), "powercut")
        util.wait_for(lambda: not util.alive(node["disks"]), 30, f"the end of {node['name']}'s disks", interval=0.01)
    node["disks"] = None


def command(lab, node, mode, rest):
    """`lab disk NODE MODE …`; what to print."""
    if lab.state.get("lossy") is None:
        raise LabError("this lab's disks are ordinary directories; faults need: deploy/lab up --lossy")
    if not util.alive(node.get("disks")):
        raise LabError(f"{node['name']} is off")
    which = [w for w in rest if w in DISKS]
    numbers = [w for w in rest if w not in DISKS]
    wanted = 1 if mode in ("slow", "size") else 0
    if len(which) > 1 or len(numbers) != wanted or not all(w.isdigit() for w in numbers):
        raise LabError("usage: lab disk NODE eio|stall|full|ok [fast|capacity] | slow MS [fast|capacity] | size BYTES [fast|capacity] | status")
    return ask(lab.node_dir(node), " ".join([mode, *numbers, *which]))


def status(lab, node):
    return json.loads(ask(lab.node_dir(node), "status"))
