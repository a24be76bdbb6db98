#!/usr/bin/env python3
"""Carries Ethernet frames between two interfaces, each direction delayed by MS milliseconds: what netem does, for kernels
that lack it. Order is kept. Runs in the switch's namespace between a node's cable and the bridge:

    node ═══ p1 <- delay.py -> ep1 ═══ dp1 ── br0

    delay.py DEV_A DEV_B MS

Ends when one of the interfaces is gone. Good for some 10,000 frames a second: for delays, not for throughput."""

import collections
import select
import socket
import sys
import time

ETH_P_ALL = 0x0003
OUTGOING = 4
QUEUE_MAX = 20000  # frames; beyond that they are dropped, as a real queue would


def open_port(dev):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ALL))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    s.bind((dev, ETH_P_ALL))
    return s


def main():
    a, b, delay = open_port(sys.argv[1]), open_port(sys.argv[2]), int(sys.argv[3]) / 1000
    queue = collections.deque()  # (due, to, frame): one delay for all, so it is sorted by itself
    while True:
        timeout = max(0.0, queue[0][0] - time.monotonic()) if queue else None
        ready, _, _ = select.select([a, b], [], [], timeout)
        now = time.monotonic()
        for s in ready:
            try:
                while True:
                    frame, address = s.recvfrom(65536)
                    if address[2] != OUTGOING and len(queue) < QUEUE_MAX:
                        queue.append((now + delay, b if s is a else a, frame))
            except BlockingIOError:
                pass
        while queue and queue[0][0] <= time.monotonic():
            _, to, frame = queue.popleft()
            try:
                to.send(frame)
            except BlockingIOError:
                pass  # a full transmit queue drops


if __name__ == "__main__":
    try:
        main()
    except OSError as e:
        sys.exit(f"delay: {e}")
