#!/usr/bin/env python3
"""Everything at once, for as long as wanted: 3 nodes, 3 copies, disks that forget, and two Debian guests on them.

  - guest `fio` verifies (crc32c) random writes of 512 B to 1 MiB with fsyncs and discards on its raw disk
  - guest `files` runs the file exerciser on ext4 and xfs (deploy/guest/exerciser.c)

Meanwhile a seeded script kills nodes, cuts and delays cables, freezes and slows disks, and fills them; after each
all is brought back and every volume must become healthy by itself. The node of `files` may be killed: the guest is
then restarted elsewhere, fsck must find nothing and the exerciser everything that it had synced. The node of `fio` is killed
once, at the end: what the last pass had written must verify on the restarted guest. No guest may see an I/O error.

    tests/integration/torture.py --minutes 10 [--seed N] [--only kill,freeze]"""

import http.client
import json
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import MIB, NETWORK, ROOT, Failure, Guest, check, note, print_table, run, skip, util, wait_for  # noqa: E402

IMAGE = os.path.join(ROOT, "build", "guest-torture")
FIO_MIB = 48
ROOM = 100 * MIB
EVENTS = {"kill": 4, "cut": 3, "delay": 2, "freeze": 3, "slow": 2, "full": 2}  # name: how often, relative
SHORT_CUT_S = 1.5  # less than the lease: the guest of a node cut for so long stays where it is


class Torture(Guest):
    """A guest of build/guest-torture with a job."""

    def __init__(self, lab, name, job, disks_mib):
        super().__init__(lab, name)
        self.job, self.disks_mib = job, disks_mib
        self.boot_id, self.starts = None, 0

    def create(self, host):
        self.lab.api("POST", "/vms", {
            "name": self.name, "vcpus": 1, "memory_bytes": 400 * MIB, "image": "torture", "networks": [NETWORK],
            "disks": [{"size_bytes": mib * MIB, "replicas": 3} for mib in self.disks_mib]})
        self.lab.api("POST", f"/vms/{self.name}/start", {"to": host})

    def volumes(self):
        return [d["volume"] for d in self.row()["disks"]]

    def ask(self, query, timeout=10):
        holder = self.lab.lab.state["probe"]["process"]["pid"]
        c = http.client.HTTPConnection("guest", timeout=timeout)
        c.sock = util.socket_in(holder, (self._address(), 81), timeout)
        c.sock.settimeout(timeout)
        try:
            c.request("GET", f"/cgi-bin/job?{query}")
            return c.getresponse().read().decode(errors="replace")
        except http.client.HTTPException as e:
            raise OSError(f"{type(e).__name__}: {e}") from None
        finally:
            c.close()

    def start_job(self, *args):
        wait_for(lambda: "started" in self.ask(",".join(["start", self.job, *map(str, args)])), 60, f"{self.name}'s job to start", 0.2)
        self.boot_id = self.last(10)["boot_id"]
        self.starts += 1

    def progress(self):
        """(state, output) of the job: running, exit N or absent."""
        state, _, text = self.ask(f"show,{self.job}").partition("\n")
        return state, text

    def must_be_well(self, state, text):
        check(state in ("running", "exit 0"), f"guest {self.name}: {self.job} says {state}:\n{text}\nkernel: {self.ask('kernel')}")

    def wait_end(self, timeout):
        def ended():
            state, text = self.progress()
            self.must_be_well(state, text)
            return text if state == "exit 0" else None
        return wait_for(ended, timeout, f"{self.name}'s job to end", 0.3)

    def no_errors(self):
        said = self.ask("kernel").strip()
        check(not said, f"guest {self.name}: its kernel complains:\n{said}")
        check(self.last(10)["errors"] == 0, f"guest {self.name}: guestd saw I/O errors")


