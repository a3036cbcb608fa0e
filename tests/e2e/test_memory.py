# The restored secondary is the primary, page by page: guests of every shape.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
With -colo verify-ram=on the primary sends a hash of every page as of the snapshot, video
memory, ROMs and flash included, and the secondary compares all of its memory after each
roll-back. Then the primary dies, and what the guest says of its memory must hold.

Cases with repeat=0 run only when asked for: -k NAME --repeat 1.
"""

import hashlib
import os
import re
import shutil
import sys
import time

from colo_e2e import Pair, Skip, case, main
from e2e_huge import HugePages
from e2e_proc import within

CHECKPOINTS = 15


def compare_all(t, options="", more=(), checkpoints=CHECKPOINTS, kill=True, timeout=180,
                setup=None, watch=None, after=None, **changes):
    extra = ("-colo", "verify-ram=on" + ("," + options if options else ""), *more)
    changes.setdefault("dirty", 20)
    changes.setdefault("mem", 128)  # hashed as a whole at each checkpoint
    changes.setdefault("region", 16)
    with Pair(t, extra=extra, checkpoint_delay=200, **changes) as p:
        if setup:
            setup(p)
        p.start(boot=False)
        p.protect(timeout)
        client = p.client("all", 300)
        first = p.primary.qmp.cmd("query-colo-status")["verified-checkpoints"]
        end = time.monotonic() + timeout
        while True:
            status = p.primary.qmp.cmd("query-colo-status")
            done = status["verified-checkpoints"] - first
            if done >= checkpoints and time.monotonic() > end - timeout + 2:
                break
            within(end, lambda: "too few checkpoints: %s" % status)
            time.sleep(0.2)
        if watch:
            watch(p)
        assert status["wrong-pages"] == 0, "%d wrong pages in %d checkpoints" % (
            status["wrong-pages"], status["verified-checkpoints"])
        if kill:
            p.kill_primary("both")
            p.takeover()
        time.sleep(0.5)
        assert client.stop() == 0, client.why()
        p.check()
        if after:
            after(p)
        return "%s, %d checkpoints compared, pause %.1f ms" % (
            status["tracker"], status["verified-checkpoints"],
            status["pause-us"]["median"] / 1000)


# The everyday ones

@case()
def pc_virtio_vga(t):
    """The machine as most have it, with its default VGA."""
    return compare_all(t, more=("-vga", "std"))


@case()
def q35_smp2_virtio_vga(t):
    return compare_all(t, machine="q35", smp=2, more=("-vga", "virtio"))


@case()
def pc_rtl8139_ide_smp4(t):
    return compare_all(t, smp=4, nic="rtl8139", disk="ide", disk_format="qcow2", usb=True)


@case()
def compared_where_nothing_else_works(t):
    """tracker=compare: no kernel interface at all."""
    return compare_all(t, options="tracker=compare")


@case()
def nic_that_cannot_send_at_stop(t):
    """With a socket of 16 KiB the NIC has frames in its hands at most stops: what it sends
    after STOP must be in the checkpoint, rings and device state of one instant."""
    return compare_all(t, options="nic-buffer=16k", dirty=5)


def backend(name, size, kind="memfd", **keys):
    return ("-object", "memory-backend-%s,id=%s,size=%dM,share=on%s" % (
        kind, name, size, "".join(",%s=%s" % (k.replace("_", "-"), v)
                                  for k, v in keys.items())))


@case()
def numa_of_two_backends(t):
    """Two nodes, memory of different kinds."""
    more = backend("near", 64) + backend("far", 64, "ram") + (
        "-numa", "node,nodeid=0,cpus=0,memdev=near", "-numa", "node,nodeid=1,cpus=1,memdev=far")
    return compare_all(t, smp=2, more=more)


def read(path):
    with open(path) as f:
        return f.read()


def write(path, text):
    with open(path, "w") as f:
        f.write(text + "\n")


@case()
def huge_pages(t):
    """Of 2 MiB: the unit that is tracked."""
    with HugePages(128, skip=Skip):
        more = backend("huge", 128, hugetlb="on", hugetlbsize="2M")
        return compare_all(t, machine="pc,memory-backend=huge", more=more, dirty=5)


@case(repeat=0)
def huge_pages_of_1_gib(t):
    """What is written to anywhere is copied as a whole: slow, but right."""
    with HugePages(2, 1 << 20, Skip):
        more = backend("huge", 1024, hugetlb="on", hugetlbsize="1G")
        return compare_all(t, machine="pc,memory-backend=huge", more=more, dirty=1, mem=1024,
                           timeout=150, checkpoints=5)


class TransparentHugePages:
    """Shared memory may get them, where it is asked for (the emulator asks)."""

    path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

    def __enter__(self):
        try:
            self.before = re.search(r"\[(\w+)\]", read(self.path)).group(1)
            write(self.path, "advise")
        except OSError as e:
            raise Skip("no transparent huge pages: %s" % e) from None

    def __exit__(self, *_):
        write(self.path, self.before)


def memory_in_huge_pages():
    """MiB of shared memory, on all of this machine."""
    kib = re.search(r"ShmemHugePages:\s+(\d+) kB", read("/proc/meminfo"))
    return int(kib.group(1)) / 1024 if kib else 0


@case()
def transparent_huge_pages(t):
    """Which the kernel makes as it likes, and splits for the tracker."""
    seen = []

    def watch(p):
        seen.append(memory_in_huge_pages())
        for host in (p.a, p.b):
            found = re.search(r"^(\w+)-.*/memfd:m ",
                              read("/proc/%d/maps" % host.process.emulator_pid()), re.M)
            assert int(found.group(1), 16) % (2 << 20) == 0, "not aligned: " + found.group(0)
    with TransparentHugePages():
        before = memory_in_huge_pages()
        said = compare_all(t, machine="pc,memory-backend=m", more=backend("m", 128),
                           watch=watch)
    if seen[0] - before < 16:
        raise Skip("right, but the kernel had no huge pages to give; " + said)
    return "%s; %.0f MiB in huge pages" % (said, seen[0] - before)


# The rest of the matrix

@case(repeat=0)
def q35_virtio(t):
    return compare_all(t, machine="q35")


@case(repeat=0)
def pc_virtio_smp4(t):
    return compare_all(t, smp=4)


@case(repeat=0)
def q35_e1000_smp4_vga(t):
    return compare_all(t, machine="q35", smp=4, nic="e1000", more=("-vga", "std"))


@case(repeat=0)
def file_backend(t):
    """Memory in a directory that the user named."""
    more = backend("m", 128, "file", mem_path="/dev/shm", prealloc="on")
    return compare_all(t, machine="pc,memory-backend=m", more=more)


@case(repeat=0)
def mem_path(t):
    return compare_all(t, more=("-mem-path", "/dev/shm", "-mem-prealloc"))


@case(repeat=0)
def cirrus(t):
    return compare_all(t, more=("-vga", "cirrus"))


@case(repeat=0)
def vmware_vga(t):
    return compare_all(t, more=("-vga", "vmware"))


@case(repeat=0)
def two_screens(t):
    return compare_all(t, more=("-vga", "std", "-device", "virtio-gpu-pci",
                                "-device", "bochs-display"))


@case(repeat=0)
def two_gigabytes(t):
    return compare_all(t, mem=2048, region=256, timeout=150)


@case(repeat=0)
def eight_gigabytes(t):
    """Of which the guest touches little: what it does not costs no memory on any side."""
    return compare_all(t, mem=8192, region=256, timeout=150)


# UEFI

OVMF = "/usr/share/OVMF/OVMF_%s_4M.fd"


def flash(p):
    for host in (p.a, p.b):
        shutil.copy(OVMF % "VARS", host.dir + "/vars.fd")
        line = ("-drive", "if=pflash,format=raw,readonly=on,file=" + OVMF % "CODE",
                "-drive", "if=pflash,format=raw,file=%s/vars.fd" % host.dir)
        if host is p.a:
            p.cfg.extra_primary = line
        else:
            p.cfg.extra_secondary = line


@case()
def uefi(t):
    """Debian's OVMF: code in read-only flash, variables in flash that the firmware writes; after
    the takeover the secondary's file has them."""
    if not os.path.exists(OVMF % "CODE"):
        raise Skip("no ovmf here")
    note = []

    def after(p):
        p.a.close()
        note.extend(open(h.dir + "/vars.fd", "rb").read() for h in (p.a, p.b))
    result = compare_all(t, machine="q35", setup=flash, after=after,
                         timeout=150, mem=192)
    with open(OVMF % "VARS", "rb") as f:
        assert note[0] != f.read(), "the firmware wrote no variable"
    assert note[0] == note[1], "the variables differ"
    return result


