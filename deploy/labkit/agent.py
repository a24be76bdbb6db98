#!/usr/bin/env python3
"""The lab's forwarder: publishes each node's API on a 127.0.0.1 port of the host, and guests' ports on demand.

    agent.py LAB_ID

Listening sockets live in the host's namespace, outgoing ones are made inside a node's (or the probe's) namespace, so
that the host needs neither an interface nor a route. Nodes are looked up per connection: they may be restarted under
it. Ends when the lab's directory is gone (and by `lab down`)."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from labkit import util  # noqa: E402
from labkit.state import ROOT, Lab  # noqa: E402

API_PORT = 7443
CONNECT_S = 5


def pump(a, b):
    """Copies one direction until its end, then passes that end on."""
    try:
        while data := a.recv(65536):
            b.sendall(data)
    except OSError:
        pass
    with contextlib.suppress(OSError):
        b.shutdown(socket.SHUT_WR)


def join_sockets(client, server):
    back = threading.Thread(target=pump, args=(server, client), daemon=True)
    back.start()
    pump(client, server)
    back.join()
    client.close()
    server.close()


class Listener:
    """Accepts on 127.0.0.1:port; `connect` makes the other side or raises OSError."""

    def __init__(self, connect, port=0):
        self.connect = connect
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.sock.bind(("127.0.0.1", port))
        except OSError:
            self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(64)
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self.loop, daemon=True).start()

    def loop(self):
        while True:
            client, _ = self.sock.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        try:
            server = self.connect()
        except (OSError, util.LabError) as e:
            print(f"port {self.port}: {e}", flush=True)
            client.close()
            return
        server.settimeout(None)
        join_sockets(client, server)


class Agent:
    def __init__(self, lab_id):
        self.lab = Lab(lab_id)
        self.listeners, self.guests = {}, {}
        self.lock = threading.Lock()

    def connect_node(self, name):
        node = Lab(self.lab.id).load().node(name)
        if not util.alive(node.get("process")):
            raise OSError(f"{name} is off")
        return util.socket_in(node["process"]["pid"], (node["address"], API_PORT), CONNECT_S)

    def connect_guest(self, network, ip, port):
        for attempt in (1, 2):
            probe = Lab(self.lab.id).load().state.get("probe", {})
            try:
                if not util.alive(probe.get("process")):
                    raise OSError("the probe is not there")
                return util.socket_in(probe["process"]["pid"], (ip, port), CONNECT_S)
            except OSError:
                if attempt == 2:
                    raise
            # Its node may have died: `probe` plugs it in elsewhere.
            subprocess.run([os.path.join(ROOT, "deploy", "lab"), "probe", "--id", self.lab.id, "--network", network, "true"],
                           stdin=subprocess.DEVNULL, timeout=60, check=False)
        raise OSError("unreachable")

    def publish_nodes(self):
        """A port per node; the same ones again after a restart of this process where they are free."""
        with self.lock:
            for node in Lab(self.lab.id).load().nodes():
                name = node["name"]
                if name not in self.listeners:
                    self.listeners[name] = Listener(lambda name=name: self.connect_node(name), node.get("api_port") or 0)
            return {name: lst.port for name, lst in self.listeners.items()}

    def forward(self, request):
        key = (request["network"], request["ip"], int(request["port"]))
        with self.lock:
            if key not in self.guests:
                self.guests[key] = Listener(lambda: self.connect_guest(*key))
            return {"port": self.guests[key].port}

    def answer(self, request):
        if request["do"] == "nodes":
            return self.publish_nodes()
        if request["do"] == "forward":
            return self.forward(request)
        return {"error": "unknown request"}

    def run(self):
        with control_socket(self.lab) as path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            s = socket.socket(socket.AF_UNIX)
            s.bind(path)
            s.listen(8)
        s.settimeout(2)
        while os.path.isdir(self.lab.dir):
            try:
                client, _ = s.accept()
            except socket.timeout:
                continue
            with client, client.makefile("rwb") as f:
                try:
                    reply = self.answer(json.loads(f.readline()))
                except Exception as e:  # a bad request must not end the forwarder
                    reply = {"error": str(e)}
                with contextlib.suppress(OSError):
                    f.write(json.dumps(reply).encode() + b"\n")
                    f.flush()


@contextlib.contextmanager
def control_socket(lab):
    """A path to the control socket that is short enough for sockaddr_un wherever the repository lies."""
    fd = os.open(lab.dir, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/agent.sock"
    finally:
        os.close(fd)


def ask(lab, request):
    """Sends one request to the lab's agent."""
    with control_socket(lab) as path, socket.socket(socket.AF_UNIX) as s:
        s.settimeout(30)
        s.connect(path)
        with s.makefile("rwb") as f:
            f.write(json.dumps(request).encode() + b"\n")
            f.flush()
            reply = json.loads(f.readline())
    if "error" in reply:
        raise util.LabError(f"forwarder: {reply['error']}")
    return reply


def ensure(lab):
    """Starts the agent if it does not run, and records the nodes' ports."""
    if not util.alive(lab.state.get("agent")):
        pid = util.spawn([sys.executable, "-B", os.path.abspath(__file__), lab.id], lab.path("agent.log"), lab.environment())
        lab.state["agent"] = util.identity(pid)
        lab.save()

    def ports():
        try:
            return ask(lab, {"do": "nodes"})
        except OSError:
            if not util.alive(lab.state["agent"]):
                raise util.LabError(f"the forwarder ended:\n{util.tail(lab.path('agent.log'))}") from None
            return None

    found = util.wait_for(ports, 10, "the lab's forwarder", interval=0.02)
    for node in lab.nodes():
        node["api_port"] = found[node["name"]]
    lab.save()


if __name__ == "__main__":
    Agent(sys.argv[1]).run()
