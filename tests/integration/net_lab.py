"""Namespaces, real OVS/OVN databases and guests for aNet's integration tests. Everything made is named after the lab's
id (which holds the pid) and undone by Lab.down(), whatever happened."""
import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time

BUSYBOX = "/bin/busybox"


def run(*cmd, check=True, **kw):
    r = subprocess.run([str(c) for c in cmd], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)
    if check and r.returncode:
        raise RuntimeError(f"{' '.join(map(str, cmd))}: exit {r.returncode}: {r.stdout}")
    return r


def wait_for(what, condition, timeout=20.0):
    """The condition's first true value; polls, since most of what is waited for is another program's state."""
    end = time.monotonic() + timeout
    while True:
        v = condition()
        if v:
            return v
        if time.monotonic() > end:
            raise AssertionError(f"timed out after {timeout} s: {what}")
        time.sleep(0.02)


class Node:
    def __init__(self, lab, i):
        self.lab, self.i = lab, i
        self.ns = f"{lab.id}n{i}"
        self.dir = os.path.join(lab.dir, f"n{i}")
        self.address = f"192.0.2.{i}"
        self.run_dir = os.path.join(self.dir, "run")
        self.sock = f"unix:{self.run_dir}/db.sock"         # NB, SB
        self.ovs_db = f"unix:{self.run_dir}/ovs/db.sock"   # conf.db
        self.voter = True
        self.driver = None
        self.procs = {}

    def exec(self, *cmd, check=True, timeout=30):
        env = dict(os.environ, OVS_RUNDIR=f"{self.run_dir}/ovs", OVN_RUNDIR=self.run_dir)
        return run("ip", "netns", "exec", self.ns, *cmd, check=check, env=env, timeout=timeout)

    def spawn(self, name, *cmd):
        log = open(os.path.join(self.dir, name + ".log"), "ab")
        env = dict(os.environ, OVS_RUNDIR=f"{self.run_dir}/ovs", OVN_RUNDIR=self.run_dir)
        p = subprocess.Popen(["ip", "netns", "exec", self.ns, *cmd], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                             env=env)
        log.close()
        self.procs[name] = p
        return p

    def kill(self, name):
        p = self.procs.pop(name)
        p.kill()
        p.wait()

    def make(self):
        os.makedirs(f"{self.run_dir}/ovs")
        run("ip", "netns", "add", self.ns)
        run("ip", "-n", self.ns, "link", "set", "lo", "up")
        run("ip", "-n", self.lab.hub, "link", "add", f"h{self.i}", "type", "veth", "peer", "name", "up0", "netns", self.ns)
        run("ip", "-n", self.lab.hub, "link", "set", f"h{self.i}", "master", "br0", "up")
        run("ip", "-n", self.ns, "link", "set", "up0", "up")
        run("ip", "netns", "exec", self.ns, "ethtool", "-K", "up0", "tx", "off")
        run("ip", "netns", "exec", self.lab.hub, "ethtool", "-K", f"h{self.i}", "tx", "off")
        run("ip", "-n", self.ns, "addr", "add", f"{self.address}/24", "dev", "up0")
        run("ip", "-n", self.ns, "route", "add", "203.0.113.0/24", "via", "192.0.2.254")

    def start_ovs(self):
        run("ovsdb-tool", "create", f"{self.dir}/conf.db", "/usr/share/openvswitch/vswitch.ovsschema")
        self.spawn("conf-db", "ovsdb-server", f"{self.dir}/conf.db", f"--remote=p{self.ovs_db}",
                   f"--unixctl={self.run_dir}/ovs/conf.ctl", "-vsyslog:off")
        wait_for("conf.db's socket", lambda: os.path.exists(self.ovs_db[5:]))
        self.spawn("vswitchd", "ovs-vswitchd", self.ovs_db, f"--unixctl={self.run_dir}/ovs/vswitchd.ctl", "-vsyslog:off")

    def start_db(self):
        files = []
        for name, db, schema, port in (("nb", "OVN_Northbound", "ovn-nb", 6643), ("sb", "OVN_Southbound", "ovn-sb", 6644)):
            path, me = f"{self.dir}/{name}.db", f"tcp:{self.address}:{port}"
            files.append(path)
            if os.path.exists(path):
                continue
            if self.i == 1:
                run("ovsdb-tool", "--election-timer=300", "create-cluster", path, f"/usr/share/ovn/{schema}.ovsschema", me)
            else:
                run("ovsdb-tool", "join-cluster", path, db, me, f"tcp:192.0.2.1:{port}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.sock[5:])
        self.spawn("ovn-db", "ovsdb-server", *files, f"--remote=p{self.sock}", "--remote=pssl:6641",
                   f"--unixctl={self.run_dir}/db.ctl", "-vsyslog:off", f"--private-key={self.lab.dir}/key.pem",
                   f"--certificate={self.lab.dir}/cert.pem", f"--ca-cert={self.lab.dir}/ca.pem")
        wait_for("database socket", lambda: os.path.exists(self.sock[5:]))

    def role(self, db):
        r = self.exec("ovs-appctl", "-t", f"{self.run_dir}/db.ctl", "cluster/status", db, check=False)
        return next((l.split()[1] for l in r.stdout.splitlines() if l.startswith("Role:")), "none")

    def start_driver(self, uplink=""):
        self.driver = Driver(self, dict(node_id=f"node{self.i}", address=self.address, uplink=uplink, run_dir=self.run_dir,
                                        ovs_db=self.ovs_db, ovs_rundir=f"{self.run_dir}/ovs", key_pem=f"{self.lab.dir}/key.pem",
                                        cert_pem=f"{self.lab.dir}/cert.pem", ca_pem=f"{self.lab.dir}/ca.pem"))
        self.driver.ok("remotes", local=self.sock if self.voter else None, voters=self.lab.voters)
        return self.driver

    def vsctl(self, *args):
        return self.exec("ovs-vsctl", f"--db={self.ovs_db}", "--timeout=10", "--no-wait", *args).stdout.strip()

    def nbctl(self, *args):
        return self.exec("ovn-nbctl", f"--db={self.sock}", "--no-leader-only", "--timeout=10", *args).stdout.strip()

    def add_guest(self, name, mac, tap):
        """A network namespace as guest behind `tap` (a veth): its eth0 has the MAC, no address."""
        g = Guest(self.lab, self, name, tap)
        self.lab.guests.append(g)
        run("ip", "netns", "add", g.ns)
        run("ip", "-n", g.ns, "link", "set", "lo", "up")
        run("ip", "-n", self.ns, "link", "add", tap, "type", "veth", "peer", "name", "eth0", "netns", g.ns)
        run("ip", "-n", g.ns, "link", "set", "eth0", "address", mac, "up")
        run("ip", "-n", self.ns, "link", "set", tap, "up")
        g.exec("ethtool", "-K", "eth0", "tx", "off")
        self.exec("ethtool", "-K", tap, "tx", "off")
        return g


class Guest:
    def __init__(self, lab, node, name, tap):
        self.ns, self.node, self.tap = f"{lab.id}{name}", node, tap
        self.script = os.path.join(lab.dir, "udhcpc.sh")

    def exec(self, *cmd, check=True, timeout=30):
        return run("ip", "netns", "exec", self.ns, *cmd, check=check, timeout=timeout)

    def dhcp(self):
        """The lease as a dict, after it was applied to eth0."""
        r = self.exec(BUSYBOX, "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "10", "-T", "1", "-O", "mtu", "-s",
                      self.script)
        return dict(l.split("=", 1) for l in r.stdout.splitlines() if l.startswith(("ip=", "mtu=", "router=", "dns=",
                                                                                    "mask=", "lease=")))

    def ping(self, ip, count=1, size=56, timeout=1):
        r = self.exec("ping", "-M", "do", "-n", "-c", count, "-i", "0.1", "-W", timeout, "-s", size, ip, check=False,
                      timeout=60)
        return r.stdout.count("bytes from") if "DUP!" not in r.stdout else -1

    def pings(self, ip, timeout=10, size=56):
        wait_for(f"{self.ns} pings {ip}", lambda: self.ping(ip, size=size) > 0, timeout)


class Driver:
    """test_net_driver in the node's namespace."""

    def __init__(self, node, conf):
        self.node, self.path = node, os.path.join(node.dir, "driver.log")
        self.log = open(self.path, "ab")
        self.p = subprocess.Popen(["ip", "netns", "exec", node.ns, node.lab.driver, json.dumps(conf)], text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)
        self.answers, self.up, self.events = queue.Queue(), {}, []
        self.news = threading.Condition()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for l in self.p.stdout:
            j = json.loads(l)
            if "event" in j:
                with self.news:
                    self.up[j["id"]] = j["up"]
                    self.events.append(j)
                    self.news.notify_all()
            else:
                self.answers.put(j)

    def ask(self, cmd, **kw):
        self.p.stdin.write(json.dumps(dict(kw, cmd=cmd)) + "\n")
        self.p.stdin.flush()
        return self.answers.get(timeout=10)

    def ok(self, cmd, **kw):
        a = self.ask(cmd, **kw)
        assert a["code"] == "ok", a

    def status(self):
        return self.ask("status")

    def wait_up(self, port, up=True, timeout=30):
        end = time.monotonic() + timeout
        with self.news:
            while self.up.get(port, False) != up:
                left = end - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"port {port} not {'up' if up else 'down'} after {timeout} s")
                self.news.wait(left)

    def end(self, sig=None):
        if self.p.poll() is None:
            if sig:
                self.p.send_signal(sig)
            else:
                self.p.stdin.close()
        rc = self.p.wait(timeout=30)
        self.thread.join(timeout=5)
        self.log.close()
        return rc

    def end_well(self):
        """Ends it in order. A signal or an error status fails the test, with what the driver said last."""
        rc = self.end()
        if rc:
            with open(self.path, errors="replace") as f:
                said = "".join(f.readlines()[-15:])
            raise AssertionError(f"driver of {self.node.ns} ended with status {rc} (negative: signal; 3: handles left open):\n{said}")


