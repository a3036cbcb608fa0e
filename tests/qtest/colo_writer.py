# A guest that writes to its disk for ever, and a pair of such.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import subprocess
import time

from colo_qtest import free_port


# A boot sector: 4 KiB apart

DONE, STATUS = 0x8000, 0x8004  # writes begun, and BIOS's last word on one


def boot_sector(sectors=1):
    """
    Writes @sectors at a time.

        xor ax,ax; mov ds,ax; mov es,ax; mov ss,ax; mov sp,0x7c00
    l:  inc dword [DONE]; add dword [lba],8; and dword [lba],0x1fff8
        mov word [dap+2],sectors    (the BIOS leaves 0 there after an error)
        mov cx,0xffff; loop $; loop $                       (about 1 ms)
        mov si,dap; mov ax,0x4300; mov dl,0x80; int 0x13; jc f; mov ah,0
    f:  mov [STATUS],ah; jmp l
    dap: db 16,0; dw sectors; dw DONE; dw 0; lba: dq 0
    """
    head = bytes.fromhex("31c08ed88ec08ed0bc007c")
    dap = 0x7c00 + 0x60
    lba = (dap + 8).to_bytes(2, "little").hex()
    body = bytes.fromhex(
        "66ff060080" "668306" + lba + "08" "668126" + lba + "f8ff0100"
        "c706" + (dap + 2).to_bytes(2, "little").hex() + "%02x00" % sectors +
        "b9ffffe2fee2fe" "be" + dap.to_bytes(2, "little").hex() + "b80043" "b280" "cd13" "7202" "b400"
        "88260480")
    loop = bytes([0xeb, (-len(body) - 2) & 0xff])
    code = head + body + loop
    assert len(code) < 0x60
    code += bytes(0x60 - len(code)) + bytes.fromhex("1000%02x00" "0080" "0000" % sectors) + bytes(8)
    return code + bytes(510 - len(code)) + b"\x55\xaa"


def boot_image(path, mib=64, sectors=1):
    with open(path, "wb") as f:
        f.truncate(mib << 20)
        f.write(boot_sector(sectors))
    return path


def word(host, address):
    text = host.cmd("human-monitor-command", {"command-line": "xp /1wx 0x%x" % address})
    return int(text.split(":")[1], 16)


def writes(host):
    before = word(host, DONE)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        if word(host, DONE) != before:
            return True
        time.sleep(0.02)
    return False


def pair(b, primary_image, secondary_image, active, more=(), via=lambda port: "127.0.0.1",
         shared=False, boot=True, sectors=1, file=None):
    """A protected pair of writers: images at these paths, the active disk in that folder; the
    NBD connection goes to address @via(its port). @shared: it is one image. @boot False:
    the primary's has been made. @file: how the secondary reaches its image, if not by its path."""
    direct = ",children.0.cache.direct=on" if shared else ""
    shared = "shared-disk=on," if shared else ""
    quorum = "if=ide,id=d0,driver=quorum,read-pattern=fifo,vote-threshold=1,"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", active + "/active", "64M"],
                   check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", b.dir + "/hidden", "64M"],
                   check=True)
    p = b.primary("-S", *more, "-drive", quorum +
                  "children.0.driver=raw,children.0.file.filename=" +
                  (boot_image(primary_image, sectors=sectors) if boot else primary_image) + direct)
    boot_image(secondary_image, sectors=sectors)
    s = b.secondary("-S", *more, "-drive", "if=none,id=parent0,driver=raw," +
                    (file or "file.filename=" + secondary_image),
                    "-drive", "if=none,id=childs0,driver=replication,mode=secondary,top-id=d0,"
                    + shared + "file.driver=qcow2,file.file.filename=%s/active,file.backing.driver=qcow2,"
                    "file.backing.file.filename=%s/hidden,file.backing.backing=parent0" % (
                        active, b.dir), "-drive", quorum + "children.0=childs0")
    port = free_port()
    s.cmd("nbd-server-start", {"addr": {"type": "inet", "data": {
        "host": "127.0.0.1", "port": str(port)}}})
    s.cmd("nbd-server-add", {"device": "parent0", "writable": True})
    p.cmd("human-monitor-command", {"command-line": (
        "drive_add -n buddy driver=replication,mode=primary," + shared + "file.driver=nbd,"
        "file.host=%s,file.port=%d,file.export=parent0,node-name=rep0" % (via(port), port))})
    p.cmd("x-blockdev-change", {"parent": "d0", "node": "rep0"})
    p.cmd("migrate-set-parameters", {"x-checkpoint-delay": 1000})
    b.protect(p, s)
    assert writes(p) and writes(s)
    return p, s
