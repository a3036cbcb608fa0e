# The arm64 guest: its firmware, its device tree, its command lines.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The emulator's machine "virt" with a firmware of ours in flash (tests/guest/firmware-arm64.S),
which starts a kernel that stands in flash behind it. There is no -append without -kernel, so
the kernel's command line goes into the device tree: the machine's own, as it prints it, with
a new /chosen.
"""

import os
import shutil
import struct
import subprocess

from e2e_guest import kernel_command_line, primary_command, secondary_command

EMULATOR = "qemu-system-aarch64"
INITRD_AT = 0x46000000  # as firmware-arm64.S has it
MACHINE = "virt,gic-version=2"
CPU = "cortex-a57"


def build():
    """(path of the flash, bytes of the initramfs), or the reason why there is none."""
    if not shutil.which(EMULATOR):
        return "no %s: apt-get install qemu-system-arm" % EMULATOR
    script = os.path.join(os.path.dirname(__file__), "..", "guest", "build-arm64.sh")
    done = subprocess.run([script], capture_output=True, text=True)
    if done.returncode == 77:
        return done.stderr.strip().splitlines()[-1]
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = dict(line.split("=", 1) for line in done.stdout.split())
    return found["bios"], int(found["initrd-size"])


BEGIN, END, PROP, NOP = 1, 2, 3, 4


def with_chosen(tree, properties):
    """The flattened tree @tree with @properties (name -> bytes) in /chosen, and no seeds."""
    head = list(struct.unpack(">10I", tree[:40]))
    at, strings_at, strings_size, struct_size = head[2], head[3], head[8], head[9]
    strings = bytearray(tree[strings_at:strings_at + strings_size])
    end, out, path = at + struct_size, bytearray(), []

    def prop(name, value):
        where = len(strings)
        strings.extend(name.encode() + b"\0")
        return struct.pack(">3I", PROP, len(value), where) + value + b"\0" * (-len(value) % 4)
    while at < end:
        begin, token = at, struct.unpack_from(">I", tree, at)[0]
        at += 4
        keep = True
        if token == BEGIN:
            name = tree[at:tree.index(b"\0", at)]
            at += (len(name) + 4) & ~3
            path.append(name)
        elif token == END:
            path.pop()
        elif token == PROP:
            length, where = struct.unpack_from(">2I", tree, at)
            at += 8 + ((length + 3) & ~3)
            name = bytes(strings[where:strings.index(b"\0", where)])
            keep = path[1:] != [b"chosen"] or not name.endswith(b"-seed")
        out += tree[begin:at] if keep else b""
        if token == BEGIN and path[1:] == [b"chosen"]:
            out += b"".join(prop(*p) for p in properties.items())
    reserved = tree[head[4]:head[4] + 16]
    head[4], head[2] = 40, 56
    head[3], head[8], head[9] = 56 + len(out), len(strings), len(out)
    head[1] = head[3] + len(strings)
    return struct.pack(">10I", *head) + reserved.ljust(16, b"\0") + bytes(out) + bytes(strings)


def make_tree(cfg, path, bios, initrd_size):
    plain = path + ".plain"
    subprocess.run([EMULATOR, "-machine", MACHINE + ",dumpdtb=" + plain, "-cpu", CPU, "-smp",
                    "1,maxcpus=2", "-m", str(cfg.mem), "-display", "none", "-bios", bios], check=True,
                   capture_output=True)
    words = kernel_command_line(cfg).replace("console=ttyS0", "console=ttyAMA0")
    with open(plain, "rb") as f:
        tree = with_chosen(f.read(), {
            "bootargs": words.encode() + b"\0",
            "linux,initrd-start": struct.pack(">Q", INITRD_AT),
            "linux,initrd-end": struct.pack(">Q", INITRD_AT + initrd_size)})
    with open(path, "wb") as f:
        f.write(tree)


def for_arm64(line, bios, tree):
    """A command line of e2e_guest for the other machine."""
    out, skip = [], 0
    for word in line:
        if skip:
            skip -= 1
        elif word in ("-kernel", "-initrd", "-append", "-vga"):
            skip = 1
        elif word == "-machine":
            out += ["-machine", MACHINE]
            skip = 1
        else:
            out.append(word)
    # There is no RDRAND: without a source of randomness init would wait for the kernel's.
    return out + ["-bios", bios, "-dtb", tree, "-device", "virtio-rng-pci", "-colo",
                  "emulator=" + EMULATOR]


__all__ = ["CPU", "build", "for_arm64", "make_tree", "primary_command", "secondary_command"]