class Lab:
    def __init__(self, driver, nodes, voters):
        self.driver = os.path.abspath(driver)
        self.id = f"anet{os.getpid()}"
        self.hub = f"{self.id}hub"
        self.dir = tempfile.mkdtemp(prefix=f"{self.id}-")
        self.guests = []
        self.nodes = [Node(self, i + 1) for i in range(nodes)]
        for n in self.nodes[voters:]:
            n.voter = False
        self.voters = ",".join(f"ssl:{n.address}:6641" for n in self.nodes[:voters])

    def up(self):
        with open(os.path.join(self.dir, "udhcpc.sh"), "w") as f:
            f.write("#!/bin/busybox sh\n[ \"$1\" = bound ] || exit 0\n"
                    "ip addr flush dev $interface\nip addr add $ip/$mask dev $interface\n"
                    "[ -n \"$mtu\" ] && ip link set $interface mtu $mtu\n"
                    "for v in ip mask mtu router dns lease; do eval echo $v=\\$$v; done\n")
        os.chmod(os.path.join(self.dir, "udhcpc.sh"), 0o755)
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", "/CN=test CA", "-keyout", f"{self.dir}/cakey.pem", "-out", f"{self.dir}/ca.pem")
        run("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
            "/CN=nodes", "-keyout", f"{self.dir}/key.pem", "-out", f"{self.dir}/csr.pem")
        run("openssl", "x509", "-req", "-in", f"{self.dir}/csr.pem", "-CA", f"{self.dir}/ca.pem", "-CAkey",
            f"{self.dir}/cakey.pem", "-CAcreateserial", "-days", "2", "-out", f"{self.dir}/cert.pem")
        run("ip", "netns", "add", self.hub)
        run("ip", "-n", self.hub, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.hub, "link", "set", "br0", "up")
        run("ip", "-n", self.hub, "link", "set", "lo", "up")
        for n in self.nodes:
            n.make()
            n.start_ovs()
            if n.voter:
                n.start_db()

    def down(self):
        """Ends every process in the namespaces, by pid, then removes them; safe at any stage."""
        for n in self.nodes:
            if n.driver and n.driver.p.poll() is None:
                n.driver.p.kill()
                n.driver.p.wait()
        existing = {l.split()[0] for l in run("ip", "netns", "list").stdout.splitlines() if l}
        mine = [ns for ns in existing if ns.startswith(self.id)]
        for ns in mine:
            for pid in run("ip", "netns", "pids", ns, check=False).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for n in self.nodes:
            for p in n.procs.values():
                p.wait()
        for ns in mine:
            wait_for(f"end of processes in {ns}", lambda: not run("ip", "netns", "pids", ns, check=False).stdout.split())
            run("ip", "netns", "del", ns, check=False)
        shutil.rmtree(self.dir, ignore_errors=True)

    def show_logs(self):
        for n in self.nodes:
            for root, _, files in os.walk(n.dir):
                for f in files:
                    if f.endswith(".log"):
                        path = os.path.join(root, f)
                        with open(path, errors="replace") as h:
                            tail = h.readlines()[-25:]
                        print(f"---- {path}\n{''.join(tail)}", flush=True)
