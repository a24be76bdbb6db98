"""Library of the integration tests: a lab of one's own, the cluster's API, guests and their disks' promises.

    def scenario(lab, args):
        guest = lab.make_guest("web")
        ...
    run("main_job", scenario, nodes=3, limit_s=900)

`run` brings the lab up and always takes it down again: after success, failure, SIGTERM, Ctrl-C and when the limit is
over (ctest kills a test that is too slow without asking, so the test must notice first). Exit status 77 says skipped.

All waiting is for conditions, with a limit and a name that the failure message shows."""

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "deploy"))
from labkit import api, cables, probe, state, util  # noqa: E402, F401
from labkit.util import LabError  # noqa: E402, F401  (tests import it from here)

LAB = os.path.join(ROOT, "deploy", "lab")
GUEST_IMAGE = os.path.join(ROOT, "build", "guest")
NETWORK, CIDR = "guests", "198.18.1.0/24"
MIB = 1 << 20


# What a failure needs of each node besides Cohort's own logs.
INSIDE = (
    "tail -n 15 /run/cohort/*.log",
    "tail -n 15 /run/cohort/vm/*/serial.log",
    "ovn-sbctl --no-leader-only --db=unix:/run/cohort/db.sock --timeout=3 --columns=logical_port,chassis,requested_chassis,up list port_binding",
    "ovs-vsctl --timeout=3 show",
    "ovs-vsctl --timeout=3 --columns=name,ofport,link_state,statistics list interface",
    "ovs-appctl dpctl/dump-flows -m",
    "grep -hE 'pinctrl|DHCP' /run/cohort/ovn-controller.log",
)


class Failure(Exception):
    """A check did not hold."""


class OutOfTime(BaseException):
    """The test's limit is over. No plain Exception, so that no retry loop swallows it."""


def check(condition, text):
    if not condition:
        raise Failure(text)


def note(text):
    print(f"[{time.monotonic() - STARTED:7.2f}] {text}", flush=True)


def wait_for(condition, timeout, what, interval=0.05):
    """The first true value of condition(); connection trouble counts as not yet."""
    def attempt():
        try:
            return condition()
        except (OSError, LabError, http.client.HTTPException) as e:
            attempt.problem = e
            return None

    attempt.problem = None
    try:
        return util.wait_for(attempt, timeout, what, interval)
    except LabError as e:
        raise Failure(f"{e}" + (f" (last problem: {attempt.problem})" if attempt.problem else "")) from None


STARTED = time.monotonic()


class Guest:
    """A machine that runs deploy/guest, seen from the network and from the API."""

    def __init__(self, lab, name):
        self.lab, self.name = lab, name

    def row(self):
        return self.lab.api("GET", f"/vms/{self.name}")

    @property
    def ip(self):
        return self.row()["networks"][0]["ip"]

    def get(self, path, timeout=2.0, address=None):
        """HTTP GET through the guests' network; decoded JSON. OSError if it does not answer."""
        holder = self.lab.lab.state["probe"]["process"]["pid"]
        c = http.client.HTTPConnection("guest", timeout=timeout)
        c.sock = util.socket_in(holder, (address or self._address(), 80), timeout)
        c.sock.settimeout(timeout)
        try:
            c.request("GET", path)
            return json.loads(c.getresponse().read())
        except (http.client.HTTPException, ValueError) as e:
            raise OSError(f"{type(e).__name__}: {e}") from None
        finally:
            c.close()

    def _address(self):
        if not hasattr(self, "_ip"):
            self._ip = self.ip
        return self._ip

    def last(self, timeout=2.0):
        """What guestd reports: {last, errors, boot_id, writers: […]}."""
        return self.get("/last", timeout)

    def set_load(self, writers):
        self.get(f"/load?writers={writers}", 10)

    def verify(self, acked):
        """Every record that was reported durable is on the disk and intact. `acked`: number per writer."""
        for writer, upto in enumerate(acked):
            if upto:
                answer = self.get(f"/verify?writer={writer}&upto={upto}", 60)
                check(answer["ok"], f"guest {self.name}: records of writer {writer} are lost or damaged: {answer}")

    def wait_http(self, timeout=90, other_than=None):
        """Waits for an answer, from another life of the guest than boot id `other_than`."""
        def answered():
            got = self.last(1.0)
            return got if got["boot_id"] != other_than else None
        return wait_for(answered, timeout, f"guest {self.name} to answer HTTP", 0.02)

    def wait_state(self, wanted, timeout=90, **fields):
        def reached():
            row = self.row()
            check(row["state"] != "failed" or wanted == "failed", f"guest {self.name} failed: {row['message']}")
            return row if row["state"] == wanted and all(row[k] == v for k, v in fields.items()) else None
        return wait_for(reached, timeout, f"guest {self.name} to be {wanted} {fields or ''}")

    def disk(self):
        return self.row()["disks"][0]["volume"]


