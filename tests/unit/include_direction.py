#!/usr/bin/env python3
"""Includes point one way (docs/architecture.md, section 2):

    base <- proto <- cluster <- {storage, net, compute} <- {migrate, ha} <- daemon          cli: base only

Siblings never include each other, and quoted includes name the file from the repository's root. --self-test shows that a
wrong include is found."""

import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LAYERS = [["base"], ["proto"], ["cluster"], ["storage", "net", "compute"], ["migrate", "ha"], ["daemon"]]
ALLOWED = {"cli": {"cli", "base"}}
for depth, layer in enumerate(LAYERS):
    below = {m for lower in LAYERS[:depth] for m in lower}
    for module in layer:
        ALLOWED[module] = below | {module}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
GENERATED = (".pb-c.h", "-idl.h")


def problems(module, path, text):
    found = []
    for include in INCLUDE.findall(text):
        top = include.split("/")[0]
        if top in ALLOWED and top not in ALLOWED[module]:
            found.append(f"{path}: {module}/ may not include \"{include}\" (allowed: {', '.join(sorted(ALLOWED[module]))})")
    return found


def sources(module):
    for base, _, names in os.walk(os.path.join(ROOT, module)):
        for name in sorted(names):
            if name.endswith((".c", ".h")) and not name.endswith(GENERATED):
                yield os.path.join(base, name)


def self_test():
    assert problems("base", "x.c", '#include "proto/rpc.h"\n')
    assert problems("net", "x.c", '  # include "storage/asan/vol.h"\n')
    assert problems("cli", "x.c", '#include "cluster/cdb.h"\n')
    assert not problems("ha", "x.c", '#include "net/anet/anet.h"\n#include <uv.h>\n#include "ha/plan.h"\n')


def main():
    self_test()
    found, files = [], 0
    for module in ALLOWED:
        for path in sources(module):
            files += 1
            with open(path) as f:
                found += problems(module, os.path.relpath(path, ROOT), f.read())
    print("\n".join(found) if found else f"{files} files: includes point one way")
    if files == 0:
        sys.exit("no source file was found: the check checks nothing")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
