#!/usr/bin/env python3
# The guest and its client without COLO: if these fail, no other case means anything.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import sys

from colo_e2e import Single, case, main


def run(t, **changes):
    with Single(t, **changes) as s:
        s.start()
        client = s.client("all", 5)
        assert client.wait() == 0, client.why()
        status = s.check_guest()
        s.check_consoles()
        assert status["mem_written"] > 0 and status["mem_checked"] > 0
        if s.cfg.disk != "none":
            assert status["disk_written"] > 0 and status["disk_acked"] > 0
            s.hosts["a"].close()
            s.check_image(s.hosts["a"])
        return "boot %.1f s" % s.boot_s


@case()
def pc_virtio(t):
    return run(t, dirty=20)


@case()
def pc_rtl8139_ide_qcow2(t):
    return run(t, nic="rtl8139", disk="ide", disk_format="qcow2")


@case()
def pc_e1000_smp2(t):
    return run(t, nic="e1000", smp=2, dirty=20)


@case()
def q35_virtio(t):
    return run(t, machine="q35")


@case()
def q35_ahci(t):
    return run(t, machine="q35", disk="ide")


@case()
def no_disk(t):
    return run(t, disk="none")


if __name__ == "__main__":
    sys.exit(main())
