#!/usr/bin/env python3
"""aNet on four nodes, three of them voters, with real ovsdb-server (RAFT), ovs-vswitchd (userspace datapath), ovn-northd and ovn-controller.

usage: test_net_overlay.py TEST_NET_DRIVER (KEEP=1: wait before taking a failed lab down; ENDS=N: end and start all N times,
every other time while they are still connecting)

Node 1 comes with a br-phy that its own set-up prepared; the others hand their uplink over. Node 4 has no database and
reaches the voters' by TLS. Guests are network
namespaces with a DHCP client. Exit 77 = skipped, with the reason."""

import json
import os
import shutil
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from net_lab import BUSYBOX, Lab, run, wait_for  # noqa: E402

NET1, NET2 = "6d1f2c1a-0000-4000-8000-000000000001", "6d1f2c1a-0000-4000-8000-000000000002"
P1, P2, P3, P4 = (f"a0a0a0a0-0000-4000-8000-00000000000{i}" for i in (1, 2, 3, 4))
RARP = """import socket
mac = bytes.fromhex(open('/sys/class/net/eth0/address').read().strip().replace(':', ''))
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
s.send(b'\\xff' * 6 + mac + bytes.fromhex('8035' '0001' '0800' '06' '04' '0003') + (mac + bytes(4)) * 2)
"""


def need(*programs):
    if os.geteuid():
        print("SKIP: needs root for network namespaces")
        sys.exit(77)
    for p in programs:
        if not shutil.which(p) and not os.path.exists(p):
            print(f"SKIP: needs {p}")
            sys.exit(77)


