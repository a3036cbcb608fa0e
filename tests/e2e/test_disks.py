# Guests with several disks, on every controller: they move as one.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The guest writes each record to its first disk, then to its second, and reads both: were one
disk committed without the other, its memory and the other disk would tell. Disks that are
only read, and cdroms, are read along. At the end the images, read with nobody running, may
differ by the record that was in flight.
"""

import sys

from colo_e2e import Pair, case, main
from e2e_guest import disks


def stop(p):
    for host in (p.a, p.b):
        if host.process.alive():
            host.qmp.cmd("quit")
            host.process.wait(20)


def check_images(p, host):
    found = [p.check_image(host, number=n) for n in range(len(disks(p.cfg)))]
    for zone in ("background_last", "requested_last"):
        last = [one[zone] for one in found]
        assert max(last) - min(last) <= 1, "the disks of one guest differ: %s" % found
    assert found[0]["background"] > 20 and found[0]["logged"] > 0, found
    return found[0]["background"]


def run(t, death, secondary_dies=False, **changes):
    with Pair(t, checkpoint_delay=300, **changes) as p:
        p.start(boot=False)
        p.protect()
        count = len(p.primary.qmp.cmd("query-colo-status")["disks"])
        assert count == len(disks(p.cfg)), "%d disks are replicated" % count
        client = p.client("all", 4)
        t.sleep(1, 2)
        p.lose(death, secondary_dies)
        assert client.wait() == 0, client.why()
        before = p.control("STATUS")
        after = p.check()
        assert after["disk_checked"] > before["disk_checked"], after
        if p.cfg.read_only:
            assert after["ro_checked"] > before["ro_checked"] > 0, after
        p.control("SET diskrate=0")
        stop(p)
        return "%d records" % check_images(p, p.primary)


def primary_killed(p):
    p.kill_primary("front")


@case()
def virtio_and_ahci_and_cdrom(t):
    return run(t, primary_killed, machine="q35", disk="virtio", disk2="ide",
               read_only=(("ide", "cdrom"), ("virtio", "disk")))


@case()
def virtio_scsi_with_two_disks_and_cdrom(t):
    return run(t, primary_killed, disk="scsi", disk2="scsi",
               read_only=(("scsi", "cdrom"),))


@case()
def ide_and_virtio(t):
    """The secondary dies: the primary lets go of both of its disks' children."""
    return run(t, lambda p: p.kill_secondary("front"), secondary_dies=True,
               disk="ide", disk2="virtio", disk_format="qcow2")


if __name__ == "__main__":
    sys.exit(main())
