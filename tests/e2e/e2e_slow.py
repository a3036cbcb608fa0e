#!/usr/bin/env python3
# A slow, long, lossy link between the two hosts, where the kernel has no netem.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
    e2e_slow.py DEVICE DEVICE MBIT DELAY_MS LOSS_PERCENT SEED

Forwards frames between two devices (packet sockets, in their namespace): each direction has a
queue that empties at MBIT, every frame comes DELAY_MS / 2 later, and LOSS_PERCENT of them
never. Until it is killed.
"""

import collections
import random
import select
import socket
import sys
import time

SOL_PACKET, PACKET_VNET_HDR = 263, 15
ETH_P_ALL = 3
PACKET_OUTGOING = 4
VNET_HDR = 10
QUEUE_S = 0.2  # what waits longer than that is dropped at the tail


class Direction:
    def __init__(self, rng, mbit, delay_ms, loss):
        self.rng, self.rate, self.loss = rng, mbit * 1e6 / 8, loss / 100
        self.delay = delay_ms / 2000
        self.free = 0.0  # when the line is free again
        self.queue = collections.deque()

    def put(self, frame, now):
        if self.rng.random() < self.loss or self.free - now > QUEUE_S:
            return
        self.free = max(self.free, now) + (len(frame) - VNET_HDR + 24) / self.rate
        self.queue.append((self.free + self.delay, frame))


def open_device(name):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    # Checksums that were left to the hardware stay so.
    s.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    s.bind((name, ETH_P_ALL))
    s.setblocking(False)
    return s


def main():
    names, (mbit, delay, loss) = sys.argv[1:3], map(float, sys.argv[3:6])
    rng = random.Random(sys.argv[6])
    ends = [open_device(name) for name in names]
    ways = [Direction(rng, mbit, delay, loss) for _ in ends]
    while True:
        now = time.monotonic()
        due = min((w.queue[0][0] for w in ways if w.queue), default=now + 1)
        for s in select.select(ends, [], [], max(0, due - now))[0]:
            way = ways[ends.index(s)]
            for _ in range(64):
                try:
                    frame, address = s.recvfrom(70000)
                except BlockingIOError:
                    break
                if address[2] != PACKET_OUTGOING:
                    way.put(frame, time.monotonic())
        now = time.monotonic()
        for i, way in enumerate(ways):
            while way.queue and way.queue[0][0] <= now:
                try:
                    ends[1 - i].send(way.queue.popleft()[1])
                except OSError:
                    pass  # as good as lost


if __name__ == "__main__":
    main()
