# What a guest and its user do to a machine that is protected: reboot, sleep, plug, punch.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import ctypes
import os
import sys
import time

from colo_e2e import Pair, case, main
from e2e_proc import QMPError, within

READY = "COLO-GUEST-READY"


def survive(p):
    """The primary dies; what the guest says of its memory and disk must hold."""
    p.kill_primary("both")
    p.takeover()
    p.check()


def wait_console(host, text, count, seconds=120):
    end = time.monotonic() + seconds
    while host.console().count(text) < count:
        within(end, lambda: host.console()[-600:])
        time.sleep(0.1)


@case()
def guest_reboots(t):
    """Both sides reboot; the machine that comes up is protected like the one before."""
    with Pair(t, checkpoint_delay=500, mem=128, region=16) as p:
        p.start(boot=False)
        p.protect()
        try:
            p.control("REBOOT")
        except QMPError:
            pass  # its connection went with the machine
        wait_console(p.a, READY, 2)
        time.sleep(1.5)
        survive(p)


@case()
def guest_goes_to_sleep(t):
    """S3 is no state for a checkpoint: the guest is woken, on both sides."""
    with Pair(t, checkpoint_delay=300, mem=128, region=16) as p:
        p.start(boot=False)
        p.protect()
        for _ in range(2):
            assert p.control("SLEEP") == "OK"
            time.sleep(1)
        assert [e for _, e in p.a.qmp.events if e["event"] == "WAKEUP"], "it did not sleep"
        assert p.a.qmp.cmd("query-status")["status"] == "running"
        survive(p)


@case()
def device_that_was_plugged(t):
    """Its memory came after the start: protection is refused with its name. Under protection
    the command is refused."""
    with Pair(t, boots=False, disk="none") as p:
        p.start(boot=False)
        p.a.qmp.cmd("device_add", {"driver": "secondary-vga", "id": "late"})
        p.prepare_secondary()
        p.migrate()
        try:
            p.wait_protected()
        except QMPError as e:
            assert "late" in str(e) or "vga.vram" in str(e), e
            assert "came after the start" in str(e), e
        else:
            raise AssertionError("it was protected")


PUNCH_HOLE = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


def memory_files(pid):
    for fd in os.listdir("/proc/%d/fd" % pid):
        path = "/proc/%d/fd/%s" % (pid, fd)
        try:
            name = os.readlink(path)
        except OSError:
            continue
        if name.startswith("/memfd:") and "qemu-colo-" not in name:
            yield name, path


@case()
def no_hole_can_be_punched(t):
    """Guest RAM, video memory and the rest: a hole would be seen by no tracker."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Pair(t, boots=False, disk="none", extra=("-vga", "std")) as p:
        p.start(boot=False)
        seen = set()
        for host in (p.a, p.b):
            for pid in (host.process.pid, host.process.emulator_pid()):
                for name, path in memory_files(pid):
                    fd = os.open(path, os.O_RDWR)
                    bad = libc.fallocate64(fd, PUNCH_HOLE, ctypes.c_int64(0),
                                           ctypes.c_int64(4096))
                    error = ctypes.get_errno()
                    os.close(fd)
                    assert bad and error == 1, "a hole was punched into " + name
                    seen.add(name)
        assert any("vga.vram" in n for n in seen) and any("pc.ram" in n for n in seen), seen
        return "%d files" % len(seen)


if __name__ == "__main__":
    sys.exit(main())