class Watcher:
    """Asks a guest for its acknowledged numbers all the time; keeps the highest per writer, the longest silence and
    every boot id it met, in order of appearance."""

    def __init__(self, guest, interval=0.03):
        self.guest, self.interval = guest, interval
        self.acked, self.boots, self.errors, self.answers = [], [], 0, 0
        self.gap_s, self.problem = 0.0, None
        self._last = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def _loop(self):
        while not self._end.wait(self.interval):
            try:
                got = self.guest.last(1.0)
            except (OSError, LabError) as e:
                self.problem = e
                continue
            now = time.monotonic()
            self.gap_s, self._last = max(self.gap_s, now - self._last), now
            self.answers += 1
            self.errors = max(self.errors, got["errors"])
            if got["boot_id"] not in self.boots:
                self.boots.append(got["boot_id"])
            self.acked = [max(a, b) for a, b in zip(got["writers"], self.acked or got["writers"])]


class Pings:
    """`ping` through the guests' network at a fixed interval, judged afterwards."""

    def __init__(self, lab, guest, interval_ms=10):
        self.interval_ms = interval_ms
        argv = probe.enter(lab.lab.state["probe"], ["ping", "-n", "-D", "-i", f"{interval_ms / 1000}", guest.ip])
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True)

    def stop(self):
        """{sent, lost, gap_ms}: gap = longest time between two answers."""
        self.process.send_signal(signal.SIGINT)
        try:
            text, _ = self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            text, _ = self.process.communicate()
        times = [float(t) for t in re.findall(r"^\[([\d.]+)\] \d+ bytes", text, re.M)]
        m = re.search(r"(\d+) packets transmitted, (\d+) received", text)
        check(m and len(times) > 1, f"ping gave nothing to judge:\n{text[-500:]}")
        sent, got = int(m[1]), int(m[2])
        return {"sent": sent, "lost": sent - got, "gap_ms": round(1000 * max(b - a for a, b in zip(times, times[1:])), 1)}


