# Small file systems that can be filled.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import subprocess

from colo_qtest import Skip


def small_disk(b, name, kib):
    """A directory that holds @kib."""
    path = b.dir + "/" + name
    os.mkdir(path)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dk" % kib, "colo-qtest", path],
                          capture_output=True, text=True)
    if done.returncode:
        raise Skip("a tmpfs cannot be mounted here: %s" % done.stderr.strip())
    b.closers.append(Unmount(path))
    return path


class Unmount:
    def __init__(self, path):
        self.path = path

    def close(self):
        subprocess.run(["umount", "-l", self.path], check=True)


def almost_fill(path, kib):
    """Leave @kib on a small_disk()."""
    st = os.statvfs(path)
    make_room(path, (st.f_blocks - st.f_bfree) * st.f_frsize // 1024 + kib)


def make_room(path, kib):
    subprocess.run(["mount", "-o", "remount,size=%dk" % kib, path], check=True)
