#!/usr/bin/env python3
# A side that has won, and whose storage hangs or fails: it is silent until its disk holds what its
# output may tell of, and says so.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The storage is a small ext4 on a loop device: fsfreeze makes all writes to it hang, as a SAN does
whose paths are gone, and a file that fills it makes them fail.
"""

import colo_writer
from colo_qtest import *
from colo_writer import writes

LIMIT = 5.0


class Storage:
    """An ext4 of @mib."""

    def __init__(self, b, mib):
        self.path, image = b.dir + "/storage", b.dir + "/storage.ext4"
        os.mkdir(self.path)
        with open(image, "wb") as f:
            f.truncate(mib << 20)
        self.run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", image)
        done = subprocess.run(["mount", "-o", "loop", image, self.path], capture_output=True,
                              text=True)
        if done.returncode:
            raise Skip("a loop device cannot be mounted here: %s" % done.stderr.strip())
        self.frozen = False
        b.closers.append(self)

    def run(self, *command):
        subprocess.run(command, check=True, capture_output=True)

    def hang(self):
        self.run("fsfreeze", "-f", self.path)
        self.frozen = True

    def __enter__(self):
        self.hang()

    def __exit__(self, *exc):
        self.come_back()

    def come_back(self):
        if self.frozen:
            self.run("fsfreeze", "-u", self.path)
            self.frozen = False

    def fill(self):
        with open(self.path + "/filler", "wb") as f:
            # Without data, or its way to the disk is one more thing to wait for.
            at, step = 0, 16 << 20
            while step >= 4096:
                try:
                    os.posix_fallocate(f.fileno(), at, step)
                    at += step
                except OSError:
                    step //= 2

    def make_room(self):
        os.unlink(self.path + "/filler")

    def close(self):
        self.come_back()
        subprocess.run(["umount", "-l", self.path], check=True)


def shared_pair(b, storage):
    image = colo_writer.boot_image(storage.path + "/disk.raw")
    return colo_writer.pair(b, image, image, b.dir, shared=True,
                            more=["-colo", "progress-timeout=%d" % (LIMIT * 1000)])


def without_secondary(b):
    """Shared storage, and the primary of a pair on it that waits for a word."""
    storage = Storage(b, 160)
    p, s = shared_pair(b, storage)
    s.process.kill()
    p.wait_state("lost")
    return storage, p


def stalls(host):
    return [e["data"] for e in host.events("COLO_DISK_STALLED")]


def told(host, during):
    """It says that it waits, by event and status."""
    host.wait("event", lambda: stalls(host), LIMIT + 30)
    event = stalls(host)[0]
    assert event["during"] == during and event["stalled"] is True, event
    assert event["seconds"] >= LIMIT - 1, event
    s = host.status()
    assert s["disk-stall"]["during"] == during, s
    assert s["state"] == {"takeover": "takeover", "checkpoint": "protected"}.get(during, "lost"), s
    has_words(host.output(), "holds up the %s" % during)
    return event


def goes_on(host):
    host.wait_state("alone", 40)
    host.wait("event", lambda: stalls(host)[-1]["stalled"] is False)
    assert "disk-stall" not in host.status()
    assert writes(host)


@case
def primary_goes_alone_on_storage_that_hangs(b):
    storage, p = without_secondary(b)
    with storage:
        p.cmd("x-colo-lost-heartbeat")
        assert "error" not in told(p, "settle")
    goes_on(p)


@case
def answered_early_is_on_the_disk_before_output_leaves(b):
    """An image of its own whose storage hangs: a checkpoint's pause answered a write that the
    disk has not, and the held output may tell of it."""
    storage = Storage(b, 160)
    p, s = colo_writer.pair(b, storage.path + "/p.raw", b.dir + "/s.raw", b.dir,
                            more=["-colo", "progress-timeout=%d" % (LIMIT * 1000)])
    with storage:
        p.cmd("migrate-set-parameters", {"x-checkpoint-delay": 100})
        time.sleep(1)
        s.process.kill()
        p.wait_state("lost")
        p.cmd("x-colo-lost-heartbeat")
        time.sleep(1)
        assert p.status()["state"] == "lost", p.status()
        told(p, "settle")
    goes_on(p)


@case
def protected_primary_on_storage_that_hangs(b):
    """It stays protected and says what holds its output up; the storage's return ends that, or a
    word to the secondary, whose disk is well."""
    storage = Storage(b, 160)
    p, s = colo_writer.pair(b, storage.path + "/p.raw", b.dir + "/s.raw", b.dir,
                            more=["-colo", "progress-timeout=%d" % (LIMIT * 1000)])
    with storage:
        p.cmd("migrate-set-parameters", {"x-checkpoint-delay": 100})
        assert "error" not in told(p, "checkpoint")
        has_words(p.output(), "x-colo-lost-heartbeat to the secondary")
    p.wait("event", lambda: stalls(p)[-1]["stalled"] is False)
    assert "disk-stall" not in p.status()
    begun = p.status()["checkpoints"]
    p.wait("checkpoints", lambda: p.status()["checkpoints"] > begun)
    assert p.status()["state"] == s.status()["state"] == "protected" and writes(p)
    with storage:
        p.wait("event", lambda: stalls(p)[-1]["stalled"], LIMIT + 30)
        s.cmd("x-colo-lost-heartbeat")
        s.wait_state("alone")
        p.wait_state("fenced")
        assert writes(s)


@case
def operator_serves_without_the_storage(b):
    """A word that comes after the event; none that came before."""
    storage, p = without_secondary(b)
    with storage:
        for _ in range(3):
            p.cmd("x-colo-lost-heartbeat")
        told(p, "settle")
        assert p.status()["state"] == "lost"
        p.cmd("x-colo-lost-heartbeat")
        p.wait_state("alone")
        has_words(p.output(), "served all the same")
    p.wait("guest writes", lambda: writes(p), 30)


@case
def process_ends_while_its_storage_hangs(b):
    storage, p = without_secondary(b)
    with storage:
        p.cmd("x-colo-lost-heartbeat")
        told(p, "settle")
        p.cmd("quit")
        time.sleep(1)
    assert p.ended(60) == 0
    assert "took over" not in p.output() and "served" not in p.output(), p.output()


@case
def full_storage_is_tried_until_there_is_room(b):
    """What the guest was told is written does not get lost for a lack of space."""
    storage = Storage(b, 160)
    p, s = shared_pair(b, storage)
    p.cmd("migrate-set-parameters", {"x-checkpoint-delay": 200})
    storage.fill()
    p.wait_state("lost", 60)
    has_words(p.status()["error"], "No space left|progress-timeout")
    p.cmd("x-colo-lost-heartbeat")
    told(p, "settle")
    p.wait("reason", lambda: "No space left" in p.status()["disk-stall"].get("error", ""))
    storage.make_room()
    goes_on(p)
    assert colo_writer.word(p, colo_writer.STATUS) & 0xff == 0, "the guest was told"


@case
def takeover_on_storage_that_hangs(b):
    """The secondary has won, and serves once the storage is there again; also where the images
    are its own."""
    for shared in True, False:
        b.port = free_port()
        storage = Storage(b, 160)
        if shared:
            p, s = shared_pair(b, storage)
        else:
            p, s = colo_writer.pair(b, b.dir + "/p.raw", storage.path + "/s.raw", b.dir,
                                    more=["-colo", "progress-timeout=%d" % (LIMIT * 1000)])
        p.process.kill()
        s.wait_state("lost")
        p.process.wait(20)
        with storage:
            s.cmd("x-colo-lost-heartbeat", {"fenced": True})
            told(s, "takeover")
        goes_on(s)
        s.close()
        storage.close()
        b.closers.remove(storage)
        os.rmdir(storage.path)
        for name in ("active", "hidden"):
            os.unlink(b.dir + "/" + name)


if __name__ == "__main__":
    sys.exit(main())