class TestLab:
    """deploy/lab with an id of this test's own."""

    def __init__(self, name, nodes, build, options=()):
        self.id = f"t-{name.replace('_', '-')[:12]}-{os.getpid()}"
        self.nodes_wanted, self.build, self.options = nodes, build, list(options)
        self.lab = state.Lab(self.id)

    def command(self, *argv, timeout=180, check_status=True):
        """deploy/lab COMMAND …; its stdout."""
        env = dict(os.environ, COHORT_LAB_ID=self.id)
        done = util.run([LAB, *argv], check=check_status, timeout=timeout, env=env)
        self.lab.load()
        return done.stdout

    def up(self):
        self.command("up", "--nodes", str(self.nodes_wanted), "--build", self.build, *self.options, timeout=240)

    def down(self):
        subprocess.run([LAB, "down", "--id", self.id], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=120, check=False)

    # ---- cluster ----

    def api(self, method, path, body=None, timeout=30):
        return api.call_any(self.lab, method, path, body, timeout)

    def api_on(self, node, method, path, body=None, timeout=10):
        return api.call(self.node(node), method, path, body, timeout)

    def cli(self, *argv, timeout=180):
        """cohort ARGS --json; decoded."""
        text = self.command("cohort", *argv, "--json", timeout=timeout)
        return json.loads(text) if text.strip() else None

    def node(self, name):
        return self.lab.node(name)

    @property
    def names(self):
        return [n["name"] for n in self.lab.nodes()]

    def others(self, *names):
        return [n for n in self.names if n not in names]

    def exec(self, node, *argv, timeout=60, check_status=True):
        return self.command("exec", node, *argv, timeout=timeout, check_status=check_status)

    def kill(self, node):
        self.command("kill", node)

    def start(self, node):
        self.command("start", node)

    def cut(self, node, link=None):
        self.command("cut", node, *(["--link", link] if link else []))

    def heal(self, node, link=None):
        self.command("heal", node, *(["--link", link] if link else []))

    def probe_on(self, node):
        self.command("probe-on", node)

    def node_state(self, node):
        return self.api("GET", f"/nodes/{node}")["state"]

    def wait_node(self, node, wanted, timeout=60):
        wait_for(lambda: self.node_state(node) == wanted, timeout, f"node {node} to be {wanted}")

    def wait_healthy(self, volume, timeout=180):
        def healthy():
            return self.api("GET", f"/volumes/{volume}")["health"] == "healthy"
        wait_for(healthy, timeout, f"volume {volume} to be healthy", 0.1)

    def tasks(self, kind):
        return [t for t in self.api("GET", "/tasks") if t["kind"] == kind]

    def metric(self, node, name):
        """Sum of a counter over its labels on one node; 0 if it is not there yet."""
        holder = self.node(node)
        c = api._UnixConnection(api.socket_path(holder), 10)
        try:
            c.request("GET", "/metrics")
            text = c.getresponse().read().decode()
        finally:
            c.close()
        return sum(float(v) for v in re.findall(rf"^{name}(?:\{{[^}}]*\}})? ([-+.\de]+)$", text, re.M))

    # ---- guests ----

    def make_network(self):
        if not any(n["name"] == NETWORK for n in self.api("GET", "/networks")):
            self.api("POST", "/networks", {"name": NETWORK, "cidr": CIDR})

    def import_image(self, name="debian"):
        if not any(i["name"] == name for i in self.api("GET", "/images")):
            self.cli("image", "import", GUEST_IMAGE, "--name", name, timeout=300)
        wait_for(lambda: self.api("GET", f"/images/{name}")["state"] == "ready", 120, f"image {name} to be ready")

    def make_guest(self, name, host=None, replicas=3, disk_mib=512, memory_mib=256):
        """A guest with one disk on the test network, running and answering; the probe sits on another node than it."""
        self.make_network()
        self.import_image()
        self.api("POST", "/vms", {
            "name": name, "vcpus": 1, "memory_bytes": memory_mib * MIB, "image": "debian", "networks": [NETWORK],
            "disks": [{"size_bytes": disk_mib * MIB, "replicas": replicas}]})
        self.api("POST", f"/vms/{name}/start", {"to": host} if host else {})
        guest = Guest(self, name)
        row = guest.wait_state("running", 120)
        self.probe_on((self.others(row["host"]) or [row["host"]])[0])
        guest.wait_http(120)
        return guest

    # ---- processes, as the host sees them ----

    def processes(self, node, comm):
        """Host pids of a node's processes with that name (15 characters count)."""
        ns, found = os.stat(f"/proc/{self.node(node)['process']['pid']}/ns/pid").st_ino, []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/comm") as f:
                    if f.read().strip() == comm[:15] and os.stat(f"/proc/{pid}/ns/pid").st_ino == ns:
                        found.append(int(pid))
            except OSError:
                pass
        return [p for p in found if util.start_ticks(p) is not None]

    def guest_processes(self, node):
        return self.processes(node, "qemu-system-x86_64")

    def cpu_share(self, pid, seconds=1.0):
        """Share of a core that the process used in the last `seconds`: a paused guest uses none."""
        def ticks():
            with open(f"/proc/{pid}/stat", "rb") as f:
                fields = f.read().rpartition(b")")[2].split()
            return int(fields[11]) + int(fields[12])
        before = ticks()
        time.sleep(seconds)  # a measurement over time, not a wait for something
        return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds

    def kill_daemon(self, node):
        """SIGKILL to cohortd alone; the node's init starts it again."""
        pids = self.processes(node, "cohortd")
        check(len(pids) == 1, f"{node} has {len(pids)} cohortd processes")
        os.kill(pids[0], signal.SIGKILL)
        return pids[0]

    def refused(self, why, *argv):
        """`cohort ARGV` must fail, and say `why`."""
        try:
            self.cli(*argv)
        except LabError as e:
            check(why in str(e), f"cohort {' '.join(argv)} was refused for another reason: {e}")
            return
        check(False, f"cohort {' '.join(argv)} was not refused")

    def crashes(self):
        """Programs of nodes that ended by a fault of their own (not by a test's SIGKILL), and what cohortd's log has besides plain lines."""
        found = []
        for n in self.lab.load().nodes() if self.lab.exists() else []:
            d = self.lab.node_dir(n)
            with open(os.path.join(d, "init.log"), errors="replace") as f:
                ends = [line.strip() for line in f if re.search(r" ended, status -(4|6|7|8|11);", line)]
            if ends:
                with open(os.path.join(d, "log/cohort/cohortd.log"), errors="replace") as f:
                    odd = [line.rstrip() for line in f if not re.match(r"\S+Z (DEBUG|INFO|WARN) ", line)]
                found += [f"{n['name']}: {line}" for line in ends + odd[-20:]]
        return found

    def show_logs(self):
        """The end of every log, for a failure that nobody can look at any more."""
        if not self.lab.exists():
            return
        print("\n".join(self.crashes()))
        for n in self.lab.load().nodes():
            d = self.lab.node_dir(n)
            for path in (os.path.join(d, "init.log"), os.path.join(d, "log/cohort/cohortd.log")):
                print(f"---- {path}\n{util.tail(path, 40)}", flush=True)
            for what in INSIDE:
                with contextlib.suppress(LabError):
                    print(f"---- {n['name']}: {what}\n{self.exec(n['name'], 'sh', '-c', what + ' 2>&1 | tail -n 40', timeout=10, check_status=False)}", flush=True)
        with contextlib.suppress(Exception):
            for row in self.api("GET", "/events?limit=30"):
                print(f"event {row['time_ms']} {row['severity']} {row['object']}: {row['message']}")


