"""One 4 KiB write to each of many shards at once, through one NBD connection per volume; run inside a node by rebuild.py.

    nbdload.py SOCKET NAME-PREFIX VOLUMES SHARDS SHARD_BYTES

Makes every shard by a first write and says "primed SECONDS". For each line on standard input it writes to all shards at
once and prints a JSON object: seconds until the first, half, 99 % and all were answered, and what failed."""

import json
import selectors
import socket
import struct
import sys
import time

OPTION, GO, ACK = 0x49484156454F5054, 7, 1
BLOCK = 4096


def receive(s, n):
    data = b""
    while len(data) < n:
        part = s.recv(n - len(data))
        if not part:
            raise EOFError("the server closed the connection")
        data += part
    return data


def connect(path, name):
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    receive(s, 18)
    s.sendall(struct.pack(">IQIII", 3, OPTION, GO, 4 + len(name) + 2, len(name)) + name.encode() + b"\0\0")
    while True:
        _, _, kind, length = struct.unpack(">QIII", receive(s, 20))
        receive(s, length)
        if kind == ACK:
            return s
        if kind & 0x80000000:
            raise OSError(f"{name}: refused with {kind:#x}")


def write_all(sockets, shards, shard_bytes, at):
    """One write to each shard at offset `at` of it; list of (seconds, error)."""
    begin, answers, left = time.monotonic(), [], {}
    with selectors.DefaultSelector() as ready:
        for s in sockets:
            for i in range(shards):
                s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, i, i * shard_bytes + at, BLOCK) + b"r" * BLOCK)
            left[s] = shards
            ready.register(s, selectors.EVENT_READ)
        while left:
            for key, _ in ready.select():
                s = key.fileobj
                _, error, _ = struct.unpack(">IIQ", receive(s, 16))
                answers.append((time.monotonic() - begin, error))
                left[s] -= 1
                if not left[s]:
                    del left[s]
                    ready.unregister(s)
    return answers


def main():
    path, prefix, volumes, shards, shard_bytes = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    begin = time.monotonic()
    sockets = [connect(path, f"{prefix}{i}") for i in range(volumes)]
    for k in range(0, volumes, 20):  # not everything at once: each makes a row
        write_all(sockets[k:k + 20], shards, shard_bytes, 0)
    print(f"primed {time.monotonic() - begin:.1f}", flush=True)
    for number, _ in enumerate(sys.stdin, 1):
        begin = time.monotonic()
        answers = sorted(write_all(sockets, shards, shard_bytes, number * BLOCK))
        at = [t for t, _ in answers]
        print(json.dumps({"begin": begin, "n": len(at), "failed": sum(e != 0 for _, e in answers), "first": at[0],
                          "half": at[len(at) // 2], "p99": at[len(at) * 99 // 100], "all": at[-1]}), flush=True)


if __name__ == "__main__":
    main()
