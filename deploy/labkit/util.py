"""Processes, namespaces and small helpers. Standard library only."""

import ctypes
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """Something a user can act on; the message says what and how."""


def say(text):
    print(text, flush=True)


def run(argv, check=True, timeout=60, **kw):
    """Runs a command and returns its CompletedProcess (text). On failure: LabError with what it said."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, **kw)
    except subprocess.TimeoutExpired:
        raise LabError(f"no end after {timeout} s: {shlex.join(argv)}") from None
    except FileNotFoundError:
        raise LabError(f"{argv[0]} is not installed; run: sudo deploy/deps") from None
    if check and done.returncode != 0:
        raise LabError(f"{shlex.join(argv)}: {(done.stderr or done.stdout).strip() or f'exit status {done.returncode}'}")
    return done


def wait_for(condition, timeout, what, interval=0.05):
    """Polls until condition() is true and returns its value; LabError naming `what` after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise LabError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(interval)


# ---- processes, named so that a reused pid is not mistaken for ours ----

def start_ticks(pid):
    """Start time of a process in clock ticks (/proc/PID/stat field 22); None if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def identity(pid):
    return {"pid": pid, "ticks": start_ticks(pid)}


def alive(who):
    return bool(who) and who.get("ticks") is not None and start_ticks(who["pid"]) == who["ticks"]


def kill(who):
    """SIGKILL, if it is still that process."""
    if not alive(who):
        return
    try:
        fd = os.pidfd_open(who["pid"])
    except ProcessLookupError:
        return
    try:
        if alive(who):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


def kill_and_wait(who, timeout=30):
    """SIGKILL, and returns when the process is gone (for a namespace's pid 1: everything in it, too)."""
    kill(who)
    wait_for(lambda: not alive(who), timeout, f"the end of process {(who or {}).get('pid')}", interval=0.01)


def spawn(argv, log, env=None, cgroups=()):
    """Starts a process of its own session that outlives us; stdout and stderr are appended to `log`."""

    def enter():
        for path in cgroups:
            with open(os.path.join(path, "cgroup.procs"), "w") as f:
                f.write("0")

    with open(log, "ab") as out:
        try:
            p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                                 env=env, preexec_fn=enter if cgroups else None, cwd="/")
        except FileNotFoundError:
            raise LabError(f"{argv[0]} is not installed; run: sudo deploy/deps") from None
    # Our own child would stay a zombie while we run; nobody else asks for its status.
    threading.Thread(target=p.wait, daemon=True).start()
    return p.pid


# ---- network namespaces ----

def ip_in(pid, *args, check=True):
    """`ip ARGS…` in the network namespace of `pid`."""
    return run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", *args], check=check)


def socket_in(pid, address, timeout):
    """A TCP connection made inside the network namespace of `pid`. A socket stays in the namespace it was made in, so
    only the making happens in a thread that has entered it (setns is per thread)."""
    result = []

    def make():
        try:
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(fd, CLONE_NEWNET) != 0:
                    e = ctypes.get_errno()
                    raise OSError(e, os.strerror(e))
            finally:
                os.close(fd)
            result.append(socket.create_connection(address, timeout))
        except OSError as e:
            result.append(e)

    t = threading.Thread(target=make)
    t.start()
    t.join()
    if isinstance(result[0], OSError):
        raise result[0]
    return result[0]


# ---- files ----

def write_json(path, value):
    """Atomically; readable by root only (it may hold a token)."""
    tmp = f"{path}.tmp.{os.getpid()}"
    with open(os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")
    os.rename(tmp, path)


def read_json(path):
    with open(path) as f:
        return json.load(f)


def tail(path, lines=20):
    try:
        with open(path, errors="replace") as f:
            return "".join(f.readlines()[-lines:])
    except OSError:
        return ""


def die(text, status=1):
    print(f"lab: {text}", file=sys.stderr, flush=True)
    sys.exit(status)