def skip(reason):
    print(f"SKIP: {reason}", flush=True)
    sys.exit(77)


def need(build):
    """What an integration test cannot do without."""
    if os.geteuid() != 0:
        skip("needs root for namespaces")
    if not os.path.exists("/dev/net/tun"):
        skip("needs /dev/net/tun for guests' network cards")
    for path in (os.path.join(build, "bin", "cohortd"), os.path.join(build, "bin", "cohort"), os.path.join(GUEST_IMAGE, "kernel")):
        if not os.path.exists(path):
            raise Failure(f"{path} is missing: build it first (deploy/test does)")


def _on_signal(number, _):
    if number == signal.SIGALRM:
        raise OutOfTime()
    sys.exit(128 + number)


def run(name, scenario, nodes=3, limit_s=600, options=(), arguments=None):
    """main() of a test file. `arguments(parser)` adds options of its own; scenario(lab, args)."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.environ.get("COHORT_BUILD", os.path.join(ROOT, "build", "dev")))
    parser.add_argument("--limit", type=int, default=limit_s, help="seconds after which the test gives up")
    parser.add_argument("--keep", action="store_true", help="on failure leave the lab up to look at")
    if arguments:
        arguments(parser)
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, _on_signal)
    lab, status = TestLab(name, nodes, os.path.abspath(args.build), options), 1
    try:
        need(args.build)
        signal.alarm(args.limit)
        lab.up()
        note(f"lab {lab.id}: {nodes} nodes up")
        scenario(lab, args)
        check(not lab.crashes(), "a program crashed")
        note("PASS")
        status = 0
    except (Failure, LabError, OSError) as e:
        note(f"FAIL: {e}")
    except OutOfTime:
        note(f"FAIL: not done after {args.limit} s")
    finally:
        signal.alarm(0)
        if status != 0:
            with contextlib.suppress(Exception):
                lab.show_logs()
        if status != 0 and args.keep:
            print(f"lab kept: deploy/lab status --id {lab.id}; end it with: deploy/lab down --id {lab.id}")
        else:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # nothing may stop the cleaning up
            lab.down()
    sys.exit(status)



def print_table(title, rows):
    """[{column: value}] as text, so that a test's figures can be copied from its output."""
    if not rows:
        return
    columns = list(rows[0])
    width = {c: max(len(str(c)), *(len(str(r[c])) for r in rows)) for c in columns}
    print(title)
    print("  " + "  ".join(str(c).ljust(width[c]) for c in columns))
    for r in rows:
        print("  " + "  ".join(str(r[c]).ljust(width[c]) for c in columns), flush=True)
