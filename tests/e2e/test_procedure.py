# The manual's procedure, taken out of the manual and run, round after round.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Command lines and QMP lines come from docs/system/qemu-colo.rst. What is changed in them: the
two addresses, paths of images, sockets and logs, the accelerator, the guest's memory, its
kernel, and in some cases its devices, as a user would.
"""

import json
import os
import re
import shlex
import shutil
import sys

from colo_e2e import Pair, case, main
from e2e_guest import build_guest, kernel_command_line, make_image

MANUAL = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                      "../../docs/system/qemu-colo.rst")


def blocks(title):
    """The literal blocks under a heading."""
    lines = open(MANUAL).read().split("\n")
    start = lines.index(title) + 2
    out, block = [], None
    for here, after in zip(lines[start:], lines[start + 1:] + [""]):
        if after and re.fullmatch(r"[-=.~]{4,}", after):
            break
        if here.startswith("  ") and block is not None:
            block.append(here[2:])
        elif here.strip():
            block = [] if here.rstrip().endswith("::") else None
            if block is not None:
                out.append(block)
    assert out, "the manual has no commands under '%s'" % title
    return ["\n".join(b) for b in out]


def qmp_lines(text):
    """(command, arguments) of each QMP command in a block."""
    decoder, pos, out = json.JSONDecoder(strict=False), 0, []
    text = text.strip().replace("\n", " ")
    while pos < len(text):
        command, end = decoder.raw_decode(text, pos)
        out.append((command["execute"], command.get("arguments")))
        pos = end + len(text[end:]) - len(text[end:].lstrip())
    return out


class Procedure(Pair):
    """Hosts a and b; each plays each part in turn."""

    verbatim = ()  # (pattern, replacement) on the manual's text

    def place(self, text, first, second):
        """The manual's text for hosts @first (192.0.2.1) and @second (192.0.2.2)."""
        text = text.replace("192.0.2.1", self.net.link[first])
        return text.replace("192.0.2.2", self.net.link[second])

    def launch(self, title, host, other):
        """Start the emulator of a step on @host, its images in place."""
        first, second = (host, other) if "primary" in title else (other, host)
        for block in blocks(title):
            text = self.place(block, first.who, second.who)
            for pattern, new in self.verbatim:
                text = re.sub(pattern, new, text)
            text = re.sub(r"/run/\w+\.qmp", host.dir + "/qmp", text)
            text = text.replace("serial.log", host.dir + "/serial.log")
            text = text.replace("/var/tmp/", host.dir + "/").replace("disk.raw", host.image)
            text = text.replace("-accel kvm", "-accel tcg").replace("-m 1G", "-m 256")
            text = text.replace("-smp 1", "-smp 1,maxcpus=2")
            text = re.sub(r"mac=[0-9a-f:]{17}", "mac=" + self.cfg.mac, text)
            for line in text.replace("\\\n", " ").split("\n"):
                words = shlex.split(line, comments=True)
                if words[:1] == ["qemu-img"]:
                    words[-1] = "%dM" % self.cfg.disk_mib
                    os.system(shlex.join(words) + " >/dev/null")
                elif words:
                    assert words[0] == "qemu-colo", words
                    kernel, initrd = build_guest()
                    host.spawn([self.cfg.emulator, *words[1:], "-kernel", kernel, "-initrd",
                                initrd, "-append", kernel_command_line(self.cfg)])

    def say(self, title, host, other, number=None):
        """Send a section's commands to @host, the first of the two addresses' owner being
        @host; @number: of its blocks."""
        texts = blocks(title)
        for text in texts if number is None else [texts[number]]:
            for name, arguments in qmp_lines(self.place(text, host.who, other.who)):
                if name == "qmp_capabilities":
                    continue
                answer = host.qmp.cmd(name, arguments)
                if name == "human-monitor-command":
                    assert answer.strip() in ("", "OK"), answer

    def first_start(self):
        make_image(self.a.image, self.cfg.disk_format, self.cfg.disk_mib)
        shutil.copy(self.a.image, self.b.image)
        self.launch("Step 1: start the primary", self.a, self.b)
        self.launch("Step 2: start the secondary", self.b, self.a)
        self.a.connect()
        self.b.connect()
        self.say("Step 3: prepare the secondary (its QMP)", self.b, self.a)
        self.say("Step 4: attach the disk and begin (the primary's QMP)", self.a, self.b)
        self.wait_protected()
        self.set_delay(1000)
        self.a.wait_ready()

    def takes_over(self, host):
        """The primary died."""
        host.qmp.wait_event("COLO_EXIT", 30, match=lambda d: d["mode"] == "secondary")
        self.say("Secondary failover (the primary died)", host, host)
        self.primary, self.secondary = host, None

    def goes_on(self, host):
        """The secondary died."""
        host.qmp.wait_event("COLO_EXIT", 30)
        self.say("Primary failover (the secondary died)", host, host)
        self.primary, self.secondary = host, None

    def resume(self, title, host, new):
        """@new becomes @host's secondary, with the image that it has."""
        new.qmp.close()
        new.process.stop()
        self.launch("Step 2: start the secondary", new, host)
        new.connect()
        self.say("Step 3: prepare the secondary (its QMP)", new, host)
        here = "Resume on a primary"
        host.qmp.events.clear()
        self.say(here, host, new, 0)
        host.qmp.wait_event("BLOCK_JOB_READY", 60)
        if title == here:
            self.say(here, host, new, 1)
        else:
            self.say(title, host, new, 0)
        host.qmp.wait_for("no job", lambda q: q.cmd("query-block-jobs") == [], 20)
        for number in (2, 3) if title == here else (1,):
            self.say(title, host, new, number)
        self.primary, self.secondary = host, new
        self.wait_protected()
        self.set_delay(1000)


