# An arm64 guest on the machine "virt", under TCG: protected, and taken over.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import shutil
import sys

import colo_e2e
import e2e_arm64
from colo_e2e import Pair, case, main
from e2e_guest import make_image


class ArmPair(Pair):
    """The same procedure and the same command lines, for the other emulator."""

    def __init__(self, t, **changes):
        self.built = e2e_arm64.build()
        if isinstance(self.built, str):
            raise colo_e2e.Skip(self.built)
        super().__init__(t, cpu=e2e_arm64.CPU, mem=192, region=16, checkpoint_delay=3000,
                         **changes)

    def start(self, boot=True):
        bios, initrd_size = self.built
        tree = self.dir + "/tree"
        e2e_arm64.make_tree(self.cfg, tree, bios, initrd_size)
        make_image(self.a.image, self.cfg.disk_format, self.cfg.disk_mib)
        shutil.copy(self.a.image, self.b.image)
        for host, command in ((self.a, e2e_arm64.primary_command),
                              (self.b, e2e_arm64.secondary_command)):
            host.spawn(e2e_arm64.for_arm64(command(self.cfg, host.dir, host.image), bios, tree))
        self.a.connect()
        self.b.connect()


@case()
def arm64_primary_killed(t):
    """Boots under protection; clients, memory and disk see nothing of the takeover."""
    with ArmPair(t) as p:
        p.start()
        p.protect(120)
        client = p.client("all", 12)
        t.sleep(3, 6)
        p.kill_primary()
        p.takeover()
        assert client.wait() == 0, client.why()
        p.check()
        return "gap %.0f ms" % client.gap_ms()


if __name__ == "__main__":
    sys.exit(main())
