#!/usr/bin/env python3
"""What is wrong must be refused with an error that says so, and must harm nobody: garbage instead of TLS and frames, foreign
certificates, expired and unknown tokens, impossible sizes, things that are no image, unknown JSON fields, a damaged and a
foreign disk."""

import http.client
import json
import os
import ssl
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
import rpc  # noqa: E402
from lab import MIB, LabError, api, check, note, run, util, wait_for  # noqa: E402

PORTS = {"control": 7700, "storage": 7701, "api": 7443}


def refused(lab, method, path, body, *words, status=None):
    """The request must fail with a message that contains the words (so that a user learns what is wrong)."""
    try:
        lab.api(method, path, body)
    except api.ApiError as e:
        text = str(e).lower()
        check(all(w.lower() in text for w in words), f"{method} {path} {body}: the message does not say {words}: {e}")
        check(status is None or e.status == status, f"{method} {path}: HTTP status {e.status}, expected {status}")
        check(e.status < 500, f"{method} {path} {body}: told as our own failure ({e.status}): {e}")
        return
    check(False, f"{method} {path} {body}: was accepted")


def alive(lab):
    """Each node's daemon, which must not die or restart over what the test does: the oldest process of that name (a child
    that has not called exec yet has it, too)."""
    return {n: min(lab.processes(n, "cohortd"), key=util.start_ticks) for n in lab.names}


def garbage(lab):
    """Bytes that are no TLS, half a TLS hello, and a hello followed by silence, on every port."""
    pid = lab.node("n1")["process"]["pid"]
    target = lab.node("n2")["address"]
    hello = bytes.fromhex("16030102000100") + bytes(505)
    for name, port in PORTS.items():
        for data in (b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" * 70000, hello, hello[:20]):
            s = util.socket_in(pid, (target, port), 5)
            try:
                s.sendall(data)
                s.settimeout(0.2)
                try:
                    s.recv(4096)
                except OSError:
                    pass
            except OSError:
                pass  # the daemon may hang up while we still talk
            finally:
                s.close()
    note("garbage on every port: refused")


def make_certificate(scratch, san):
    key, cert = os.path.join(scratch, "key.pem"), os.path.join(scratch, "cert.pem")
    util.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
              "-subj", "/CN=intruder", "-addext", f"subjectAltName={san}", "-keyout", key, "-out", cert])
    return cert, key


def tls_answer(lab, port, context, send):
    """What a TLS client gets from n2; raises OSError if the server hangs up."""
    pid, target = lab.node("n1")["process"]["pid"], lab.node("n2")["address"]
    raw = util.socket_in(pid, (target, port), 5)
    with context.wrap_socket(raw) as s:
        s.settimeout(5)
        s.sendall(send)
        return s.recv(4096)


