#!/usr/bin/env python3
"""NBD, judged by programs that are not ours: qemu-img copies in and out and compares, nbdcopy, nbdinfo, and fio writes and
verifies 4 KiB to 1 MiB blocks while a node with a copy is killed and returns."""

import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from lab import MIB, LAB, check, note, run, wait_for  # noqa: E402


def uri(volume):
    return f"nbd+unix:///{volume}?socket=/run/cohort/nbd.sock"


def copies(lab, node, scratch):
    """A file with random data, zeros and a hole goes in and comes out the same, by both tools."""
    source = os.path.join(scratch, "in.raw")
    with open(source, "wb") as f:
        f.write(os.urandom(8 * MIB) + bytes(4 * MIB))
        f.seek(24 * MIB)
        f.write(os.urandom(3 * MIB + 4096))
        f.truncate(64 * MIB)
    lab.api("POST", "/volumes", {"name": "nbd-copy", "size_bytes": 64 * MIB, "replicas": 3})
    info = lab.exec(node, "nbdinfo", uri("nbd-copy"))
    check(str(64 * MIB) in info, f"nbdinfo does not tell the volume's size:\n{info}")
    lab.exec(node, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri("nbd-copy"), timeout=180)
    lab.exec(node, "qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri("nbd-copy"), timeout=180)
    back = os.path.join(scratch, "out.raw")
    lab.exec(node, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri("nbd-copy"), back, timeout=180)
    lab.exec(node, "cmp", source, back)
    lab.exec(node, "nbdcopy", uri("nbd-copy"), back, timeout=180)
    lab.exec(node, "cmp", source, back)
    source2 = os.path.join(scratch, "in2.raw")
    with open(source2, "wb") as f:
        f.write(os.urandom(2 * MIB))
        f.truncate(64 * MIB)
    lab.exec(node, "nbdcopy", source2, uri("nbd-copy"), timeout=180)  # zeros must replace what was there
    lab.exec(node, "qemu-img", "compare", "-f", "raw", "-F", "raw", source2, uri("nbd-copy"), timeout=180)
    other = lab.others(node)[0]
    lab.exec(other, "qemu-img", "compare", "-f", "raw", "-F", "raw", source2, uri("nbd-copy"), timeout=180)
    note("qemu-img convert, compare and nbdcopy, in and out, from two nodes: equal")


def fio(lab, node, seconds, scratch):
    """Runs while a node that holds a copy loses its power and returns."""
    lab.api("POST", "/volumes", {"name": "nbd-fio", "size_bytes": 256 * MIB, "replicas": 3})
    argv = ["fio", "--name=v", "--ioengine=nbd", f"--uri={uri('nbd-fio')}", "--rw=randwrite", "--bsrange=4k-1m", "--blockalign=4k",
            "--size=256m", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256", "--time_based",
            f"--runtime={seconds}", "--randrepeat=0", "--output-format=json", f"--output={scratch}/fio.json", f"--aux-path={scratch}"]
    job = subprocess.Popen([LAB, "exec", "--id", lab.id, node, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: lab.api("GET", "/volumes/nbd-fio")["owner"] == node and lab.api("GET", "/volumes/nbd-fio")["shards"], 30,
                 "fio to write")
        victim = lab.others(node)[-1]
        lab.kill(victim)
        note(f"fio runs, {victim} lost its power")
        wait_for(lambda: lab.node_state(victim) == "dead", 60, f"{victim} to be declared dead")
        lab.start(victim)
        lab.wait_node(victim, "up")
        text, _ = job.communicate(timeout=seconds + 120)
    finally:
        if job.poll() is None:
            job.terminate()
            job.wait()
    check(job.returncode == 0, f"fio found an error:\n{text[-3000:]}")
    lab.wait_healthy("nbd-fio")
    note(f"fio --verify=crc32c for {seconds} s with a copy lost and back: no error")


def scenario(lab, args):
    node = lab.names[0]
    scratch = os.path.join(lab.lab.dir, "scratch")
    os.makedirs(scratch, exist_ok=True)
    copies(lab, node, scratch)
    fio(lab, node, args.seconds, scratch)


if __name__ == "__main__":
    run("nbd", scenario, limit_s=340, arguments=lambda p: p.add_argument("--seconds", type=int, default=60))
