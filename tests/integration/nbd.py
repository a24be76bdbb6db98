#!/usr/bin/env python3
"""NBD, judged by programs that are not ours: qemu-img copies in and out and compares, nbdcopy, nbdinfo, and fio writes and
verifies 4 KiB to 1 MiB blocks while a node with a copy is killed and returns. Over TLS a client sees and uses what is allowed to
it, and loses it at once."""

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
    seen = lab.cli("debug", "asan", "nbd-copy")
    check([v["name"] for v in seen["volumes"]] == ["nbd-copy"] and seen["copies"] and all(c["in_sync"] and c["last"][1] for c in seen["copies"])
          and seen["disks"][0]["journal_used_bytes"] <= seen["disks"][0]["journal_bytes"], f"cohort debug asan nbd-copy: {seen}")
    source2 = os.path.join(scratch, "in2.raw")
    with open(source2, "wb") as f:
        f.write(os.urandom(2 * MIB))
        f.truncate(64 * MIB)
    lab.exec(node, "nbdcopy", source2, uri("nbd-copy"), timeout=180)  # zeros must replace what was there
    lab.exec(node, "qemu-img", "compare", "-f", "raw", "-F", "raw", source2, uri("nbd-copy"), timeout=180)
    other = lab.others(node)[0]
    lab.exec(other, "qemu-img", "compare", "-f", "raw", "-F", "raw", source2, uri("nbd-copy"), timeout=180)
    note("qemu-img convert, compare and nbdcopy, in and out, from two nodes: equal")


def clients(lab, node, scratch):
    """Two clients with certificates of their own, from another node than the one that made them."""
    for name, size in (("tls-a", 64 * MIB), ("tls-b", MIB)):
        lab.api("POST", "/volumes", {"name": name, "size_bytes": size, "replicas": 3})
    pki = os.path.join(scratch, "pki")
    for client in ("reader", "writer"):
        lab.cli("nbd-client", "create", client, "--dir", os.path.join(pki, client))
    lab.cli("nbd-client", "allow", "writer", "tls-a", "--write")
    other = lab.others(node)[0]
    server = lab.node(other)["address"]

    def tls(client, export):
        return f"nbds://{server}:10809/{export}?tls-certificates={pki}/{client}"

    def refused(*argv):
        text = lab.exec(node, "sh", "-c", '"$@" 2>&1 && echo =it worked=', "sh", *argv, timeout=120, check_status=False)
        check("=it worked=" not in text, f"{argv} was not refused:\n{text}")
        return text

    source, back = os.path.join(scratch, "tls.raw"), os.path.join(scratch, "tls-back.raw")
    with open(source, "wb") as f:
        f.write(os.urandom(2 * MIB))
        f.truncate(64 * MIB)
    wait_for(lambda: "=it worked=" in lab.exec(node, "sh", "-c", '"$@" && echo =it worked=', "sh", "nbdcopy", source, tls("writer", "tls-a"), timeout=120),
             30, "the other node to know of the client", interval=0.5)
    lab.api("POST", "/snapshots", {"volumes": ["tls-a"], "name": "s1"})
    wait_for(lambda: any(s["name"] == "tls-a@s1" for s in lab.api("GET", "/snapshots")), 30, "the snapshot")
    check("no access" in refused("env", "LIBNBD_DEBUG=1", "nbdinfo", tls("writer", "tls-b")), "the refusal does not say why")
    check("no access" in refused("env", "LIBNBD_DEBUG=1", "nbdinfo", tls("reader", "tls-a")), "a client without any volume")
    lab.cli("nbd-client", "allow", "reader", "tls-a")
    wait_for(lambda: lab.exec(node, "nbdinfo", "--size", tls("reader", "tls-a")).strip() == str(64 * MIB), 10, "the reader to see it")
    lab.exec(node, "nbdinfo", "--is", "read-only", tls("reader", "tls-a"))
    for export in ("tls-a", "tls-a@s1"):
        lab.exec(node, "nbdcopy", tls("reader", export), back, timeout=120)
        lab.exec(node, "cmp", source, back)
    refused("nbdcopy", source, tls("reader", "tls-a"))
    names = lab.exec(node, "nbdinfo", "--list", tls("reader", ""))
    check('export="tls-a"' in names and 'export="tls-a@s1"' in names and "tls-b" not in names, f"the reader is shown other names:\n{names}")
    check("tls-b" in lab.exec(node, "nbdinfo", "--list", "nbd+unix://?socket=/run/cohort/nbd.sock"), "root does not see all")
    # Taken away while it reads: the connection ends, by itself.
    job = subprocess.Popen([LAB, "exec", "--id", lab.id, node, "stdbuf", "-oL", "qemu-io", "-r", "--object",
                            f"tls-creds-x509,id=t,endpoint=client,dir={pki}/reader", "-c", "read 0 4k", "-c", "sleep 4000", "-c", "read 0 4k",
                            "--image-opts", f"driver=nbd,server.type=inet,server.host={server},server.port=10809,export=tls-a,tls-creds=t"],
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
    lines = [job.stdout.readline()]
    check(lines[0].startswith("read 4096/4096"), f"qemu-io: {lines[0]}")
    lab.cli("nbd-client", "delete", "reader")
    lines += job.communicate(timeout=60)[0].splitlines()
    check(any("fail" in line for line in lines), f"a deleted client goes on reading: {lines}")
    refused("nbdinfo", tls("reader", "tls-a"))
    note("NBD over TLS: clients see and use what is allowed to them, and lose it at once")


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
    clients(lab, node, scratch)
    fio(lab, node, args.seconds, scratch)


if __name__ == "__main__":
    run("nbd", scenario, limit_s=340, arguments=lambda p: p.add_argument("--seconds", type=int, default=60))
