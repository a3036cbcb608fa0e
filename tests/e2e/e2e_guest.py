# Guests of the end-to-end tests: configuration, images and command lines.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The command lines are those of the documented procedure (docs/system), word for word but
for addresses, paths and the guest itself.
"""

import dataclasses
import os
import struct
import subprocess

from e2e_net import GUEST_IP, Network

HERE = os.path.dirname(os.path.abspath(__file__))
GUEST_MAC = "52:54:00:c0:10:01"
TWIN_MAC = "52:54:00:c0:10:02"


@dataclasses.dataclass
class Config:
    """What a guest is made of, and how it is protected."""

    emulator: str = ""          # program that takes the command line
    machine: str = "pc"         # or q35
    cpu: str = "qemu64"
    mem: int = 256              # MiB
    smp: int = 1
    nic: str = "virtio-net-pci"  # or e1000, rtl8139
    disk: str = "virtio"        # drive interface: virtio, ide, scsi, none (no disk)
    disk2: str = ""             # of a second replicated disk, with the same records
    read_only: tuple = ()       # more drives: (interface, "disk" or "cdrom")
    disk_format: str = "raw"    # or qcow2
    disk_mib: int = 64
    fs: bool = False            # the disk holds an ext4, under load
    shared: bool = False        # both hosts on one image
    shared_fence: str = ""      # shared-fence of the secondary
    checkpoint_delay: int = 0   # ms; 0 leaves the default
    region: int = 32            # MiB that the guest rewrites
    dirty: int = 5              # MB/s at start
    check: int = 20             # MB/s verified
    diskrate: int = 20          # background records a second
    ip: str = GUEST_IP
    mac: str = GUEST_MAC
    append: str = ""            # more for the kernel
    extra: tuple = ()           # more for both command lines
    extra_primary: tuple = ()
    extra_secondary: tuple = ()
    compare: str = ""           # more options of colo-compare, e.g. "compare_timeout=500"
    reconnect: str = "reconnect-ms=1000"  # before QEMU 9.2: reconnect=1
    usb: bool = False           # the documented usb-tablet
    other: tuple = ()           # another guest: its kernel, initramfs and disk
    boots: bool = True          # else there is a machine, but no guest and no NIC
    net: object = Network       # netdev and addresses of the hosts


def build_guest():
    """Kernel and initramfs, made when they are not there."""
    script = os.path.join(HERE, "..", "guest", "build.sh")
    done = subprocess.run([script], stdout=subprocess.PIPE, text=True, check=True)
    found = dict(line.split("=", 1) for line in done.stdout.split())
    return found["kernel"], found["initrd"]


def make_image(path, fmt, mib):
    subprocess.run(["qemu-img", "create", "-q", "-f", fmt, path, "%dM" % mib], check=True)


def make_fs_image(path, fmt, mib):
    """An image that holds an empty ext4."""
    raw = path if fmt == "raw" else path + ".raw"
    make_image(raw, "raw", mib)
    subprocess.run(["mkfs.ext4", "-q", "-F", raw], check=True)
    if raw != path:
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", fmt, raw, path],
                       check=True)
        os.unlink(raw)


def make_read_only_image(path):
    """4 MiB of blocks that say which they are."""
    with open(path, "wb") as f:
        for n in range(1024):
            f.write(struct.pack("<Q", n * 0x9e3779b97f4a7c15 & (1 << 64) - 1) * 512)


def disks(cfg):
    """Interfaces of the replicated disks; disk N is colo-diskN and parentN."""
    return [] if cfg.disk == "none" else [cfg.disk] + ([cfg.disk2] if cfg.disk2 else [])


def image_of(cfg, rundir, image, n):
    return image if n == 0 else "%s/disk%d.%s" % (rundir, n, cfg.disk_format)


def guest_names(cfg):
    """What the guest calls its drives, in order: the replicated ones, the others."""
    next_of = {"vd": 0, "sd": 0, "sr": 0}
    names = []
    for interface, media in [(i, "disk") for i in disks(cfg)] + list(cfg.read_only):
        kind = "sr" if media == "cdrom" else "vd" if interface == "virtio" else "sd"
        names.append("/dev/%s%s" % (kind, next_of[kind] if kind == "sr" else
                                    "abcd"[next_of[kind]]))
        next_of[kind] += 1
    return names


def drive(interface, name, rest, media="disk"):
    """-drive, and for SCSI the -device."""
    line = ["-drive", "if=%s,id=%s,%s" % ("none" if interface == "scsi" else interface,
                                          name, rest)]
    if interface == "scsi":
        line += ["-device", "scsi-%s,bus=scsi0.0,drive=%s" % (
            "cd" if media == "cdrom" else "hd", name)]
    return line


def other_drives(cfg, rundir):
    """What is only read: each host has its own copy."""
    line = []
    for n, (interface, media) in enumerate(cfg.read_only):
        path = "%s/read-only%d.raw" % (rundir, n)
        make_read_only_image(path)
        line += drive(interface, "ro%d" % n, "format=raw,file=%s,%s" % (
            path, "media=cdrom" if media == "cdrom" else "readonly=on"), media)
    return line


def kernel_command_line(cfg):
    names = guest_names(cfg)
    words = ["console=ttyS0", "quiet", "loglevel=4", "nokaslr", "mitigations=off",
             "no_timer_check", "tsc=reliable", "random.trust_cpu=on",
             "colo.ip=%s" % cfg.ip, "colo.region=%d" % cfg.region,
             "colo.dirty=%d" % cfg.dirty, "colo.check=%d" % cfg.check,
             "colo.diskrate=%d" % cfg.diskrate, "colo.threads=%d" % cfg.smp,
             "colo.ata=%d" % ("ide" in disks(cfg) + [i for i, _ in cfg.read_only]),
             "colo.fs=%d" % cfg.fs]
    words += ["colo.%s=%s" % pair for pair in zip(("disk", "disk2"), names[:len(disks(cfg))])]
    if cfg.read_only:
        words.append("colo.read-only=" + ",".join(names[len(disks(cfg)):]))
    return " ".join(words + ([cfg.append] if cfg.append else []))


def smp(cfg):
    """Room for a second CPU, always: before 8.1 TCG leaves out the guest's memory barriers
    where there can be but one, and virtio loses an interrupt now and then, for good."""
    return "%d,maxcpus=%d" % (cfg.smp, max(2, cfg.smp))


def common(cfg, name, rundir):
    line = [cfg.emulator, "-accel", "tcg", "-machine", cfg.machine, "-cpu", cfg.cpu,
            "-m", str(cfg.mem), "-smp", smp(cfg), "-name", name, "-nodefaults",
            "-vga", "none", "-display", "none",
            "-serial", "file:%s/serial.log" % rundir,
            "-qmp", "unix:%s/qmp,server=on,wait=off" % rundir,
            "-netdev", cfg.net.netdev]
    if cfg.boots:
        kernel, initrd = cfg.other[:2] if cfg.other else build_guest()
        line += ["-kernel", kernel, "-initrd", initrd, "-append", kernel_command_line(cfg),
                 "-device", "%s,id=e0,netdev=hn0,mac=%s,romfile=" % (cfg.nic, cfg.mac)]
    if "scsi" in disks(cfg) + [interface for interface, _ in cfg.read_only]:
        line += ["-device", "virtio-scsi-pci,id=scsi0"]
    if cfg.usb:
        line += ["-device", "piix3-usb-uhci", "-device", "usb-tablet"]
    return line


def unprotected_command(cfg, name, rundir, image):
    """The same guest without COLO, as the measure of everything."""
    line = common(cfg, name, rundir)
    for n, interface in enumerate(disks(cfg)):
        line += drive(interface, "colo-disk%d" % n, "format=%s,file=%s" % (
            cfg.disk_format, image_of(cfg, rundir, image, n)))
    return line + other_drives(cfg, rundir) + list(cfg.extra)


def primary_command(cfg, rundir, image, who="a"):
    """Step 1 of the procedure."""
    line = common(cfg, "primary", rundir)
    for dev in ("mirror0,host={listen},port=9003,server=on,wait=off",
                "compare1,host={listen},port=9004,server=on,wait=on",
                "compare0,host={local},port=9001,server=on,wait=off",
                "compare0-0,host={local},port=9001",
                "compare_out,host={local},port=9005,server=on,wait=off",
                "compare_out0,host={local},port=9005"):
        line += ["-chardev", "socket,id=" + dev.format(listen=cfg.net.listen[who],
                                                       local=cfg.net.local[who])]
    for obj in ("filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0",
                "filter-redirector,netdev=hn0,id=redire0,queue=rx,indev=compare_out",
                "filter-redirector,netdev=hn0,id=redire1,queue=rx,outdev=compare0",
                "iothread,id=iothread1",
                "colo-compare,id=comp0,primary_in=compare0-0,secondary_in=compare1,"
                "outdev=compare_out0,iothread=iothread1" +
                ("," + cfg.compare if cfg.compare else "")):
        line += ["-object", obj]
    for n, interface in enumerate(disks(cfg)):
        line += drive(interface, "colo-disk%d" % n, "driver=quorum,read-pattern=fifo,"
                      "vote-threshold=1,children.0.file.filename=%s,children.0.driver=%s%s" % (
                          image_of(cfg, rundir, image, n), cfg.disk_format,
                          ",children.0.cache.direct=on" if cfg.shared else ""))
    line += other_drives(cfg, rundir)
    return line + ["-S"] + list(cfg.extra) + list(cfg.extra_primary)


def secondary_command(cfg, rundir, image, primary="a", who="b"):
    """Step 2 of the procedure; makes the active and hidden images, too."""
    line = common(cfg, "secondary", rundir)
    for dev, port in (("red0", 9003), ("red1", 9004)):
        line += ["-chardev", "socket,id=%s,host=%s,port=%d,%s" % (
            dev, cfg.net.link[primary], port, cfg.reconnect)]
    for obj in ("filter-redirector,id=f1,netdev=hn0,queue=tx,indev=red0",
                "filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=red1",
                "filter-rewriter,id=rew0,netdev=hn0,queue=all"):
        line += ["-object", obj]
    for n, interface in enumerate(disks(cfg)):
        overlays = ["%s/secondary-%s%s.qcow2" % (rundir, name, n or "")
                    for name in ("active", "hidden")]
        for path in overlays:
            make_image(path, "qcow2", cfg.disk_mib)
        line += ["-drive", "if=none,id=parent%d,file.filename=%s,driver=%s" % (
                     n, image_of(cfg, rundir, image, n), cfg.disk_format),
                 "-drive", "if=none,id=childs%d,driver=replication,mode=secondary,"
                 "file.driver=qcow2,top-id=colo-disk%d,"
                 "file.file.filename=%s,"
                 "file.backing.driver=qcow2,"
                 "file.backing.file.filename=%s,"
                 "file.backing.backing=parent%d%s%s" % (
                     n, n, *overlays, n, ",shared-disk=on" if cfg.shared else "",
                     ",shared-fence=" + cfg.shared_fence if cfg.shared_fence else "")]
        line += drive(interface, "colo-disk%d" % n, "driver=quorum,read-pattern=fifo,"
                      "vote-threshold=1,children.0=childs%d" % n)
    line += other_drives(cfg, rundir)
    return line + ["-incoming", "tcp:%s:9998" % cfg.net.listen[who]] + list(cfg.extra) + \
        list(cfg.extra_secondary)
