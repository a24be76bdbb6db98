"""Control groups: every node gets its own subtree and, by a cgroup namespace, sees it as the whole hierarchy. So nodes (and
parallel labs) may use the same paths for their guests, and `lab down` removes all of it.

cgroup v1 (one hierarchy per controller) and v2 are both handled; a host without writable hierarchies gets none."""

import os
import time


def hierarchies():
    """[(mount point, type, controllers)] of the host's cgroup mounts that matter to guests."""
    found, seen = [], set()
    with open("/proc/self/mounts") as f:
        for line in f:
            _, where, kind, options = line.split()[:4]
            if where in seen or "ro" in options.split(","):
                continue
            if kind == "cgroup2":
                found.append((where, kind, ""))
            elif kind == "cgroup":
                controllers = [o for o in options.split(",") if o in ("memory", "cpu", "cpuacct", "pids", "freezer")]
                if not controllers:
                    continue
                found.append((where, kind, ",".join(controllers)))
            else:
                continue
            seen.add(where)
    return found


def _delegate(path):
    """v2: hands memory and cpu down to the children of `path`; where the host has not got them that stays so."""
    try:
        with open(os.path.join(path, "cgroup.subtree_control"), "w") as f:
            f.write("+memory +cpu")
    except OSError:
        pass


def create(lab_id, node):
    """Makes the node's groups; returns their directories (a process enters by writing to cgroup.procs)."""
    made = []
    for where, kind, _ in hierarchies():
        parent = os.path.join(where, f"cohort-lab-{lab_id}")
        try:
            os.makedirs(os.path.join(parent, node), exist_ok=True)
        except OSError:
            continue
        if kind == "cgroup2":
            for p in (where, parent):
                _delegate(p)
        made.append(os.path.join(parent, node))
    return made


def remove(lab_id, node=None):
    """Removes the groups of one node, or of the whole lab. Their processes must be gone."""
    for where, _, _ in hierarchies():
        top = os.path.join(where, f"cohort-lab-{lab_id}")
        for path, _, _ in os.walk(os.path.join(top, node) if node else top, topdown=False):
            for _ in range(50):  # the kernel lets go of a dead group a moment after its last process
                try:
                    os.rmdir(path)
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.02)


def leave(groups, pid):
    """Moves `pid` to the top again: with v2 a process in the node's group would keep it from handing controllers down."""
    for where, kind, _ in hierarchies():
        if kind == "cgroup2" and any(g.startswith(where + "/") for g in groups):
            try:
                with open(os.path.join(where, "cgroup.procs"), "w") as f:
                    f.write(str(pid))
            except OSError:
                pass
