#!/usr/bin/env python3
"""Process 1 of a lab node: what systemd and the distribution's Open vSwitch services are on a real one.

    init.py NODE.json

Runs inside new pid, mount, network, uts, ipc and cgroup namespaces (node.py starts it). In order:
  1. private mounts: /run, /etc (the host's entries, own cohort/ and openvswitch/), /var/lib, /var/log, /srv (the disks; with
     `lab up --lossy` a FUSE mount that cohort-lossyfs serves from outside), /sys
  2. waits for its uplink `up0`, starts ovsdb-server and ovs-vswitchd, puts the node's address on br-phy over up0
  3. keeps cohortd running as `Restart=always` would, and reaps orphans (guests and databases outlive the daemon)

Killing this process is the power cut: the kernel kills everything in the pid namespace with it."""

import ctypes
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

MS_BIND, MS_REC, MNT_DETACH = 4096, 16384, 2
RESTART_S = 0.5
libc = ctypes.CDLL(None, use_errno=True)


def log(text):
    print(f"{time.strftime('%H:%M:%S')} init: {text}", flush=True)


# ---- mounts ----

def mount(source, target, kind=None, flags=0, data=None):
    enc = [x.encode() if x else None for x in (source, target, kind)]
    if libc.mount(*enc, ctypes.c_ulong(flags), data.encode() if data else None) != 0:
        e = ctypes.get_errno()
        raise OSError(e, f"mount {source} on {target}: {os.strerror(e)}")


def unmount_all(path):
    while libc.umount2(path.encode(), MNT_DETACH) == 0:
        pass


def bind(source, target):
    os.makedirs(source, exist_ok=True)
    mount(source, target, flags=MS_BIND | MS_REC)


def private_etc(own):
    """A tmpfs that looks like the host's /etc, but for the directories in `own`. No overlayfs: the lab must also run
    where that is missing or the repository itself lies on one."""
    os.makedirs("/run/host-etc", exist_ok=True)
    mount("/etc", "/run/host-etc", flags=MS_BIND | MS_REC)
    mount("etc", "/etc", "tmpfs", data="mode=755")
    for name in os.listdir("/run/host-etc"):
        if name in own:
            continue
        there = f"/run/host-etc/{name}"
        os.symlink(os.readlink(there) if os.path.islink(there) else there, f"/etc/{name}")
    for name, source in own.items():
        os.mkdir(f"/etc/{name}")
        bind(source, f"/etc/{name}")


def private_sys(hierarchies):
    """/sys of this network namespace, and the cgroup hierarchies as this cgroup namespace sees them."""
    unmount_all("/sys")
    mount("sysfs", "/sys", "sysfs")
    v2_only = any(where == "/sys/fs/cgroup" for where, _, _ in hierarchies)
    if hierarchies and not v2_only:
        mount("cgroup", "/sys/fs/cgroup", "tmpfs", data="mode=755")
    for where, kind, controllers in hierarchies:
        if not where.startswith("/sys/fs/cgroup"):
            continue
        try:
            os.makedirs(where, exist_ok=True)
            mount("cgroup", where, kind, data=controllers or None)
            if kind == "cgroup2":  # v2 hands controllers down only from groups without processes of their own
                os.makedirs(f"{where}/init", exist_ok=True)
                with open(f"{where}/init/cgroup.procs", "w") as f:
                    f.write("0")
        except OSError as e:
            log(f"no cgroup hierarchy at {where}: {e}")


def isolate(conf):
    d = conf["dir"]
    unmount_all("/run")
    mount("run", "/run", "tmpfs", data="mode=755")
    for sub in ("lock", "openvswitch", "ovn", "netns"):
        os.makedirs(f"/run/{sub}", exist_ok=True)
    for sub in ("cohort", "openvswitch", "ovn"):
        os.makedirs(f"{d}/etc/{sub}", exist_ok=True)
        os.makedirs(f"{d}/lib/{sub}", exist_ok=True)
        os.makedirs(f"{d}/log/{sub}", exist_ok=True)
    bind(f"{d}/lib", "/var/lib")
    bind(f"{d}/log", "/var/log")
    if conf["lossy"]:
        lossy_disks(conf)
    else:
        bind(f"{d}/disks", "/srv")
    private_etc({sub: f"{d}/etc/{sub}" for sub in ("cohort", "openvswitch", "ovn")})
    private_sys(conf["cgroups"])
    socket.sethostname(conf["name"])


