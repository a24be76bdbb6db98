"""Makes a cluster out of the lab's nodes, through the same API that people use."""

import os
import time

from . import api, util
from .util import LabError, say


def member(lab, node):
    return os.path.exists(os.path.join(lab.node_dir(node), "lib/cohort/node.json"))


def wait_daemon(lab, node, timeout=60):
    try:
        util.wait_for(lambda: api.listening(node) or not util.alive(node["process"]), timeout, f"cohortd on {node['name']}")
    except LabError as e:
        raise LabError(f"{e}\n{util.tail(os.path.join(lab.node_dir(node), 'log/cohort/cohortd.log'))}") from None
    if not util.alive(node["process"]):
        raise LabError(f"{node['name']} went down:\n{util.tail(os.path.join(lab.node_dir(node), 'init.log'))}")


def _patiently(node, method, path, body, timeout, what):
    """A call that may be too early (no leader yet, daemon still starting): again until it is answered or refused."""
    end = time.monotonic() + timeout
    while True:
        try:
            return api.call(node, method, path, body, timeout=60)
        except api.ApiError as e:
            if e.status not in (503, 504) or time.monotonic() > end:
                raise LabError(f"{what}: {e}") from None
        except OSError as e:
            if time.monotonic() > end:
                raise LabError(f"{what}: {e}") from None
        time.sleep(0.1)


def form(lab):
    """init on the first node, join on the others, until every node is up. Does only what is still missing."""
    first = lab.nodes()[0]
    for node in lab.nodes():
        wait_daemon(lab, node)
    if not member(lab, first):
        start = time.monotonic()
        # The admin token is shown this one time.
        lab.state["token"] = _patiently(first, "POST", "/cluster/init", {"name": lab.id}, 60, "cluster init")["admin_token"]
        lab.save()
        say(f"    {first['name']}: cluster {lab.id!r} founded ({time.monotonic() - start:.1f} s)")
    for node in lab.nodes()[1:]:
        if member(lab, node):
            continue
        start = time.monotonic()
        token = _patiently(first, "POST", "/cluster/tokens", {"role": "join", "ttl_s": 600}, 60, "join token")["token"]
        try:
            _patiently(node, "POST", "/cluster/join", {"token": token}, 60, f"{node['name']} joins")
        except LabError:
            if not member(lab, node):  # else an earlier attempt had been heard, only its answer was lost
                raise
        say(f"    {node['name']}: joined ({time.monotonic() - start:.1f} s)")
    wait_up(lab)
    if not lab.state.get("token"):  # an interrupted `up` may have missed it
        name = f"lab-{time.time_ns():x}"
        lab.state["token"] = _patiently(first, "POST", "/tokens", {"name": name, "role": "admin"}, 60, "admin token")["token"]
    lab.state["ca_file"] = os.path.join(lab.node_dir(first), "lib/cohort/pki/ca.pem")
    lab.save()


def node_states(lab):
    return {n["name"]: n["state"] for n in api.call_any(lab, "GET", "/nodes")}


def wait_up(lab, timeout=90):
    names = [n["name"] for n in lab.nodes()]
    seen = {}

    def all_up():
        nonlocal seen
        try:
            seen = node_states(lab)
        except LabError:
            return False
        return all(seen.get(n) == "up" for n in names)

    try:
        util.wait_for(all_up, timeout, "every node to be up", interval=0.1)
    except LabError as e:
        raise LabError(f"{e}; the cluster says {seen or 'nothing'}") from None
