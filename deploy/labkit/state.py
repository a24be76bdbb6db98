"""What a lab is made of, kept in build/lab/<id>/lab.json so that every `deploy/lab` command finds it again.

Processes are named by pid and start time: after a reboot, or if somebody killed them, the lab reads as down, and
nothing that only has the same pid is ever touched."""

import contextlib
import fcntl
import os
import re
import shutil

from . import cgroups, util
from .util import LabError

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LABS = os.path.join(ROOT, "build", "lab")
NODES_MAX = 5
NETNS_DIR = "/run/netns"


def check_id(lab_id):
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,23}", lab_id):
        raise LabError(f"lab id {lab_id!r}: 1 to 24 of a-z 0-9 -, not starting with -")
    return lab_id


class Lab:
    """state: {id, build, storage_links, nodes: [{name, address, process, cut: [cable], delays: {cable: process}, api_port}], switch, probe, agent, token, ca_file}."""

    def __init__(self, lab_id):
        self.id = check_id(lab_id)
        self.dir = os.path.join(LABS, self.id)
        self.file = os.path.join(self.dir, "lab.json")
        self.state = None

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    @contextlib.contextmanager
    def lock(self):
        """One changing command at a time per lab."""
        os.makedirs(LABS, exist_ok=True)
        with open(os.path.join(LABS, f".{self.id}.lock"), "w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield

    def exists(self):
        return os.path.exists(self.file)

    def load(self):
        if not self.exists():
            raise LabError(f"there is no lab {self.id!r}; start one: sudo deploy/lab up" +
                           ("" if self.id == "default" else f" --id {self.id}"))
        self.state = util.read_json(self.file)
        return self

    def save(self):
        util.write_json(self.file, self.state)

    def nodes(self):
        return self.state["nodes"]

    def node(self, name):
        """A node by its name, or by its number."""
        for n in self.nodes():
            if name in (n["name"], n["name"].lstrip("n")):
                return n
        raise LabError(f"no node {name!r}; this lab has {', '.join(n['name'] for n in self.nodes())}")

    def node_dir(self, node):
        return self.path(node["name"])

    def live_nodes(self):
        return [n for n in self.nodes() if util.alive(n.get("process"))]

    def any_live(self):
        for n in self.live_nodes():
            if "up0" not in (n.get("cut") or []):
                return n
        raise LabError("no node of the lab is up and connected; see: deploy/lab status")

    def environment(self):
        """Marks every process of the lab, so that `down` and the leak check of deploy/test find strays."""
        return dict(os.environ, COHORT_LAB=self.id)

    # ---- names of network namespaces ----

    def netns_name(self, part):
        return f"cohort-{self.id}-{part}"

    def name_netns(self, part, pid):
        """`ip netns exec NAME` works through a symbolic link to the process's namespace, and unlike a bind mount the
        link keeps nothing alive when the process dies."""
        os.makedirs(NETNS_DIR, exist_ok=True)
        link = os.path.join(NETNS_DIR, self.netns_name(part))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)
        os.symlink(f"/proc/{pid}/ns/net", link)

    def unname_netns(self, part):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(NETNS_DIR, self.netns_name(part)))

    # ---- the end ----

    def strays(self):
        """Processes that carry our mark."""
        mark, found = f"COHORT_LAB={self.id}".encode(), []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as f:
                    if mark in f.read().split(b"\0") and int(pid) != os.getpid():
                        found.append(util.identity(int(pid)))
            except OSError:
                pass
        return [who for who in found if who["ticks"] is not None]

    def destroy(self):
        """Ends every process of the lab, then removes names, control groups and files."""
        s = self.state or {}
        mine = set()
        pid = os.getpid()
        while pid > 1:  # a test that runs us may carry the mark itself
            mine.add(pid)
            with open(f"/proc/{pid}/stat", "rb") as f:
                pid = int(f.read().rpartition(b")")[2].split()[1])
        for n in s.get("nodes", []):
            util.kill_and_wait(n.get("disks"))  # first: a process that waits for a stalled disk cannot be ended
            util.kill_and_wait(n.get("process"))
            for who in n.get("delays", {}).values():
                util.kill_and_wait(who)
        for who in (s.get("agent"), s.get("probe", {}).get("process"), s.get("switch")):
            util.kill_and_wait(who)
        for who in self.strays():
            if who["pid"] not in mine:
                util.kill_and_wait(who)
        for part in [n["name"] for n in s.get("nodes", [])] + ["switch", "probe"]:
            self.unname_netns(part)
        with contextlib.suppress(OSError):
            os.rmdir(NETNS_DIR)
        cgroups.remove(self.id)
        shutil.rmtree(self.dir, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(LABS, f".{self.id}.lock"))
        with contextlib.suppress(OSError):
            os.rmdir(LABS)
