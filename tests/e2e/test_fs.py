# A file system lives through deaths.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The guest's disk holds an ext4, which two threads create, write, rename, link and remove
files on, while a client has records made stable: each is a file, fsynced with its folder
before it is acknowledged. One side is killed at a random moment. The survivor serves on and
is shut down in the end; then e2fsck finds nothing, and every acknowledged record is there.
"""

import os
import signal
import subprocess
import sys
import time

from colo_e2e import Pair, case, main


def check_fs(p, host):
    """The survivor's image, closed: clean, and with every acknowledged record."""
    raw = host.image
    if p.cfg.disk_format != "raw":
        raw = "%s/check.raw" % p.dir
        subprocess.run(["qemu-img", "convert", "-f", p.cfg.disk_format, "-O", "raw",
                        host.image, raw], check=True)
    done = subprocess.run(["e2fsck", "-fn", raw], capture_output=True, text=True)
    assert done.returncode == 0, "e2fsck: %d\n%s%s" % (done.returncode, done.stdout,
                                                      done.stderr)
    out = "%s/rec" % p.dir
    os.mkdir(out)
    subprocess.run(["debugfs", "-R", "rdump /rec %s" % out, raw], check=True,
                   capture_output=True)
    with open("%s/acknowledged" % p.dir) as f:
        acked = [int(line) for line in f]
    assert acked, "no record was acknowledged"
    for n in acked:
        path = "%s/rec/%02d/%d" % (out, n % 64, n)
        assert os.path.exists(path), "record %d was acknowledged and is not there" % n
        with open(path) as f:
            assert f.read().startswith("record %d\n" % n), "record %d is wrong" % n
    return len(acked)


def live_through(t, kill, secondary_dies, **changes):
    changes.setdefault("checkpoint_delay", t.rng.choice((100, 300, 1000)))
    with Pair(t, fs=True, **changes) as p:
        p.start(boot=False)
        p.protect()
        client = p.client("disk", 4, "--disk-rate", 0)
        t.sleep(0.5, 3)
        p.lose(kill, secondary_dies)
        assert client.wait() == 0, client.why()
        p.check_consoles()
        status = p.control("STATUS")
        assert status["errors"] == 0, "guest: " + status["first_error"]
        p.control("POWEROFF")
        p.primary.process.wait(60)
        n = check_fs(p, p.primary)
        return "%d records, %d operations" % (n, status["disk_written"])


def random_kill(t, p, secondary_dies):
    what = t.rng.choice(("front", "emulator", "both"))
    (p.kill_secondary if secondary_dies else p.kill_primary)(what)


@case(repeat=3)
def ext4_random_kill(t):
    dies = t.rng.random() < 0.25
    return live_through(t, lambda p: random_kill(t, p, dies), dies)


@case(repeat=1)
def ext4_qcow2_primary_killed(t):
    return live_through(t, lambda p: p.kill_primary("both"), False, disk_format="qcow2")


def kill_image_daemon(host):
    """SIGKILL to the storage daemon that has the host's image open."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open("/proc/%d/cmdline" % pid, "rb") as f:
                words = f.read()
        except OSError:
            continue
        if words.startswith(b"qemu-storage-daemon") and host.image.encode() in words:
            os.kill(pid, signal.SIGKILL)
            return
    raise AssertionError("no storage daemon has " + host.image)


@case(repeat=1)
def takeover_without_disk(t):
    """The secondary's image cannot be written: it does not serve, says why, can be asked again,
    and ends when it is told to."""
    with Pair(t, disk_format="qcow2", diskrate=0, checkpoint_delay=300) as p:
        p.start(boot=False)
        p.protect()
        t.sleep(1)
        p.kill_primary("both")
        q = p.secondary.qmp
        q.wait_event("COLO_EXIT", 30)
        kill_image_daemon(p.secondary)
        for _ in range(2):
            q.cmd("x-colo-lost-heartbeat")
            time.sleep(1)
            status = q.cmd("query-colo-status")
            assert status["state"] == "lost", status
            assert "takeover failed" in status["error"], status["error"]
            assert status["disks"][0]["state"] == "failover-failed", status["disks"]
        p.secondary.process.send(signal.SIGTERM)
        p.secondary.process.wait(20)


if __name__ == "__main__":
    sys.exit(main())