# The screen

def picture(host, path):
    host.qmp.cmd("screendump", {"filename": path})
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def screen_after_takeover(t, other_ram=True, **changes):
    changes.setdefault("append", "vga=0x315 colo.draw=20")
    changes.setdefault("disk", "none")
    extra = ("-vga", "std") + (() if other_ram else ("-colo", "other-ram=off"))
    with Pair(t, extra=extra, checkpoint_delay=200, **changes) as p:
        p.start()
        blank = picture(p.a, p.dir + "/blank.ppm")
        p.protect()
        time.sleep(2)
        p.control("SET draw=0")
        done = p.primary.qmp.cmd("query-colo-status")["checkpoints"]
        p.primary.qmp.wait_for("checkpoints of the still picture", lambda q:
                               q.cmd("query-colo-status")["checkpoints"] >= done + 3, 30)
        before = picture(p.a, p.dir + "/before.ppm")
        assert before != blank, "the guest does not draw"
        p.kill_primary("both")
        p.takeover()
        after = picture(p.b, p.dir + "/after.ppm")
        p.check()
        return before == after


@case()
def the_screen_is_the_same(t):
    """A frame buffer in video memory: after the takeover the picture is the one that was."""
    assert screen_after_takeover(t)


@case(repeat=0)
def text_screen_is_the_same(t):
    assert screen_after_takeover(t, append="colo.draw=20", machine="q35")


@case(repeat=0)
def without_other_ram_it_is_not(t):
    """That the case before can fail."""
    assert not screen_after_takeover(t, other_ram=False)


if __name__ == "__main__":
    sys.exit(main())
