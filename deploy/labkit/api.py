"""REST client for a node's unix socket (root needs no token there), reached from the host through /proc/PID/root."""

import http.client
import json
import os
import socket

from . import cables, util
from .util import LabError


class ApiError(LabError):
    """An error answer of the API: {code, message, hint}."""

    def __init__(self, status, body):
        self.status = status
        self.code = body.get("code", status)
        hint = body.get("hint")
        super().__init__(f"{body.get('message', 'error')}" + (f" ({hint})" if hint else ""))


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def socket_path(node):
    return f"/proc/{node['process']['pid']}/root/run/cohort/api.sock"


def call(node, method, path, body=None, timeout=30):
    """One request to one node; the decoded JSON answer. OSError if its daemon cannot be reached."""
    c = _UnixConnection(socket_path(node), timeout)
    try:
        payload = None if body is None else json.dumps(body)
        c.request(method, "/api/v1" + path, payload, {"Content-Type": "application/json"} if payload else {})
        answer = c.getresponse()
        text = answer.read().decode()
    except http.client.HTTPException as e:
        raise OSError(f"{type(e).__name__}: {e}") from None
    finally:
        c.close()
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError:
        raise LabError(f"{method} {path}: not JSON: {text[:200]!r}") from None
    if answer.status >= 400:
        raise ApiError(answer.status, value if isinstance(value, dict) else {})
    return value


def call_any(lab, method, path, body=None, timeout=30):
    """The same against the first node that answers; cut nodes last."""
    problem = None
    for node in sorted(lab.live_nodes(), key=cables.is_cut):
        try:
            return call(node, method, path, body, timeout)
        except OSError as e:
            problem = f"{node['name']}: {e}"
    raise LabError(f"no node's daemon answers ({problem or 'all nodes are off'}); see: deploy/lab logs n1")


def listening(node):
    if not util.alive(node.get("process")) or not os.path.exists(socket_path(node)):
        return False
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(2)
            s.connect(socket_path(node))
        return True
    except OSError:
        return False
