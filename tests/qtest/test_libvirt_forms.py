# What libvirt writes on a command line and says to a monitor, without libvirt.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import array
import fcntl
import struct

from colo_qtest import *

RAM = ["-machine", "pc,usb=off,memory-backend=ram0"]


def blockdevs(path, number, fmt="qcow2", **more):
    storage = {"driver": "file", "filename": path, "auto-read-only": True,
               "discard": "unmap", "node-name": "libvirt-%d-storage" % number}
    top = {"node-name": "libvirt-%d-format" % number, "read-only": False, "driver": fmt,
           "file": storage["node-name"], **more}
    return storage, top


def on_line(*nodes):
    return [word for node in nodes for word in ("-blockdev", json.dumps(node))]


def names(h):
    return {n["node-name"]: n for n in h.cmd("query-named-block-nodes")}


@case
def memory_backend_of_the_command_line(b):
    """Guest RAM has its name and its properties; what cannot be had is refused."""
    h = b.primary(*RAM, "-object", json.dumps({
        "qom-type": "memory-backend-ram", "id": "ram0", "size": 32 << 20, "dump": False}))
    backend = h.cmd("query-memdev")
    assert [(m["id"], m["size"], m["dump"], m["share"]) for m in backend] == \
        [("ram0", 32 << 20, False, True)], backend
    for text, words in (("memory-backend-ram,id=ram0,size=64M", ["size"]),
                        ("memory-backend-file,id=ram0,size=32M,mem-path=/tmp/x",
                         ["memory-backend-file", "share=on"]),
                        ("memory-backend-ram,id=other,size=32M", ["ram0", "no -object"])):
        done = subprocess.run([b.program, "-colo", "checkpoint-events=on", "-m", "32", *RAM,
                               "-object", text], capture_output=True, text=True, timeout=15)
        assert done.returncode == 1, text
        has_words(done.stderr, *words)


@case
def image_in_two_nodes(b):
    """Format node over storage node over backing; the guest gets one disk."""
    base, top = b.image("base.qcow2", 1, "qcow2"), b.dir + "/top.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top],
                   check=True)
    s2, f2 = blockdevs(base, 2, backing=None)
    f2["read-only"] = True
    s1, f1 = blockdevs(top, 1, backing="libvirt-2-format")
    h = b.primary(*on_line(s2, f2, s1, f1), "-device", json.dumps({
        "driver": "virtio-blk-pci", "drive": "libvirt-1-format", "id": "d0", "bootindex": 1}))
    got = names(h)
    assert {n for n in got if n.startswith("libvirt")} == {
        s["node-name"] for s in (s1, f1, s2, f2)}, sorted(got)
    assert got["libvirt-1-format"]["drv"] == "qcow2" and \
        got["libvirt-1-storage"]["file"] == top, got
    # What is in use cannot go, and serves nobody else.
    has_words(h.error("blockdev-del", {"node-name": "libvirt-1-storage"}), "in use")
    has_words(h.error("blockdev-add", {"driver": "raw", "node-name": "x",
                                       "file": "libvirt-1-storage"}), "in use")
    has_words(h.error("blockdev-del", {"node-name": "libvirt-1-format"}), "in use")


@case
def disk_plugged_and_unplugged(b):
    """Also twice, with the same names, and one that was there from the start."""
    first, second = b.image("first.raw"), b.image("second.qcow2", 2, "qcow2")
    s1, f1 = blockdevs(first, 1, "raw")
    s2, f2 = blockdevs(second, 2, backing=None)
    h = b.primary(*on_line(s1, f1), "-device", "piix3-usb-uhci,id=u", "-device",
                  "usb-storage,bus=u.0,drive=libvirt-1-format,id=d1")

    def unplug(device, *nodes):
        h.cmd("device_del", {"id": device})
        h.wait("unplugged", lambda: any(e["data"].get("device") == device
                                        for e in h.events("DEVICE_DELETED")))
        h.qmp.events.clear()
        for node in nodes:
            h.cmd("blockdev-del", {"node-name": node["node-name"]})
            assert node["node-name"] not in names(h)
    for _ in range(2):
        h.cmd("blockdev-add", s2)
        h.cmd("blockdev-add", f2)
        h.cmd("device_add", {"driver": "usb-storage", "bus": "u.0", "id": "d2",
                             "drive": "libvirt-2-format"})
        disk = next(d for d in h.cmd("query-block") if "d2" in d.get("qdev", ""))
        assert disk["inserted"]["image"]["virtual-size"] == 2 << 20, disk
        unplug("d2", f2, s2)
    unplug("d1", f1, s1)
    h.cmd("blockdev-add", s1)
    h.cmd("blockdev-add", f1)
    h.cmd("device_add", {"driver": "usb-storage", "bus": "u.0", "id": "d1",
                         "drive": "libvirt-1-format"})
    # A storage node by itself is a disk, too.
    h.cmd("blockdev-add", s2)
    h.cmd("device_add", {"driver": "usb-storage", "bus": "u.0", "id": "d2",
                         "drive": "libvirt-2-storage"})


@case
def tap_by_the_name_of_a_descriptor(b):
    """getfd with a tap, then netdev_add with fd=NAME; a pipe's far end sees its end."""
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        raise Skip("needs root and /dev/net/tun")
    h = b.primary()

    def send(fd, name):
        text = json.dumps({"execute": "getfd", "arguments": {"fdname": name}, "id": name})
        h.qmp.sock.sendmsg([text.encode() + b"\n"], [
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        os.close(fd)
        h.qmp.result((name, "getfd"))
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, 0x400454ca, struct.pack("16sH", b"", 0x0002 | 0x1000))  # TAP, NO_PI
    send(tap, "tapfd-net1")
    h.cmd("netdev_add", {"type": "tap", "fd": "tapfd-net1", "id": "hostnet1"})
    h.cmd("device_add", {"driver": "e1000", "netdev": "hostnet1", "id": "net1"})
    has_words(h.error("netdev_add", {"type": "tap", "fd": "tapfd-net1", "id": "n2"}), "fd")
    has_words(h.error("closefd", {"fdname": "tapfd-net1"}), "not found")
    out, inp = os.pipe()
    send(inp, "pipe")
    h.cmd("closefd", {"fdname": "pipe"})
    assert os.read(out, 1) == b""
    os.close(out)


if __name__ == "__main__":
    sys.exit(main())
