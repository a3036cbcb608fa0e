#!/usr/bin/env python3
# A side that dies in the middle of its takeover, and what a start makes of its disk.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import struct

import colo_writer
from colo_qtest import *

MERGE_AT_ONCE = 8 << 20  # a larger overlay is brought into the image behind a journal


def newest(path):
    """The largest number in the image: each write of the guest has a larger one."""
    most = 0
    with open(path, "rb") as f:
        f.seek(4096)
        while True:
            data = f.read(4096)
            if len(data) < 4096:
                return most
            most = max(most, struct.unpack("<I", data[:4])[0])


@case
def death_with_the_journal_in_force(b):
    """The overlay of the SVM is named by a journal and not in the image yet: the next start brings
    it there, with every write that the SVM had an answer to."""
    image = b.dir + "/s.raw"
    p, s = colo_writer.pair(b, b.dir + "/p.raw", image, b.dir,
                            more=["-colo", "die-at=takeover-journal"], sectors=4)
    p.cmd("migrate-set-parameters", {"x-checkpoint-delay": 3600000})
    p.cmd("xen-colo-do-checkpoint")
    size = lambda: sum(d.get("overlay-bytes", 0) for d in s.status()["disks"])
    s.wait("a large overlay", lambda: size() > MERGE_AT_ONCE + (1 << 20), 120)
    wrote = colo_writer.word(s, colo_writer.DONE) - 1  # the last one may be on its way
    os.kill(s.process.pid, signal.SIGUSR1)
    p.process.kill()
    s.wait_state("lost")
    s.cmd("query-status")  # the signal's turn has come before
    assert newest(image) < wrote, "the image has it already"
    try:
        s.cmd("x-colo-lost-heartbeat")
    except (QMPError, OSError):
        pass
    s.process.wait(60)
    has_words(s.output(), "dying at step takeover-journal")
    assert os.path.exists(image + ".colo")
    again = b.host("again", "-colo", "checkpoint-events=on", "-S", "-drive",
                   "if=ide,id=d0,driver=raw,file.filename=" + image)
    again.wait("the journal's end", lambda: not os.path.exists(image + ".colo"))
    assert newest(image) >= wrote, (newest(image), wrote)
    again.cmd("cont")
    assert colo_writer.writes(again)


if __name__ == "__main__":
    sys.exit(main())
