# The restored secondary is the primary, page by page.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
With -colo verify-ram=on the primary sends a hash of every page as of the snapshot, and
the secondary compares all of its RAM after each roll-back.
"""

import sys
import time

from colo_e2e import Pair, case, main

CHECKPOINTS = 100


def compare_all(t, options=(), checkpoints=CHECKPOINTS, **changes):
    extra = options or ("-colo", "verify-ram=on")
    with Pair(t, extra=extra, checkpoint_delay=100, **changes) as p:
        p.start(boot=False)
        p.protect()
        client = p.client("all", 120)
        end = time.monotonic() + 110
        while True:
            status = p.primary.qmp.cmd("query-colo-status")
            if status["verified-checkpoints"] >= checkpoints:
                break
            assert time.monotonic() < end, "too few checkpoints: %s" % status
            time.sleep(0.5)
        assert client.stop() == 0, client.why()
        assert status["wrong-pages"] == 0, "%d wrong pages in %d checkpoints" % (
            status["wrong-pages"], status["verified-checkpoints"])
        p.check()
        return "%d checkpoints, %d wrong pages" % (status["verified-checkpoints"],
                                                   status["wrong-pages"])


@case()
def pc_virtio(t):
    return compare_all(t, dirty=20)


@case()
def pc_virtio_smp2(t):
    return compare_all(t, smp=2, dirty=20)


@case()
def pc_rtl8139_ide(t):
    return compare_all(t, nic="rtl8139", disk="ide", disk_format="qcow2", usb=True)


@case()
def q35_virtio(t):
    return compare_all(t, machine="q35", dirty=20)


@case()
def nic_that_cannot_send_at_stop(t):
    """With a socket of 16 KiB the NIC has frames in its hands at most stops: what it sends
    after STOP must be in the checkpoint, rings and device state of one instant."""
    return compare_all(t, options=("-colo", "verify-ram=on,nic-buffer=16k"))


if __name__ == "__main__":
    sys.exit(main())
