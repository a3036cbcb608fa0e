#!/usr/bin/env python3
# Full file systems, one kind of file at a time: who serves then, and what is said.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
docs/devel/ownership.rst has the table. Images and the active disk: test_block_errors.py; shared
images: test_disk_stall.py.
"""

import colo_writer
from colo_qtest import *
from colo_writer import STATUS, word, writes
from colo_small import almost_fill, small_disk


def allocated(path, mib=64):
    """All of the image has its place on the disk."""
    with open(path, "r+b") as f:
        os.posix_fallocate(f.fileno(), 0, mib << 20)


def role(path):
    with open(path) as f:
        return f.read().strip()


@case
def state_file(b):
    """It is written in place: a disk that has become full changes nothing. One that is full from
    the start keeps a side from becoming what it could not write down."""
    folder = small_disk(b, "full", 64)
    files = [folder + "/" + who for who in "ps"]
    for path in files:
        with open(path, "w") as f:
            f.write("%-31s\n" % "alone")
    almost_fill(folder, 0)
    p = b.primary(*b.rom, "-colo", "state-file=" + files[0])
    s = b.secondary(*b.rom, "-colo", "state-file=" + files[1])
    b.protect(p, s)
    assert [role(f) for f in files] == ["protected-primary", "protected-secondary"]
    p.process.kill()
    s.wait_state("lost")
    s.cmd("x-colo-lost-heartbeat")
    s.wait_state("alone")
    assert role(files[1]) == "alone"
    s.close()
    os.unlink(files[0])
    os.unlink(files[1])
    try:
        with open(folder + "/filler", "wb") as f:
            while True:
                f.write(bytes(4096))
                f.flush()
    except OSError:
        pass
    p = b.primary(*b.rom, "-colo", "state-file=" + files[0], connect=False)
    assert p.ended() == 1
    has_words(p.output(), "state-file", "No space left")
    b.port = free_port()
    p = b.host("primary2", "-colo", "checkpoint-events=on", *b.rom)
    s = b.secondary(*b.rom, "-colo", "state-file=" + files[1])
    s.x_colo()
    b.migrate(p)
    p.wait_state("lost")  # it had sent all that a takeover needs
    has_words(p.status()["error"], "state-file", "No space left")
    assert s.ended() == 1
    p.cmd("x-colo-lost-heartbeat")
    p.wait_state("alone")
    assert p.runs()


@case
def activity_log(b):
    """IMAGE.colo-bitmap finds no room: the guest does not notice, the pair is protected; a
    returning host has all copied, and that is said."""
    for when in "before", "after":
        b.port = free_port()
        folder = small_disk(b, "full-" + when, 66 << 10)
        image = colo_writer.boot_image(folder + "/p.raw")
        allocated(image)
        if when == "before":
            almost_fill(folder, 0)
        active = b.dir + "/" + when
        os.mkdir(active)
        p, s = colo_writer.pair(b, image, active + "/s.raw", active, boot=False)
        if when == "after":
            almost_fill(folder, 0)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert writes(p) and p.status()["state"] == "protected", p.status()
        assert not p.events("BLOCK_IO_ERROR") and word(p, STATUS) & 0xff == 0
        has_words(p.output(), "colo-bitmap", "No space left", "given up")
        p.process.kill()
        s.wait_state("lost")
        s.cmd("x-colo-lost-heartbeat")
        s.wait_state("alone")
        assert writes(s)
        s.close()
        os.unlink(b.dir + "/hidden")


@case
def journal(b):
    """A takeover with more to merge than is done at once, and no room for its journal: it merges
    first and serves then."""
    folder = small_disk(b, "full", 67 << 10)
    p, s = colo_writer.pair(b, b.dir + "/p.raw", folder + "/s.raw", b.dir)
    allocated(folder + "/s.raw")
    p.cmd("migrate-set-parameters", {"x-checkpoint-delay": 3600000})
    s.cmd("human-monitor-command", {"command-line": 'qemu-io d0 "write -P 1 16M 16M"'})
    overlay = s.status()["disks"][0]["overlay-bytes"]
    assert overlay > 16 << 20, overlay
    almost_fill(folder, 0)
    p.process.kill()
    s.wait_state("lost")
    s.cmd("x-colo-lost-heartbeat")
    s.wait_state("alone", 60)
    assert writes(s) and not s.events("BLOCK_IO_ERROR")
    has_words(s.output(), "No space left")
    assert not s.events("COLO_DISK_MERGE"), "there was a journal"


if __name__ == "__main__":
    sys.exit(main())
