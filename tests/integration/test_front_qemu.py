#!/usr/bin/env python3
"""vhost-user-blk judged by QEMU and a Linux guest.

usage: test_front_qemu.py SERVER GUEST_INIT GUEST_DIR [SCENARIO...]

SERVER is cohort-front-test, GUEST_INIT the static test_front_guest, GUEST_DIR holds kernel and initrd of
deploy/image-debian. The guest writes, discards and verifies its disk all the time and reports any error it sees.

  kill     the back end is killed with SIGKILL and started again, over and over: no request lost, no error in the guest
  park     the volume parks for seconds, the guest is stopped and continued meanwhile: a pause, no error
  migrate  live migration to a second QEMU whose back end serves the same content: dirty logging, draining
  resize   the volume grows: the running guest sees its new size and reads its new end
  nofront  garbage on the socket, and QEMU killed in the middle of I/O: the back end serves the next one

Exit status 77 with the reason when QEMU or the guest image is missing."""
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
DISK = 64 * MIB
MEM = "524296K"  # not a multiple of 256 KiB: QEMU 7.2's pre-copy under TCG loses pages otherwise


def skip(why):
    print("skipped:", why)
    sys.exit(77)


def wait_for(what, fn, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        r = fn()
        if r:
            return r
        time.sleep(0.01)
    raise AssertionError("timeout: " + what)


class Server:
    def __init__(self, t, name, delay=2, more=()):
        self.t, self.name, self.delay, self.more = t, name, delay, more
        self.sock, self.log, self.resubmitted = t.path(name + ".sock"), t.path(name + ".log"), 0
        self.start()

    def start(self):
        out = open(self.log, "w")
        self.p = self.t.spawn([self.t.server, "--file", self.t.path("disk.img"), "--size", str(DISK), "--vhost",
                               self.sock, "--delay", str(self.delay), *self.more], stdout=out, stderr=out)
        wait_for("server ready", lambda: "ready" in open(self.log).read() or self.died())

    def died(self):
        if self.p.poll() is not None:
            raise AssertionError("server ended: " + open(self.log).read())

    def kill(self):
        self.died()
        self.p.kill()
        self.p.wait()
        self.resubmitted += sum(int(l.split("queue")[1].split(":")[1].split()[0])
                                for l in open(self.log) if "carried out again" in l)

    def end(self):
        self.died()
        self.p.terminate()
        rc = self.p.wait(20)
        text = open(self.log).read()
        assert rc == 0, "server exit %d: %s" % (rc, text)
        return text


class Qemu:
    def __init__(self, t, name, server, seconds, incoming=False):
        self.t, self.console, qmp = t, t.path(name + ".console"), t.path(name + ".qmp")
        args = ["qemu-system-x86_64", "-M", "q35,accel=tcg", "-cpu", "qemu64", "-smp", "2", "-m", MEM, "-nodefaults",
                "-display", "none", "-no-reboot", "-object", "memory-backend-memfd,id=mem,share=on,size=" + MEM,
                "-numa", "node,memdev=mem", "-kernel", t.kernel, "-initrd", t.path("initrd"),
                "-append", "console=ttyS0 quiet panic=1 front.seconds=%d front.threads=4" % seconds,
                "-serial", "file:" + self.console, "-qmp", "unix:%s,server=on,wait=off" % qmp,
                "-chardev", "socket,id=d0,reconnect=1,path=" + server.sock,
                "-device", "vhost-user-blk-pci,chardev=d0,num-queues=2,queue-size=512"]
        self.p = t.spawn(args + (["-incoming", "defer"] if incoming else []))
        self.qmp = socket.socket(socket.AF_UNIX)
        self.qmp.settimeout(60)
        wait_for("qmp", lambda: self.try_connect(qmp))
        self.f = self.qmp.makefile("rw")
        self.f.readline()
        self.cmd("qmp_capabilities")

    def try_connect(self, path):
        assert self.p.poll() is None, "qemu ended"
        try:
            self.qmp.connect(path)
            return True
        except OSError:
            return False

    def cmd(self, name, **args):
        self.f.write(json.dumps({"execute": name, "arguments": args}) + "\n")
        self.f.flush()
        while True:
            r = json.loads(self.f.readline())
            if "error" in r:
                raise AssertionError("%s: %s" % (name, r["error"]))
            if "return" in r:
                return r["return"]

    def text(self):
        return open(self.console, errors="replace").read() if os.path.exists(self.console) else ""

    def wait_text(self, what, seconds=60):
        wait_for("guest says " + what, lambda: what in self.text() or self.check_alive(), seconds)

    def check_alive(self):
        assert self.p.poll() is None, "qemu ended; console: " + self.text()

    def result(self, seconds=90):
        # The serial console is written letter by letter: the line is there when its end is.
        wait_for("the guest's result", lambda: re.search(r"FRONT done.*\n", self.text()) or self.check_alive(), seconds)
        text = self.text()
        line = re.search(r"FRONT done.*\n", text).group().split()
        assert "FRONT ERROR" not in text and line[-1] == "0" and "I/O error" not in text, text
        return int(line[3])


class Test:
    def __init__(self, server, init, guest_dir):
        self.server, self.kernel, self.procs = server, os.path.join(guest_dir, "kernel"), []
        self.dir = tempfile.mkdtemp(prefix="cohort-front-")
        self.make_initrd(init, os.path.join(guest_dir, "initrd"))

    def path(self, name):
        return os.path.join(self.dir, name)

    def spawn(self, args, **kw):
        p = subprocess.Popen(args, **kw)
        self.procs.append(p)
        return p

    def make_initrd(self, init, base):
        """The image's own archive (modules) and behind it one with our init, which wins."""
        root = self.path("root")
        os.mkdir(root)
        shutil.copy(init, os.path.join(root, "init"))
        cpio = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=b"init\n", check=True,
                              stdout=subprocess.PIPE).stdout
        with open(self.path("initrd"), "wb") as out:
            data = open(base, "rb").read()
            out.write(data + b"\0" * (-len(data) % 4) + cpio)

    def fresh(self):
        open(self.path("disk.img"), "wb").close()
        for p in self.procs:
            if p.poll() is None:
                p.kill()
            p.wait()
        self.procs = []

    def close(self):
        self.fresh()
        shutil.rmtree(self.dir, ignore_errors=True)

    def scenario_kill(self):
        s = Server(self, "a", delay=4)
        q = Qemu(self, "q", s, seconds=15)
        q.wait_text("serial cohort-front-test")
        rng, kills = random.Random(7), 0
        while "FRONT done" not in q.text() and kills < 8:
            time.sleep(rng.uniform(0.3, 1.5))
            s.kill()
            kills += 1
            s.start()
            q.check_alive()
        ops = q.result()
        q.p.wait(30)
        s.end()
        assert s.resubmitted > 0, "no kill met a request in flight: the test proved nothing"
        print("kill: %d kills, %d requests carried out again, %d operations of the guest" % (kills, s.resubmitted, ops))

    def scenario_resize(self):
        s = Server(self, "a", more=("--start", str(DISK // 2)))
        q = Qemu(self, "q", s, seconds=4)
        q.wait_text("FRONT start bytes %d " % (DISK // 2))
        s.p.send_signal(signal.SIGHUP)
        ops = q.result()
        q.wait_text("FRONT end bytes %d last block readable" % DISK)
        q.p.wait(30)
        s.end()
        print("resize: from %d to %d MiB under %d operations" % (DISK // 2 // MIB, DISK // MIB, ops))

    def scenario_park(self):
        s = Server(self, "a")
        q = Qemu(self, "q", s, seconds=10)
        q.wait_text("FRONT start")
        for _ in range(2):
            s.p.send_signal(signal.SIGUSR1)
            time.sleep(1.5)  # how long it is parked
            s.p.send_signal(signal.SIGUSR2)
            time.sleep(0.5)  # how long it runs between
            q.cmd("stop")  # drains: QEMU waits for GET_VRING_BASE
            q.cmd("cont")
        ops = q.result()
        q.p.wait(30)
        s.end()
        print("park: %d operations of the guest" % ops)

    def scenario_migrate(self):
        a, b = Server(self, "a"), Server(self, "b")
        src = Qemu(self, "src", a, seconds=12)
        dst = Qemu(self, "dst", b, seconds=12, incoming=True)
        src.wait_text("FRONT start")
        uri = "unix:" + self.path("migrate.sock")
        dst.cmd("migrate-incoming", uri=uri)
        src.cmd("migrate-set-parameters", **{"downtime-limit": 1000, "max-bandwidth": 200 * MIB})
        src.cmd("migrate", uri=uri)
        wait_for("migration", lambda: self.migrated(src), 60)
        wait_for("destination runs", lambda: dst.cmd("query-status")["running"], 20)
        src.cmd("quit")
        ops = dst.result()
        dst.p.wait(30)
        log = a.end() + b.end()
        assert "dropped" not in log, log
        print("migrate: %d operations of the guest" % ops)

    def migrated(self, src):
        st = src.cmd("query-migrate").get("status")
        assert st not in ("failed", "cancelled"), src.cmd("query-migrate")
        return st == "completed"

    def scenario_nofront(self):
        s = Server(self, "a")
        for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 600, b"\x05\0\0\0\1\0\0\0\xff\xff\0\0"):
            c = socket.socket(socket.AF_UNIX)
            c.settimeout(10)
            c.connect(s.sock)
            c.sendall(junk)
            try:
                assert c.recv(1) == b"", "garbage was answered"
            except ConnectionResetError:
                pass
            c.close()
        for _ in range(3):
            q = Qemu(self, "q", s, seconds=60)
            q.wait_text("FRONT start")
            q.p.kill()
            q.p.wait()
            os.unlink(q.console)
        q = Qemu(self, "q", s, seconds=2)
        # A guest that was killed left its blocks behind; this one expects zeroes.
        q.p.kill()
        q.p.wait()
        s.end()
        open(self.path("disk.img"), "wb").close()
        s.start()
        q = Qemu(self, "q", s, seconds=3)
        ops = q.result()
        q.p.wait(30)
        s.end()
        print("nofront: %d operations of the guest" % ops)


def main():
    server, init, guest_dir = sys.argv[1:4]
    if not shutil.which("qemu-system-x86_64"):
        skip("qemu-system-x86_64 is not installed")
    for f in (server, init):
        if not os.path.exists(f):
            skip(f + " is not built")
    if not os.path.exists(os.path.join(guest_dir, "kernel")):
        skip("no guest image in %s (deploy/image-debian makes it)" % guest_dir)
    t = Test(server, init, guest_dir)
    try:
        for name in sys.argv[4:] or ["kill", "park", "migrate", "nofront"]:
            t.fresh()
            try:
                getattr(t, "scenario_" + name)()
            except BaseException:
                for f in sorted(os.listdir(t.dir)):
                    if f.endswith((".log", ".console")):
                        print("--- %s\n%s" % (f, open(t.path(f), errors="replace").read()[-3000:]))
                raise
    finally:
        t.close()


main()