def lossy_disks(conf):
    """/srv served by the cohort-lossyfs that node.py has started: the mount is made here, in the node's own mount namespace,
    and its /dev/fuse handed over, so that the server itself can live outside and outlive the node."""
    from labkit import disks
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        mount("cohort-lossyfs", "/srv", "fuse", data=f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions")
        disks.ask(conf["dir"], "mount", [fuse])
    finally:
        os.close(fuse)


# ---- children ----

class Child:
    """A program that is started again whenever it ends."""

    def __init__(self, name, argv, log_file, after=None):
        self.name, self.argv, self.log_file, self.after = name, argv, log_file, after
        self.process, self.start_at = None, 0.0

    def start(self):
        with open(self.log_file, "ab") as out:
            self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/",
                                            start_new_session=True)
        log(f"{self.name} started, pid {self.process.pid}")
        if self.after:
            self.after()

    def ended(self, code):
        log(f"{self.name} ended, status {code}; again in {RESTART_S} s")
        self.process.returncode = code  # we reaped it; else the subprocess module would wait for that pid once more
        self.process, self.start_at = None, time.monotonic() + RESTART_S


class Init:
    def __init__(self, conf):
        self.conf, self.children = conf, []

    def command(self, *argv, check=True):
        """Runs a short program while reaping is ours to do."""
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if check and done.returncode != 0:
            raise OSError(errno.EIO, f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.returncode == 0

    def wait(self, condition, what, timeout=30):
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise OSError(errno.ETIMEDOUT, f"waited {timeout} s for {what}")
            time.sleep(0.01)

    def start_switch(self):
        conf = self.conf
        self.command("ip", "link", "set", "lo", "up")
        self.wait(lambda: os.path.exists("/sys/class/net/up0"), "the uplink up0")
        self.command("ethtool", "-K", "up0", "tx", "off")
        # The kernel, too, sees what arrives on up0; it must not answer ARP there for br-phy's address with up0's MAC.
        self.command("ip", "link", "set", "up0", "arp", "off", "up")
        db = "/etc/openvswitch/conf.db"
        if not os.path.exists(db):
            self.command("ovsdb-tool", "create", db, "/usr/share/openvswitch/vswitch.ovsschema")
        self.add("ovsdb-server", ["ovsdb-server", db, "--remote=punix:/run/openvswitch/db.sock", "--pidfile",
                                  "--log-file=/var/log/openvswitch/ovsdb-server.log", "-vconsole:off"])
        self.wait(lambda: os.path.exists("/run/openvswitch/db.sock"), "ovsdb-server")
        # One handler and one revalidator: many nodes share the machine's cores here.
        self.command("ovs-vsctl", "--no-wait", "--", "init", "--", "set", "Open_vSwitch", ".",
                     "other_config:n-handler-threads=1", "other_config:n-revalidator-threads=1",
                     "--", "--may-exist", "add-br", "br-phy",
                     "--", "set", "bridge", "br-phy", "datapath_type=netdev", "fail_mode=standalone",
                     f"other_config:hwaddr={conf['mac']}", "--", "--may-exist", "add-port", "br-phy", "up0")
        self.add("ovs-vswitchd", ["ovs-vswitchd", "--pidfile", "--log-file=/var/log/openvswitch/ovs-vswitchd.log",
                                  "-vconsole:off"], after=self.bring_up_br_phy)

    def br_phy_ready(self):
        try:
            with open("/sys/class/net/br-phy/address") as f:
                return f.read().strip() == self.conf["mac"]
        except OSError:
            return False

    def bring_up_br_phy(self):
        """br-phy is a tap of ovs-vswitchd: new, without address and down, after each of its starts. Tunnels in
        user space need the node's address on a bridge of that datapath. It is born with a random MAC and must not be heard
        with that one."""
        self.wait(self.br_phy_ready, "br-phy")
        self.command("ip", "addr", "replace", self.conf["address"] + "/24", "dev", "br-phy")
        self.command("ip", "link", "set", "br-phy", "up")

    def add(self, name, argv, after=None, log_file=None):
        child = Child(name, argv, log_file or f"{self.conf['dir']}/{name}.out", after)
        self.children.append(child)
        child.start()

    def reap(self):
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self.children:
                if child.process and child.process.pid == pid:
                    child.ended(os.waitstatus_to_exitcode(status))

    def loop(self, wakeup):
        while True:
            self.reap()
            now = time.monotonic()
            for child in self.children:
                if child.process is None and now >= child.start_at:
                    try:
                        child.start()
                    except OSError as e:
                        log(f"{child.name}: {e}")
                        child.start_at = now + RESTART_S
            pending = [c.start_at - now for c in self.children if c.process is None]
            select.select([wakeup], [], [], max(0.0, min(pending)) if pending else None)
            try:
                os.read(wakeup, 4096)
            except BlockingIOError:
                pass


def main():
    with open(sys.argv[1]) as f:
        conf = json.load(f)
    os.umask(0o022)
    wakeup, w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(w, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    isolate(conf)
    init = Init(conf)
    init.start_switch()
    os.makedirs("/var/log/cohort", exist_ok=True)
    init.add("cohortd", conf["daemon"], log_file="/var/log/cohort/cohortd.log")
    with open(f"{conf['dir']}/ready", "w") as f:
        f.write("ready\n")
    log("node is up")
    init.loop(wakeup)


if __name__ == "__main__":
    try:
        main()
    except Exception as problem:  # process 1 says why it gives up; its end takes the node down
        log(f"giving up: {problem}")
        raise
