#!/usr/bin/env python3
"""A guest's disk: a Cohort volume with one copy beside qemu-storage-daemon's vhost-user-blk export of a raw file on the same
disk, both in one QEMU guest, by turns; who comes first alternates. Equal promise: the export flushes before it completes a write (writethrough), as
every completed write of a volume is durable.

    bench/vhost.py --build build/dev [--seconds 3] [--rounds 3] [--size-mib 512] [--dir DIR] [--iothread] [--jobs TEXT]"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

MEM = "512M"


def wait_for(what, fn, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if fn():
            return
        time.sleep(0.02)
    raise SystemExit("timeout: " + what)


def initrd(root, init, base, out):
    """The guest image's own archive (modules) and behind it one with our init, which wins."""
    os.mkdir(root)
    shutil.copy(init, os.path.join(root, "init"))
    cpio = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=b"init\n", check=True, stdout=subprocess.PIPE).stdout
    with open(base, "rb") as f, open(out, "wb") as o:
        data = f.read()
        o.write(data + b"\0" * (-len(data) % 4) + cpio)


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(args, work, procs):
    size = args.size_mib << 20
    node = os.path.join(work, "node")
    os.mkdir(node)
    log = open(os.path.join(work, "node.log"), "w+")
    a = subprocess.Popen([os.path.join(args.build, "storage/asan/cohort-bench-node"), "--dir", node, "--size", str(size),
                          "--vhost", work + "/a.sock", "--nbd", work + "/nbd.sock"], stdout=log, stderr=log)
    procs.append(a)
    raw = os.path.join(work, "raw")
    with open(raw, "wb") as f:
        os.posix_fallocate(f.fileno(), 0, size)
    b = subprocess.Popen(["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=f,filename={raw},cache.direct=on,aio=io_uring",
                          "--blockdev", "driver=raw,node-name=r,file=f", *(["--object", "iothread,id=io"] if args.iothread else []),
                          "--export", f"type=vhost-user-blk,id=e,node-name=r,addr.type=unix,addr.path={work}/b.sock,writable=on,"
                          "writethrough=on,num-queues=1" + (",iothread=io" if args.iothread else "")], stderr=log)
    procs.append(b)
    wait_for("back ends", lambda: os.path.exists(work + "/a.sock") and os.path.exists(work + "/b.sock"), 60)
    return a, b


def qemu(args, work, procs):
    guest = os.path.join(args.build, "../guest")
    initrd(work + "/root", os.path.join(args.build, "storage/asan/bench-guest"), guest + "/initrd", work + "/initrd")
    disks = []
    for d in "ab":
        disks += ["-chardev", f"socket,id=c{d},path={work}/{d}.sock", "-device", f"vhost-user-blk-pci,chardev=c{d},num-queues=1,queue-size=512"]  # as in compute/qemu/args.c
    q = subprocess.Popen(["qemu-system-x86_64", "-M", "q35,accel=tcg", "-cpu", "qemu64", "-smp", "1", "-m", MEM, "-nodefaults", "-display", "none",
                          "-no-reboot", "-object", f"memory-backend-memfd,id=mem,share=on,size={MEM}", "-numa", "node,memdev=mem",
                          "-kernel", guest + "/kernel", "-initrd", work + "/initrd", "-append",
                          f"console=ttyS0 quiet panic=1 bench.seconds={args.seconds} bench.rounds={args.rounds}" + (f" bench.jobs={args.jobs}" if args.jobs else ""),
                          "-serial", f"file:{work}/console", *disks])
    procs.append(q)
    return q


def text(work):
    try:
        with open(work + "/console", errors="replace") as f:
            return f.read()
    except FileNotFoundError:
        return ""


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default="build/dev")
    p.add_argument("--dir", help="on the disk to be measured (default: the build folder)")
    p.add_argument("--seconds", type=int, default=3)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--size-mib", type=int, default=512)
    p.add_argument("--iothread", action="store_true", help="give qemu-storage-daemon's export a thread of its own")
    p.add_argument("--jobs", default="", help="only those with this in their name")
    args = p.parse_args()
    work = tempfile.mkdtemp(prefix="vhost-bench-", dir=args.dir or args.build)
    procs = []
    try:
        a, b = start(args, work, procs)
        q = qemu(args, work, procs)
        wait_for("the guest to fill its disks", lambda: "BENCH filled" in text(work) or q.poll() is not None, 300)
        cpu = [cpu_seconds(a.pid), cpu_seconds(b.pid)]
        wait_for("the guest to end", lambda: "BENCH done" in text(work) or q.poll() is not None, 120 + args.rounds * args.seconds * 20)
        cpu = [cpu_seconds(a.pid) - cpu[0], cpu_seconds(b.pid) - cpu[1]]
        report(args, text(work), cpu)
    finally:
        for proc in reversed(procs):
            if proc.poll() is None:
                proc.terminate()
            try:
                proc.wait(20)
            except subprocess.TimeoutExpired:
                proc.kill()
                proc.wait()
        shutil.rmtree(work, ignore_errors=True)


def report(args, console, cpu):
    rows, total = {}, {"vda": 0.0, "vdb": 0.0}
    for line in console.splitlines():
        w = line.split()
        if w[:1] == ["BENCH"] and len(w) == 6 and w[1] in total:
            rows.setdefault(w[2], {"vda": [], "vdb": []})[w[1]].append([float(x) for x in w[3:]])
            total[w[1]] += float(w[3]) * args.seconds
    if "BENCH ERROR" in console or "BENCH done" not in console or not rows:
        sys.exit("the guest failed:\n" + console[-2000:])
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, guest: QEMU TCG; median of {args.rounds} × {args.seconds} s\n")
    print("| | volume, 1 copy: IOPS, p50, p99 µs | qemu-storage-daemon, raw file | ratio of IOPS round by round: median (quartiles) |\n|---|---|---|---|")
    for job, r in rows.items():
        m = {d: [statistics.median(c) for c in zip(*r[d])] for d in r}
        ratio = sorted(a[0] / b[0] for a, b in zip(r["vda"], r["vdb"]))
        low, _, high = statistics.quantiles(ratio, n=4) if len(ratio) > 1 else ratio * 3
        print(f"| {job} | {m['vda'][0]:.0f}, {m['vda'][1]:.0f}, {m['vda'][2]:.0f} | {m['vdb'][0]:.0f}, {m['vdb'][1]:.0f}, {m['vdb'][2]:.0f} | "
              f"{statistics.median(ratio):.2f} ({low:.2f}–{high:.2f}) |")
    print(f"\nCPU of the back end per request, all jobs: {cpu[0] / total['vda'] * 1e6:.1f} µs, {cpu[1] / total['vdb'] * 1e6:.1f} µs")


if __name__ == "__main__":
    main()
