#!/usr/bin/env python3
"""House style that a machine can check: no file of 800 lines or more, every source file begins by saying what it is for, no
tab where C is indented, no trailing space, no unfinished work, every header has a guard."""

import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FOLDERS = "base proto cluster storage net compute migrate ha daemon cli console deploy bench tests cmake".split()
LINES_MAX = 800
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
COMMENT_FIRST = {".c": ("/*", "//"), ".h": ("/*", "//"), ".py": ("#", '"""'), ".proto": ("/*", "//"), ".cmake": ("#",), ".sh": ("#",)}


def problems(path, text):
    found, kind = [], os.path.splitext(path)[1]
    lines = text.splitlines()
    if len(lines) >= LINES_MAX:
        found.append(f"{path}: {len(lines)} lines; split it (limit {LINES_MAX})")
    first = COMMENT_FIRST.get(kind)
    if first and lines and not lines[0].startswith(first):
        found.append(f"{path}:1: does not begin with a comment that says what the file is for")
    if kind == ".h" and not re.search(r"^#ifndef \w+\n#define \w+", text, re.M) and "#pragma once" not in text:
        found.append(f"{path}: header without a guard")
    for number, line in enumerate(lines, 1):
        if line != line.rstrip():
            found.append(f"{path}:{number}: trailing space")
        if kind in (".c", ".h") and line.startswith("\t"):
            found.append(f"{path}:{number}: tab")
        if UNFINISHED.search(line):
            found.append(f"{path}:{number}: unfinished work: {line.strip()[:80]}")
    return found


def self_test():
    good = "/* A. */\n#ifndef A\n#define A\n#endif\n"
    assert not problems("a.h", good)
    assert problems("a.h", good.replace("/* A. */\n", ""))
    assert problems("a.h", "/* A. */\nint a;\n")
    assert problems("a.c", "/* A. */\n\tint a;\n")
    assert problems("a.c", "/* A. */\nint a; \n")
    assert problems("a.c", "/* A. */\n" * LINES_MAX)
    assert problems("a.c", "/* A. TO" "DO: write it */\n")


def main():
    self_test()
    found, files = [], 0
    for folder in FOLDERS:
        for base, dirs, names in os.walk(os.path.join(ROOT, folder)):
            dirs[:] = sorted(d for d in dirs if d != "__pycache__")
            for name in sorted(names):
                path = os.path.join(base, name)
                try:
                    with open(path, encoding="utf-8") as f:
                        text = f.read()
                except UnicodeDecodeError:
                    continue  # test data
                files += 1
                found += problems(os.path.relpath(path, ROOT), text)
    print("\n".join(found) if found else f"{files} files: in order")
    if files == 0:
        sys.exit("no file was found: the check checks nothing")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