class Script:
    """The seeded sequence of faults. One at a time: two at once may rightly stop everything."""

    def __init__(self, lab, rng, fio, files, wanted):
        self.lab, self.rng, self.fio, self.files = lab, rng, fio, files
        self.wanted, self.bag, self.rows = wanted, [], []

    def next_event(self):
        """Every kind comes up before any comes twice as often as it should, in short runs too."""
        if not self.bag:
            first = [e for e in EVENTS if e in self.wanted]
            rest = [e for e in first for _ in range(EVENTS[e] - 1)]
            self.rng.shuffle(first)
            self.rng.shuffle(rest)
            self.bag = rest + first
        return self.bag.pop()

    def victim(self, spare_fio):
        host = self.fio.row()["host"]
        return self.rng.choice(self.lab.others(host) if spare_fio else self.lab.names)

    def pause(self, low, high):
        time.sleep(self.rng.uniform(low, high))  # how long a fault lasts is the test's input

    def kill(self):
        node = self.victim(True)
        self.lab.kill(node)
        self.pause(1, 8)
        self.lab.start(node)
        return node

    def cut(self):
        node = self.victim(False)
        self.lab.cut(node)
        if node == self.fio.row()["host"]:
            time.sleep(self.rng.uniform(0.2, SHORT_CUT_S))
        else:
            self.pause(1, 10)
        self.lab.heal(node)
        return node

    def delay(self):
        node = self.victim(False)
        self.lab.command("delay", node, str(self.rng.randrange(5, 60)))
        self.pause(3, 8)
        self.lab.command("delay", node, "0")
        return node

    def disk(self, low, high, *words):
        node, which = self.victim(False), self.rng.choice([["fast"], ["capacity"], []])
        self.lab.command("disk", node, *words, *which)
        self.pause(low, high)
        self.lab.command("disk", node, "ok")
        return f"{node} {which[0] if which else 'both'}"

    def freeze(self):
        return self.disk(1, 4, "stall")

    def slow(self):
        return self.disk(3, 8, "slow", str(self.rng.randrange(5, 80)))

    def full(self):
        """No capacity disk grows beyond what it has reserved and ROOM more, and a new volume, larger than any of them, is written
        until a disk says that it is full. The filler and the guests that write new data wait; then there is room again, and all
        must go on."""
        size = 0
        for node in self.lab.names:
            disks = json.loads(self.lab.command("disk", node, "status"))["disks"]
            used = next(d["used_bytes"] for d in disks if d["name"] == "capacity")
            self.lab.command("disk", node, "size", str(used + ROOM), "capacity")
            size = max(size, (used + ROOM) // MIB * MIB)
        node = self.lab.others(self.fio.row()["host"])[0]
        self.lab.api("POST", "/volumes", {"name": "filler", "size_bytes": size, "replicas": 3})
        with ThreadPoolExecutor(1) as pool:
            filler = pool.submit(self.lab.exec, node, "qemu-io", "-f", "raw", "-c", f"write -P 0x5a 0 {size}",
                                 "nbd+unix:///filler?socket=/run/cohort/nbd.sock", timeout=300)

            def full_and_used():
                if filler.done():
                    raise Failure(f"what fills the disks ended before there was room for it: {filler.exception() or filler.result()}")
                return [(d["full"], d["used_bytes"]) for d in self.lab.api("GET", "/disks")]

            def change(since):
                now = full_and_used()
                return now if now != since else None
            try:
                state = full_and_used()
                while not any(full for full, used in state):
                    state = wait_for(lambda: change(state), 30, "a disk to become fuller")
                self.pause(3, 8)
                full_and_used()
            except Failure as f:
                raise Failure(f"{f}\n{size} bytes on {node}\n{self.lab.api('GET', '/disks')}\n"
                              f"{self.lab.cli('debug', 'asan', 'filler')}") from None
            finally:
                for n in self.lab.names:
                    self.lab.command("disk", n, "ok")
            check("wrote" in filler.result(), f"the filler's write: {filler.result()}")
        wait_for(lambda: not any(d["full"] for d in self.lab.api("GET", "/disks")), 40, "no disk to be full any more")
        wait_for(lambda: self.lab.cli("volume", "delete", "filler") or True, 30, "the filler's use to end and it to go")
        return "all"

    def recover(self):
        for n in self.lab.names:
            self.lab.wait_node(n, "up", 90)
        for g in (self.fio, self.files):
            for v in g.volumes():
                self.lab.wait_healthy(v, 240)

    def one(self):
        what, started = self.next_event(), time.monotonic()
        where = getattr(self, what)()
        note(f"{what} {where}")
        self.recover()
        self.rows.append({"event": what, "where": where, "healthy again s": f"{time.monotonic() - started:.1f}"})


def look_after(fio, files, until, seed):
    """After each event: fio's guest is the same one as ever and its job in order; `files` was perhaps restarted."""
    check(fio.wait_http(90)["boot_id"] == fio.boot_id, "the guest of fio was restarted, though its node was spared")
    fio.must_be_well(*wait_for(fio.progress, 60, "the guest of fio to answer"))
    now = files.wait_http(120)
    if now["boot_id"] != files.boot_id:
        files.start_job(max(5, int(until - time.monotonic())), seed)
        return
    state, text = wait_for(files.progress, 60, "the guest of files to answer")
    files.must_be_well(state, text)


def last_cut(lab, fio, files, seed):
    """The power of fio's own node, after its last pass: what it had written must be there for the restarted guest."""
    host, boot = fio.row()["host"], fio.boot_id
    lab.probe_on(lab.others(host)[0])
    lab.kill(host)
    fio.wait_http(120, other_than=boot)
    fio.start_job("vdb", FIO_MIB, 0, seed, "verify")
    fio.wait_end(180)
    note(f"{host} of the guest of fio lost: its last pass (seed {seed}) verified on {fio.row()['host']}")
    if files.wait_http(120)["boot_id"] != files.boot_id:
        files.start_job(5, files.seed)
        files.wait_end(180)
    lab.start(host)


def seed_of(text):
    return int(text.rsplit("last seed ", 1)[1].split()[0])


def scenario(lab, args):
    if not os.path.exists(os.path.join(IMAGE, "initrd")):
        skip(f"{IMAGE} is missing: deploy/image-debian --torture")
    note(f"seed {args.seed}")
    rng = random.Random(args.seed)
    seconds = int(args.minutes * 60)
    lab.make_network()
    lab.cli("image", "import", IMAGE, "--name", "torture", timeout=300)
    wait_for(lambda: lab.api("GET", "/images/torture")["state"] == "ready", 120, "the image to be ready")
    fio = Torture(lab, "fio", "fio", [64, FIO_MIB + 16])
    files = Torture(lab, "files", "files", [64, 320, 320])
    files.seed = rng.randrange(1 << 30)
    hosts = rng.sample(lab.names, 2)
    for guest, host in zip((fio, files), hosts):
        guest.create(host)
    lab.probe_on(hosts[0])  # the node that is not killed before the end
    for guest in (fio, files):
        guest.wait_http(180)
    note("both guests answer")
    began = time.monotonic()
    fio.start_job("vdb", FIO_MIB, seconds, rng.randrange(1 << 30))
    files.start_job(seconds, files.seed, "fresh")
    script = Script(lab, rng, fio, files, args.only.split(","))
    time.sleep(min(10, seconds / 6))  # some data first
    while time.monotonic() < began + seconds:
        script.one()
        look_after(fio, files, began + seconds, files.seed)
    text = fio.wait_end(300)
    note("fio: " + text.strip().splitlines()[-1])
    note("files: " + " | ".join(files.wait_end(300).strip().splitlines()))
    last_cut(lab, fio, files, seed_of(text))
    script.recover()
    for guest in (fio, files):
        guest.no_errors()
    print_table(f"seed {args.seed}, {args.minutes:g} minutes, {files.starts - 1} restarts of the guest of files", script.rows)


def arguments(parser):
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--only", default=",".join(EVENTS), help="kinds of faults, comma-separated")


def limit():
    """The limit follows the wanted length."""
    for i, word in enumerate(sys.argv):
        if word == "--minutes" and i + 1 < len(sys.argv):
            return int(float(sys.argv[i + 1]) * 60 + 600)
    return 420


if __name__ == "__main__":
    run("torture", scenario, limit_s=limit(), options=["--lossy"], arguments=arguments)