def circle(t, cls, rounds=3, **changes):
    """A serves -> A dies -> B serves -> new A resynchronises -> B dies -> A serves -> ..."""
    with cls(t, **changes) as p:
        p.first_start()
        client = p.client("all", 600)
        server, other = p.a, p.b
        for number in range(rounds):
            t.sleep(2, 4)
            p.kill(server, t.rng.choice(["front", "emulator"]))
            p.takes_over(other)
            server, other = other, server
            t.sleep(1, 2)
            if number < rounds - 1:
                p.resume("Resume on a secondary that took over", server, other)
        t.sleep(1)
        assert client.stop() == 0, client.why()
        p.check()
        return "%d takeovers, gap %.0f ms, one client" % (rounds, client.gap_ms())


@case(repeat=2)
def full_circle_virtio(t):
    """Three takeovers with one client connected all the time."""
    return circle(t, Procedure)


class Documented(Procedure):
    """The devices and formats of QEMU's own text."""

    verbatim = (("-device virtio-net-pci,id=e0,netdev=hn0,mac=([^,]*),romfile=",
                 r"-device piix3-usb-uhci -device usb-tablet -device rtl8139,id=e0,netdev=hn0,mac=\1"),
                ("if=virtio", "if=ide"), ("driver=raw", "driver=qcow2"))


@case()
def full_circle_rtl8139_ide_qcow2(t):
    return circle(t, Documented, rounds=2, disk="ide", nic="rtl8139", disk_format="qcow2")


class Q35(Procedure):
    verbatim = (("-machine pc ", "-machine q35 "),)


@case()
def secondary_replaced_on_q35(t):
    """The secondary dies twice, and the primary takes on a new one each time."""
    with Q35(t, machine="q35") as p:
        p.first_start()
        client = p.client("all", 600)
        for _ in range(2):
            t.sleep(1, 3)
            p.kill(p.b, t.rng.choice(["front", "emulator"]))
            p.goes_on(p.a)
            t.sleep(1, 2)
            p.resume("Resume on a primary", p.a, p.b)
        t.sleep(1, 3)
        p.kill(p.a)
        p.takes_over(p.b)
        t.sleep(1)
        assert client.stop() == 0, client.why()
        p.check()
        return "gap %.0f ms" % client.gap_ms()


if __name__ == "__main__":
    sys.exit(main())