class Test:
    def __init__(self, lab):
        self.lab = lab
        self.n1, self.n2, self.n3, self.n4 = lab.nodes
        self.desired = {"nodes": ["node1", "node2", "node3", "node4"],
                        "networks": [{"id": NET1, "name": "one", "cidr": "198.18.1.0/24", "dns": ["198.18.1.53", "198.18.1.54"]},
                                     {"id": NET2, "name": "two", "cidr": "198.18.2.0/24", "gateway": "198.18.2.254", "mtu": 1300}],
                        "ports": [self.port(P1, NET1, 1, "198.18.1.11", "node1"), self.port(P2, NET1, 2, "198.18.1.12", "node2"),
                                  self.port(P3, NET2, 3, "198.18.2.13", "node2")]}
        self.writer = self.n1

    @staticmethod
    def port(pid, net, k, ip, host, migrate_to=""):
        return {"id": pid, "network": net, "mac": f"02:00:00:00:00:{k:02x}", "ip": ip, "host": host, "migrate_to": migrate_to}

    def want(self, **changes):
        """Changes port fields (by id) in the desired state and hands it to the writer."""
        for p in self.desired["ports"]:
            p.update(changes.get(p["id"], {}))
        return self.writer.driver.ask("desired", **self.desired)

    def settled(self, node=None):
        def check():
            s = (node or self.writer).driver.status()["northbound"]
            return s["pending"] == 0 and s["wanted"] and not s["deposed"]
        wait_for("NB in agreement", check)

    def start(self):
        n1 = self.n1  # prepares its own br-phy, as a node's init may do
        n1.vsctl("init")
        n1.vsctl("add-br", "br-phy", "--", "set", "bridge", "br-phy", "datapath_type=netdev", "fail_mode=standalone", "--",
                 "add-port", "br-phy", "up0")
        wait_for("br-phy", lambda: "br-phy" in n1.exec("ip", "-br", "link").stdout)
        n1.exec("ip", "addr", "del", "192.0.2.1/24", "dev", "up0")
        n1.exec("ip", "addr", "add", "192.0.2.1/24", "dev", "br-phy")
        n1.exec("ip", "link", "set", "br-phy", "up")
        self.start_drivers()

    def start_drivers(self):
        for n in self.lab.nodes:
            n.start_driver("" if n is self.n1 else "up0")

    # ---- steps, in order: each builds on those before ----

    def t01_ports_come_up(self):
        t = time.monotonic()
        self.n1.driver.ok("writer", term=1)
        assert self.want()["code"] == "ok"
        self.g1 = self.n1.add_guest("g1", "02:00:00:00:00:01", "tap1")
        self.g2 = self.n2.add_guest("g2", "02:00:00:00:00:02", "tap2")
        self.g3 = self.n2.add_guest("g3", "02:00:00:00:00:03", "tap3")
        self.n1.driver.ok("plug", id=P1, tap="tap1")
        self.n2.driver.ok("plug", id=P2, tap="tap2")
        self.n2.driver.ok("plug", id=P3, tap="tap3")
        self.n1.driver.wait_up(P1)
        self.n2.driver.wait_up(P2)
        self.n2.driver.wait_up(P3)
        self.settled()
        print(f"   from nothing to three ports up: {time.monotonic() - t:.2f} s")

    def t02_uplink_moved(self):
        for n in (self.n2, self.n3, self.n4):
            wait_for("br-phy ok", lambda: n.driver.status()["local"]["br_phy"] == "ok")
            addrs = n.exec("ip", "-br", "-4", "addr").stdout
            assert "br-phy" in addrs and f"{n.address}/24" in addrs, addrs
            assert n.exec("ip", "-4", "addr", "show", "up0").stdout.count("inet ") == 0
            route = n.exec("ip", "route", "show", "203.0.113.0/24").stdout
            assert "dev br-phy" in route and "192.0.2.254" in route, route
            mac = [n.exec("cat", f"/sys/class/net/{i}/address").stdout for i in ("up0", "br-phy")]
            assert mac[0] == mac[1], mac
        assert self.n1.driver.status()["local"]["br_phy"] == "prepared"
        assert self.n1.vsctl("get", "bridge", "br-phy", "external_ids") == "{}", "a prepared br-phy must be left alone"

    def t03_dhcp(self):
        l1, l2, l3 = self.g1.dhcp(), self.g2.dhcp(), self.g3.dhcp()
        assert l1["ip"] == "198.18.1.11" and l1["mtu"] == "1442" and l1["router"] == "198.18.1.1", l1
        assert l1["dns"] == "198.18.1.53 198.18.1.54" and l1["mask"] == "24" and l1["lease"] == "3600", l1
        assert l2["ip"] == "198.18.1.12" and l2["mtu"] == "1442", l2
        assert l3["ip"] == "198.18.2.13" and l3["mtu"] == "1300" and l3["router"] == "198.18.2.254", l3

    def t04_across_nodes(self):
        self.g1.pings("198.18.1.12")
        assert self.g1.ping("198.18.1.12", count=5) >= 4
        self.g1.pings("198.18.1.12", size=1442 - 28)  # exactly the guest MTU, do not fragment
        assert self.g1.ping("198.18.1.12", size=1442 - 27) == 0

    def t05_networks_are_apart(self):
        for g in (self.g1, self.g3):
            g.exec("ip", "route", "add", "198.18.0.0/15", "dev", "eth0")
        assert self.g1.ping("198.18.2.13") == 0
        assert self.g3.ping("198.18.1.12") == 0

    def t06_port_security(self):
        g = self.g1
        g.exec("ip", "addr", "add", "198.18.1.99/24", "dev", "eth0")
        spoof = g.exec("ping", "-n", "-c", "2", "-i", "0.1", "-W", "1", "-I", "198.18.1.99", "198.18.1.12", check=False).stdout
        assert "bytes from" not in spoof, spoof
        g.exec("ip", "addr", "del", "198.18.1.99/24", "dev", "eth0")
        g.pings("198.18.1.12")
        g.exec("ip", "link", "set", "eth0", "address", "02:00:00:00:00:aa")
        self.g2.exec("ip", "neigh", "flush", "all")
        assert g.ping("198.18.1.12", count=2) == 0
        g.exec("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
        g.pings("198.18.1.12")

    def t07_bad_input(self):
        good = self.desired
        self.desired = json.loads(json.dumps(good))
        self.desired["networks"].append({"id": "bad", "name": "bad", "cidr": "198.18.3.1/24"})
        self.desired["ports"].append(self.port("badport", NET1, 9, "198.18.9.9", "node1"))
        a = self.want()
        assert a["code"] == "invalid" and "198.18.3.0/24" in a["message"], a
        self.desired = good
        assert self.want()["code"] == "ok"
        a = self.n1.driver.ask("plug", id="x", tap="name/with/slash")
        assert a["code"] == "invalid", a
        self.settled()
        assert self.g1.ping("198.18.1.12", count=3) >= 2

    def t08_live_migration(self):
        """P2 from node 2 to node 1: bound on both, the destination silent until its RARP."""
        self.want(**{P2: {"migrate_to": "node1"}})
        self.settled()
        g2b = self.n1.add_guest("g2b", "02:00:00:00:00:02", "tap2b")
        self.n1.driver.ok("plug", id=P2, tap="tap2b")
        self.n1.driver.wait_up(P2)
        g2b.exec("ip", "addr", "add", "198.18.1.12/24", "dev", "eth0")
        self.g2.pings("198.18.1.11")
        g2b.exec("ip", "neigh", "add", "198.18.1.11", "lladdr", "02:00:00:00:00:01", "dev", "eth0")
        assert g2b.ping("198.18.1.11", count=2) == 0, "the destination talks before its RARP"
        assert self.g1.ping("198.18.1.12", count=5) >= 4
        self.g2.exec("ip", "link", "set", "eth0", "down")     # the source stops
        g2b.exec("python3", "-c", RARP)                       # the destination resumes
        t = time.monotonic()
        self.g1.pings("198.18.1.12", timeout=5)
        print(f"   first answer from the destination after RARP: {time.monotonic() - t:.2f} s")
        self.want(**{P2: {"host": "node1", "migrate_to": ""}})
        self.n2.driver.ok("unplug", id=P2)
        self.settled()
        assert self.g1.ping("198.18.1.12", count=5) >= 4
        wait_for("tap2 out of node 2", lambda: "tap2" not in self.n2.vsctl("list-ports", "br-int").split())
        self.g2 = g2b

    def t09_cold_move(self):
        """P3 node 2 -> node 4, without overlap in time, as after a failover."""
        self.g3.exec("ip", "link", "set", "eth0", "down")
        self.n2.driver.ok("unplug", id=P3)
        self.want(**{P3: {"host": "node4"}})
        g = self.n4.add_guest("g3b", "02:00:00:00:00:03", "tap3b")
        self.n4.driver.ok("plug", id=P3, tap="tap3b")
        self.n4.driver.wait_up(P3)
        assert g.dhcp()["ip"] == "198.18.2.13"
        self.g3 = g

    def t10_wrong_host_gets_nothing(self):
        """A node that plugs a port it does not host carries no traffic for it."""
        g = self.n2.add_guest("g1x", "02:00:00:00:00:01", "tap1x")
        self.n2.driver.ok("plug", id=P1, tap="tap1x")
        g.exec("ip", "addr", "add", "198.18.1.11/24", "dev", "eth0")
        g.exec("ip", "neigh", "add", "198.18.1.12", "lladdr", "02:00:00:00:00:02", "dev", "eth0")
        assert g.ping("198.18.1.12", count=3) == 0
        assert not self.n2.driver.up.get(P1)
        assert self.g1.ping("198.18.1.12", count=3) >= 2
        self.n2.driver.ok("unplug", id=P1)

    def t11_own_interface(self):
        """plug_internal: the node itself takes part in a network."""
        self.desired["ports"].append(self.port(P4, NET1, 4, "198.18.1.14", "node2"))
        self.want()
        self.n2.driver.ok("plug_internal", id=P4, tap="probe0")
        self.n2.driver.wait_up(P4)
        self.n2.exec("ip", "link", "set", "probe0", "address", "02:00:00:00:00:04", "mtu", "1442", "up")
        self.n2.exec("ip", "addr", "add", "198.18.1.14/24", "dev", "probe0")
        self.g1.pings("198.18.1.14")
        self.n2.driver.ok("unplug", id=P4)
        self.desired["ports"].pop()
        self.want()
        wait_for("probe0 gone", lambda: "probe0" not in self.n2.exec("ip", "-br", "link").stdout)

    def t12_daemon_restart(self):
        """SIGKILL of the daemon: OVN programs go on and are adopted; nothing changes in the databases."""
        before = {n.i: n.driver.status()["services"] for n in self.lab.nodes}
        rows = self.n1.nbctl("--format=json", "list", "Logical_Switch_Port")
        self.n1.exec("ip", "link", "add", "ghost", "type", "bridge")
        self.n1.driver.ok("plug", id=P4, tap="ghost")
        wait_for("ghost plugged", lambda: "ghost" in self.n1.vsctl("list-ports", "br-int"))
        for n in self.lab.nodes:
            n.driver.end(sig=9)
        self.n1.exec("ip", "link", "del", "ghost")  # its guest dies meanwhile
        assert self.g1.ping("198.18.1.12", count=3) >= 2
        self.start_drivers()
        self.n1.driver.ok("writer", term=1)
        self.want()
        self.n1.driver.ok("plug", id=P1, tap="tap1")
        self.n1.driver.ok("plug", id=P2, tap="tap2b")
        self.n4.driver.ok("plug", id=P3, tap="tap3b")
        self.n1.driver.wait_up(P1)
        self.n1.driver.wait_up(P2)
        self.settled()
        wait_for("stale ghost removed", lambda: "ghost" not in self.n1.vsctl("list-ports", "br-int"))
        for n in self.lab.nodes:
            after = n.driver.status()["services"]
            for s in ("ovn-northd", "ovn-controller") if n.voter else ("ovn-controller",):
                assert after[s]["pid"] == before[n.i][s]["pid"] and after[s]["starts"] == 0, (before, after)
        assert self.n1.nbctl("--format=json", "list", "Logical_Switch_Port") == rows
        assert self.writer.driver.status()["northbound"]["commits"] == 0

    def t13_services_die(self):
        for name in ("ovn-controller", "ovn-northd"):
            old = self.n1.driver.status()["services"][name]["pid"]
            os.kill(old, 9)
            wait_for(f"{name} again", lambda: self.n1.driver.status()["services"][name]["pid"] not in (0, old))
        assert self.g1.ping("198.18.1.12", count=3) >= 2

    def t14_foreign_rows_stay(self):
        self.n1.nbctl("ls-add", "foreign", "--", "lsp-add", "foreign", "fp", "--", "lsp-add", NET1, "hand-made")
        self.n1.nbctl("lsp-set-addresses", P1, "02:00:00:00:00:77")  # somebody meddles with what is ours
        wait_for("repaired", lambda: "02:00:00:00:00:01 198.18.1.11" in self.n1.nbctl("lsp-get-addresses", P1))
        self.settled()
        assert "foreign" in self.n1.nbctl("ls-list") and "hand-made" in self.n1.nbctl("lsp-list", NET1)

    def t15_leader_dies(self):
        """The server that leads NB and SB is killed: another coordinator goes on with a higher term."""
        voters = [n for n in self.lab.nodes if n.voter]
        old = next(n for n in voters if n.role("OVN_Southbound") == "leader")
        others = [n for n in voters if n is not old]
        self.desired["ports"].append(self.port(P4, NET1, 4, "198.18.1.14", f"node{others[0].i}"))
        g = others[0].add_guest("g4", "02:00:00:00:00:04", "tap4")
        others[0].driver.ok("plug", id=P4, tap="tap4")
        t = time.monotonic()
        old.kill("ovn-db")
        self.writer = others[0]
        self.writer.driver.ok("writer", term=2)
        self.want()
        self.writer.driver.wait_up(P4)
        took = time.monotonic() - t
        print(f"   from the leader's death to a new port up: {took:.2f} s")
        assert took < 6, "northd was left to its own back-off of up to 8 s"
        assert g.dhcp()["ip"] == "198.18.1.14"
        assert self.g1.ping("198.18.1.12", count=3) >= 2
        old.start_db()
        wait_for("old leader back", lambda: old.driver.status()["northbound"]["connected"])
        self.g4 = g

    def t16_deposed_writer(self):
        """A writer of a lower term changes nothing, even though it believes to be in office."""
        stale = next(n for n in self.lab.nodes if n is not self.writer)
        stale.driver.ok("writer", term=1)
        stale.driver.ask("desired", networks=[], ports=[], nodes=[])
        wait_for("deposed", lambda: stale.driver.status()["northbound"]["deposed"])
        self.settled()
        assert P4 in self.n1.nbctl("lsp-list", NET1)
        stale.driver.ok("writer", term=0)

    def t17_unplug(self):
        holder = self.writer
        holder.driver.ok("unplug", id=P4)
        wait_for("tap4 out", lambda: "tap4" not in holder.vsctl("list-ports", "br-int").split())
        assert self.g1.ping("198.18.1.14", count=2) == 0

    def t18_switch_restarts(self):
        """ovs-vswitchd of node 2 is killed, then ended in order, which takes br-phy away: its address comes back, its
        route too, and traffic passes."""
        for how in ("kill", "terminate"):
            p = self.n2.procs.pop("vswitchd")
            getattr(p, how)()
            p.wait()
            self.n2.spawn("vswitchd", "ovs-vswitchd", self.n2.ovs_db, f"--unixctl={self.n2.run_dir}/ovs/vswitchd.ctl",
                          "-vsyslog:off")
            wait_for("node 2 answers", lambda: "1 received" in self.n1.exec("ping", "-c", "1", "-W", "1", "192.0.2.2",
                                                                            check=False).stdout)
            route = self.n2.exec("ip", "route", "show", "203.0.113.0/24").stdout
            assert "via 192.0.2.254 dev br-phy" in route, route

    def t19_nothing_wanted(self):
        self.desired = {"nodes": ["node1", "node2", "node3"], "networks": [], "ports": []}
        self.want()
        wait_for("ours gone", lambda: NET1 not in self.n1.nbctl("ls-list") and "owner=cohort" not in
                 self.n1.nbctl("list", "DHCP_Options"))
        assert "foreign" in self.n1.nbctl("ls-list")

    def t20_node_leaves(self):
        """node4 is no member any more: its services end on demand and its chassis goes."""
        self.n4.driver.ok("stop")
        wait_for("chassis of node4 gone",
                 lambda: sorted(self.writer.driver.status()["southbound"]["chassis"]) == ["node1", "node2", "node3"])
        rounds = int(os.environ.get("ENDS", "1"))
        for k in range(rounds):
            for n in self.lab.nodes:
                n.driver.ok("stop")
                n.driver.end_well()
            if k + 1 < rounds:
                self.start_drivers()
                if k % 2 == 0:
                    self.n1.driver.ok("writer", term=3 + k)
                    for n in self.lab.nodes:
                        wait_for("controller", lambda: n.driver.status()["services"]["ovn-controller"]["pid"])
        for n in self.lab.nodes:
            left = [p for p in run("ip", "netns", "pids", n.ns).stdout.split() if "ovn" in
                    open(f"/proc/{p}/comm").read() and "ovn-" in open(f"/proc/{p}/cmdline").read().split("\0")[0]]
            assert not left, left


def main():
    need("ovs-vswitchd", "ovn-northd", "ovn-controller", "ovsdb-tool", "ethtool", "ping", "openssl", BUSYBOX)
    lab = Lab(sys.argv[1], nodes=4, voters=3)
    test, failed = Test(lab), 0
    started = time.monotonic()
    try:
        lab.up()
        test.start()
        for name in sorted(n for n in dir(test) if n.startswith("t") and n[1:3].isdigit()):
            t = time.monotonic()
            getattr(test, name)()
            print(f"ok {name} ({time.monotonic() - t:.2f} s)", flush=True)
    except Exception:
        failed = 1
        traceback.print_exc(file=sys.stdout)
        for n in lab.nodes:
            if n.driver and n.driver.p.poll() is None:
                print(json.dumps(n.driver.status(), indent=1))
        lab.show_logs()
        if os.environ.get("KEEP"):
            print(f"kept: {lab.dir} {lab.id}; press return")
            input()
    finally:
        lab.down()
    print(f"{'FAILED' if failed else 'passed'} in {time.monotonic() - started:.1f} s")
    sys.exit(failed)


main()
