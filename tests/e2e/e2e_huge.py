# Huge pages of this machine for a test.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import fcntl
import os


class HugePages:
    """@n more huge pages of @kib on this machine, while the block lasts; one block at a time has
    them, as the number is the machine's. Where there are none: @skip is raised."""

    def __init__(self, n, kib=2048, skip=Exception):
        self.n, self.skip = n, skip
        self.path = "/sys/kernel/mm/hugepages/hugepages-%dkB/nr_hugepages" % kib

    def number(self):
        with open(self.path) as f:
            return int(f.read())

    def set(self, n):
        with open(self.path, "w") as f:
            f.write("%d\n" % n)

    def __enter__(self):
        if not os.path.exists(self.path):
            raise self.skip("no huge pages of this size here")
        self.lock = open("/tmp/colo-test-huge-pages", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.before = self.number()
        self.set(self.before + self.n)
        if self.number() < self.before + self.n:
            self.__exit__()
            raise self.skip("%d such huge pages cannot be had" % self.n)
        return self

    def __exit__(self, *_):
        self.set(self.before)
        self.lock.close()