def client_context(cert=None, key=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if cert:
        context.load_cert_chain(cert, key)
    return context


def certificates(lab, scratch):
    """RPC ports take nobody without a certificate of the cluster's CA, whatever name the certificate bears."""
    node_id = lab.api("GET", "/nodes/n1")["id"]
    intruder = make_certificate(scratch, f"URI:cohort:node:{node_id},DNS:{node_id}")
    for what, context in (("none", client_context()), ("foreign", client_context(*intruder))):
        for port in (PORTS["control"], PORTS["storage"]):
            try:
                got = tls_answer(lab, port, context, bytes(64))
            except OSError:
                continue
            check(got == b"", f"certificate {what}: port {port} answered {got[:40]!r}")
    note("no certificate, foreign certificate: refused")


def frames(lab):
    """Under a true member's certificate: truncated, oversized, damaged and unknown frames. Each ends its connection or is
    answered with an error; none may be waited for, allocated for, or killed by."""
    pki = os.path.join(lab.lab.node_dir(lab.node("n1")), "lib/cohort/pki")
    cert, key = os.path.join(pki, "node.pem"), os.path.join(pki, "node.key")
    good = rpc.header(rpc.PING, 1, 0, 0)
    bad = {
        "garbage": os.urandom(4096), "zeros": bytes(4096), "wrong checksum": good[:-1] + bytes([good[-1] ^ 1]),
        "wrong magic": rpc.header(rpc.PING, 1, 0, 0, magic=0x12345678), "wrong version": rpc.header(rpc.PING, 1, 0, 0, version=9),
        "unknown flags": rpc.header(rpc.PING, 1, 0, 0, flags=0x80), "protobuf of 4 GiB": rpc.header(rpc.STORE_WRITE, 1, 0xFFFFFFFF, 0),
        "data of 4 GiB": rpc.header(rpc.STORE_WRITE, 1, 16, 0xFFFFFFFF), "unknown kind": rpc.header(60000, 1, 0, 0),
        "reply to nothing": rpc.header(rpc.PING, 77, 0, 0, flags=rpc.FLAG_REPLY),
        "protobuf garbage": rpc.header(rpc.STORE_WRITE, 1, 64, 0) + b"\xff" * 64,
        "write without its data": rpc.header(rpc.STORE_WRITE, 1, 0, 0),
    }
    pid, address = lab.node("n1")["process"]["pid"], lab.node("n2")["address"]
    for port in (PORTS["control"], PORTS["storage"]):
        for what, data in bad.items():
            c = rpc.Connection(util.socket_in(pid, (address, port), 5), cert, key)
            try:
                c.sock.sendall(data)
                c.sock.settimeout(5)
                _, _, flags, _, _, _, _, _ = rpc.FRAME.unpack(c.read(rpc.SIZE)[:28])
                check(flags & rpc.FLAG_ERROR, f"port {port}: {what} was answered as if it were good")
            except TimeoutError:
                check(False, f"port {port}: {what} was neither answered nor refused within 5 s")
            except OSError:
                pass  # hung up on: right
            finally:
                c.close()
        c = rpc.Connection(util.socket_in(pid, (address, port), 5), cert, key)
        c.sock.sendall(good[:20])  # half a header, then gone
        c.close()
    note(f"{len(bad)} kinds of bad frames under a member's certificate: refused")


def https(lab, path, token):
    """GET over TLS as a browser would; (status, JSON)."""
    pid, target = lab.node("n1")["process"]["pid"], lab.node("n2")["address"]
    c = http.client.HTTPConnection("api", timeout=10)
    c.sock = client_context().wrap_socket(util.socket_in(pid, (target, PORTS["api"]), 5))
    c.request("GET", "/api/v1" + path, headers={"Authorization": f"Bearer {token}"} if token else {})
    answer = c.getresponse()
    body = answer.read()
    c.close()
    return answer.status, json.loads(body or b"{}")


def tokens(lab):
    good = lab.lab.state["token"]
    check(https(lab, "/nodes", good)[0] == 200, "the lab's own token is refused")
    for token in (None, "", "nonsense", good + "x", good[:-1], "A" * 5000):
        status, body = https(lab, "/nodes", token)
        check(status in (400, 401, 431), f"token {str(token)[:20]!r}: status {status} {body}")
    brief = lab.api("POST", "/tokens", {"name": "brief", "role": "viewer", "ttl_s": 1})["token"]
    wait_for(lambda: https(lab, "/nodes", brief)[0] == 401, 10, "a token of one second to expire", 0.1)
    status, body = https(lab, "/nodes", brief)
    check("expired" in body["message"], f"an expired token is not called so: {body}")
    viewer = lab.api("POST", "/tokens", {"name": "viewer", "role": "viewer"})["token"]
    check(https(lab, "/tokens", viewer)[0] == 403, "a viewer may list tokens")
    refused(lab, "POST", "/cluster/tokens", {"role": "join", "ttl_s": 1}, "ttl_s", status=400)
    refused(lab, "POST", "/cluster/tokens", {"role": "admin"}, "role", status=400)
    join = lab.api("POST", "/cluster/tokens", {"role": "join"})["token"]
    for text, words in (("nonsense", "token"), (join[:-3], "token"), (join, "already")):
        refused(lab, "POST", "/cluster/join", {"token": text}, words)
    note("tokens: unknown, damaged, expired and too weak ones refused")


def requests(lab):
    v = {"name": "v", "size_bytes": 64 * MIB, "replicas": 3}
    refused(lab, "POST", "/volumes", {**v, "size_bytes": 4097 * 512 + 1}, "size_bytes", status=400)
    refused(lab, "POST", "/volumes", {**v, "size_bytes": 0}, "size_bytes", status=400)
    refused(lab, "POST", "/volumes", {**v, "size_bytes": -4096}, "size_bytes", status=400)
    refused(lab, "POST", "/volumes", {**v, "size_bytes": 1 << 62}, "size_bytes", status=400)
    refused(lab, "POST", "/volumes", {**v, "size_bytes": "64M"}, "size_bytes", status=400)
    refused(lab, "POST", "/volumes", {**v, "replicas": 4}, "replicas", status=400)
    refused(lab, "POST", "/volumes", {**v, "colour": "red"}, "colour", status=400)
    refused(lab, "POST", "/volumes", {"size_bytes": MIB}, "name", status=400)
    refused(lab, "POST", "/volumes", {**v, "name": "../etc"}, "name", status=400)
    refused(lab, "POST", "/volumes", [1, 2], status=400)
    refused(lab, "POST", "/networks", {"name": "x", "cidr": "198.18.1.0/33"}, "cidr", status=400)
    refused(lab, "POST", "/networks", {"name": "x", "cidr": "198.18.1.7/24"}, "cidr", status=400)
    refused(lab, "POST", "/vms", {"name": "x", "memory_bytes": 1, "disks": []}, "memory", status=400)
    refused(lab, "POST", "/vms", {"name": "x", "memory_bytes": 256 * MIB, "image": "no-such"}, "no-such", status=404)
    refused(lab, "GET", "/vms/no-such", None, "no-such", status=404)
    refused(lab, "GET", "/nothing", None, status=404)
    refused(lab, "DELETE", "/nodes", None, status=405)
    refused(lab, "POST", "/cluster/init", {"name": "again"})
    lab.api("POST", "/volumes", v)
    refused(lab, "POST", "/volumes", v, "exists", status=409)
    lab.api("DELETE", "/volumes/v")
    note("impossible requests: refused with what is wrong")


def raw_body(lab):
    """Bodies that are no JSON, or too much of it."""
    pid = lab.node("n1")["process"]["pid"]
    check(pid, "n1 is off")
    for body in (b"{", b"\xff\xfe", b'{"name":"x","name":"y"}', b"[" * 100000, b'{"name":"' + b"x" * (1 << 20) + b'"}'):
        c = api._UnixConnection(api.socket_path(lab.node("n1")), 10)
        try:
            c.request("POST", "/api/v1/volumes", body, {"Content-Type": "application/json"})
            status = c.getresponse().status
            check(400 <= status < 500, f"body {body[:20]!r}…: status {status}")
        except (OSError, http.client.HTTPException):
            pass  # it may hang up on a body that is too long
        finally:
            c.close()
    note("bodies that are no JSON: refused")


def images(lab, scratch):
    """An image directory with files that are not what their names say."""
    for what, files in (("text as a kernel", {"kernel": b"hello\n" * 1000, "initrd": b"x" * 4096}),
                        ("an empty kernel", {"kernel": b"", "initrd": b"x"}), ("no kernel", {"initrd": b"x" * 512}), ("nothing", {})):
        d = os.path.join(scratch, what.replace(" ", "-"))
        os.makedirs(d, exist_ok=True)
        for name, data in files.items():
            with open(os.path.join(d, name), "wb") as f:
                f.write(data)
        try:
            lab.cli("image", "import", d, "--name", "bad")
        except LabError as e:
            note(f"image of {what}: {str(e).splitlines()[-1][:140]}")
        else:
            row = lab.api("GET", "/images/bad")
            check(row["state"] == "failed", f"image of {what} was imported: {row}")
        for row in lab.api("GET", "/images"):
            if row["name"] == "bad":
                check(row["state"] != "ready", f"image of {what} is ready")
                lab.api("DELETE", "/images/bad")


def restart_daemon(lab, node):
    old = lab.kill_daemon(node)
    wait_for(lambda: lab.processes(node, "cohortd") not in ([], [old]) and api.listening(lab.node(node)), 30, "cohortd to be started again")


def disk_of(lab, node):
    node_id = lab.api("GET", f"/nodes/{node}")["id"]
    return next(d for d in lab.api("GET", "/disks") if d["node_id"] == node_id)


def spoil(path):
    """Overwrites the first MiB, labels and headers with it, of every file below `path`."""
    spoiled = 0
    for base, _, names in os.walk(path):
        for name in names:
            full = os.path.join(base, name)
            size = os.path.getsize(full)
            with open(full, "r+b") as f:
                f.write(os.urandom(min(size, MIB)))
            spoiled += 1
    return spoiled


def disks(lab):
    """A damaged and a foreign fast disk: the node says so and does not use it; the cluster lives and nothing is lost."""
    lab.api("POST", "/volumes", {"name": "keep", "size_bytes": 64 * MIB, "replicas": 3})
    uri = "nbd+unix:///keep?socket=/run/cohort/nbd.sock"
    lab.exec("n1", "sh", "-c", f"head -c 3145728 /dev/urandom > /var/lib/keep.raw && truncate -s 64M /var/lib/keep.raw && "
             f"qemu-img convert -n -f raw -O raw /var/lib/keep.raw '{uri}'", timeout=120)
    lab.kill("n3")
    fast = os.path.join(lab.lab.node_dir(lab.node("n3")), "disks/fast")
    check(spoil(fast) > 0, f"{fast} is empty: there is nothing to damage")
    lab.start("n3")
    wait_for(lambda: disk_of(lab, "n3")["state"] == "failed" and disk_of(lab, "n3")["message"], 60, "the damaged disk to be called failed")
    note(f"damaged journal: {disk_of(lab, 'n3')['message']}")
    check(disk_of(lab, "n1")["state"] == "up", "a sound disk is called failed")
    lab.exec("n1", "qemu-img", "compare", "-f", "raw", "-F", "raw", "/var/lib/keep.raw", uri, timeout=120)

    lab.kill("n3")
    other = os.path.join(lab.lab.node_dir(lab.node("n2")), "disks/fast")
    util.run(["rm", "-rf", fast])
    util.run(["cp", "-a", "--sparse=always", other, fast])
    lab.start("n3")
    wait_for(lambda: disk_of(lab, "n3")["state"] == "failed", 60, "the foreign disk to be refused")
    note(f"foreign disk: {disk_of(lab, 'n3')['message']}")
    lab.exec("n1", "qemu-img", "compare", "-f", "raw", "-F", "raw", "/var/lib/keep.raw", uri, timeout=120)


def scenario(lab, args):
    scratch = os.path.join(lab.lab.dir, "scratch")
    os.makedirs(scratch, exist_ok=True)
    before = alive(lab)
    garbage(lab)
    certificates(lab, scratch)
    frames(lab)
    tokens(lab)
    requests(lab)
    raw_body(lab)
    images(lab, scratch)
    check(alive(lab) == before, f"a daemon died of it: {before} -> {alive(lab)}")
    check(all(lab.node_state(n) == "up" for n in lab.names), "a node is not up any more")
    restart_daemon(lab, "n2")
    lab.wait_node("n2", "up")
    disks(lab)


if __name__ == "__main__":
    run("bad_input", scenario, limit_s=280)
