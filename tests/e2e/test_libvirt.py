# libvirt: domains whose emulator is qemu-colo, without and with COLO, and a pair of them.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import json
import os
import shutil
import sys
import time

import colo_e2e
import e2e_libvirt
from colo_e2e import Bed, case, main
from e2e_guest import GUEST_MAC, build_guest, kernel_command_line, make_image
from e2e_proc import QMPError, within

UUID = "5c0ffee0-c010-4000-8000-000000000001"
HERE = os.path.dirname(os.path.abspath(__file__))
EXAMPLES = os.path.join(HERE, "..", "..", "contrib", "libvirt")
PLUG_MAC = "52:54:00:c0:10:99"


class Domain:
    """A domain of one host's libvirt."""

    def __init__(self, bed, who, name="colo"):
        self.bed, self.who, self.name = bed, who, name
        self.virt = bed.virt[who]
        self.host = bed.hosts[who]

    def virsh(self, verb, *words, **kw):
        return self.virt.virsh(verb, self.name, *words, **kw)

    def qmp(self, command, arguments=None, check=True):
        """A command through libvirt, as an operator gives it."""
        text = json.dumps({"execute": command, **({"arguments": arguments} if arguments
                                                   else {})})
        answer = json.loads(self.virsh("qemu-monitor-command", text))
        if "error" in answer and check:
            raise QMPError("%s: %s" % (command, answer["error"]["desc"]))
        return answer.get("return", answer)

    def state(self):
        return self.virsh("domstate")

    def wait(self, what, condition, timeout=60):
        end = time.monotonic() + timeout
        while not condition():
            within(end, lambda: "%s of %s: not in %s s: %s" % (
                what, self.who, timeout, self.virt.log(self.name)[-1500:]))
            time.sleep(0.2)

    def wait_ready(self, timeout=90):
        self.wait("guest", lambda: "COLO-GUEST-READY" in self.host.console(), timeout)


class Libvirts(Bed):
    """Two hosts with a libvirt each (one, if told so), and the guest's files."""

    def __init__(self, t, hosts="ab"):
        why = e2e_libvirt.missing()
        if why:
            raise colo_e2e.Skip(why)
        self.virt = {}
        super().__init__(t, cpu="qemu64", append="colo.virtio=1")
        os.chmod(self.dir, 0o755)
        kernel, initrd = build_guest()
        for path, name in ((self.cfg.emulator, "qemu-colo"), (kernel, "vmlinuz"),
                           (initrd, "initrd")):
            shutil.copy(path, "%s/%s" % (self.dir, name))
        self.emulator = self.dir + "/qemu-colo-system-x86_64"
        os.symlink("qemu-colo", self.emulator)
        for who in hosts:
            self.own(self.hosts[who].dir)  # a replicated image has files beside it
            self.virt[who] = e2e_libvirt.Libvirt(self.net, who, self.dir)
        for virt in self.virt.values():
            virt.wait_ready()

    def close(self):
        for virt in getattr(self, "virt", {}).values():
            virt.close()
        super().close()

    def own(self, *paths):
        """What libvirt does not know of must be the emulator's by other means."""
        for path in paths:
            os.chown(path, e2e_libvirt.EMULATOR_USER, e2e_libvirt.EMULATOR_USER)

    def xml(self, who, example, **more):
        """The example of contrib/libvirt with the paths of this test."""
        with open(os.path.join(EXAMPLES, example)) as f:
            text = f.read()
        folder = self.hosts[who].dir
        for old, new in (("/usr/local/bin/qemu-colo-system-x86_64", self.emulator),
                         ("/var/lib/libvirt/images/", folder + "/"),
                         ("<!-- boot -->", "<kernel>%s/vmlinuz</kernel>"
                          "<initrd>%s/initrd</initrd><cmdline>%s</cmdline>" % (
                              self.dir, self.dir, kernel_command_line(self.cfg))),
                         ("/var/log/colo-console.log", folder + "/serial.log"),
                         ("192.0.2.1", self.net.link["a"]),
                         ("192.0.2.2", self.net.link["b"]), *more.items()):
            text = text.replace(old, new)
        return self.write(who, "domain.xml", text)

    def write(self, who, name, text):
        path = "%s/%s" % (self.hosts[who].dir, name)
        with open(path, "w") as f:
            f.write(text)
        return path


def without_colo(text):
    """The same domain for the emulator alone."""
    begin, end = text.index("<qemu:commandline>"), text.index("</qemu:commandline>")
    text = text[:begin] + text[end + len("</qemu:commandline>"):]
    begin, end = text.index("<qemu:override>"), text.index("</qemu:override>")
    return text[:begin] + text[end + len("</qemu:override>"):]


def plug(bed, d):
    """A disk and a NIC come and go."""
    make_image(d.host.dir + "/plug.qcow2", "qcow2", 16)
    disk = bed.write(d.who, "plug-disk.xml", "<disk type='file' device='disk'><driver "
                     "name='qemu' type='qcow2'/><source file='%s/plug.qcow2'/><target "
                     "dev='vdb' bus='virtio'/></disk>" % d.host.dir)
    nic = bed.write(d.who, "plug-nic.xml", "<interface type='bridge'><mac address='%s'/>"
                    "<source bridge='br0'/><model type='virtio'/><driver name='qemu'/>"
                    "</interface>" % PLUG_MAC)
    for path, there in ((disk, lambda: "vdb" in d.virsh("domblklist")),
                        (nic, lambda: PLUG_MAC in d.virsh("domiflist"))):
        d.virsh("attach-device", path)
        assert there(), path
        # The guest's driver has to see it before it gives it back.
        time.sleep(2)
        d.virsh("detach-device", path)
        d.wait("unplugged " + path, lambda: not there(), 30)
    names = [n["node-name"] for n in d.qmp("query-named-block-nodes")]
    assert not any(n.startswith("libvirt-2") for n in names), names


def short_life(bed, d):
    client = bed.client("all", 3)
    assert client.wait() == 0, client.why()
    d.virsh("suspend")
    assert d.state() == "paused"
    d.virsh("resume")
    assert d.state() == "running"


def life(bed, d):
    """What an operator does with a running domain, up to its end."""
    short_life(bed, d)
    plug(bed, d)
    for words in (["domblkstat", "vda"], ["vcpuinfo"], ["domstats"], ["vcpupin", "0", "0"],
                  ["domif-setlink", GUEST_MAC, "down"], ["domif-setlink", GUEST_MAC, "up"],
                  ["send-key", "KEY_A"], ["domblkinfo", "vda"]):
        d.virsh(*words)
    saved = d.host.dir + "/saved"
    d.virsh("save", saved)
    assert d.state() == "shut off"
    d.virt.virsh("restore", saved)
    assert d.state() == "running"
    client = bed.client("all", 3)
    assert client.wait() == 0, client.why()
    bed.check_guest()
    d.virsh("reset")


def end(d):
    d.virsh("destroy")
    assert d.state() == "shut off"
    d.virsh("undefine")


@case()
def domain_without_colo(t):
    """We are the emulator then: libvirt's child is QEMU."""
    with Libvirts(t, hosts="a") as bed:
        d = Domain(bed, "a")
        make_image(d.host.dir + "/colo.raw", "raw", 64)
        path = bed.xml("a", "primary.xml")
        with open(path) as f:
            text = without_colo(f.read())
        d.virt.virsh("define", bed.write("a", "plain.xml", text))
        d.virsh("start")
        exe = os.readlink("/proc/%d/exe" % d.virt.pid("colo"))
        assert exe.endswith("/qemu-system-x86_64"), exe
        d.wait_ready()
        short_life(bed, d)
        end(d)


@case()
def domain_with_colo(t):
    """We stand between libvirt and the emulator, which has libvirt's user and sandbox."""
    with Libvirts(t, hosts="a") as bed:
        d = Domain(bed, "a")
        make_image(d.host.dir + "/colo.raw", "raw", 64)
        d.virt.virsh("define", bed.xml("a", "primary.xml"))
        d.virsh("start")
        pid = d.virt.pid("colo")
        assert os.path.basename(os.readlink("/proc/%d/exe" % pid)) == "qemu-colo"
        with open("/proc/%d/status" % pid) as f:
            assert "Uid:\t%d\t" % e2e_libvirt.EMULATOR_USER in f.read()
        assert "tainted: custom-argv" in d.virt.log("colo")
        d.wait_ready()
        life(bed, d)
        end(d)


@case()
def pair_of_domains_takes_over(t):
    """The procedure by virsh; then the primary's host is gone for its libvirt, too."""
    with Libvirts(t) as bed:
        a, b = Domain(bed, "a"), Domain(bed, "b")
        make_image(a.host.dir + "/colo.raw", "raw", 64)
        shutil.copy(a.host.dir + "/colo.raw", b.host.dir + "/colo.raw")
        overlays = [b.host.dir + "/colo-%s.qcow2" % n for n in ("active", "hidden")]
        for path in overlays:
            make_image(path, "qcow2", 64)
        bed.own(*overlays)
        a.virt.virsh("define", bed.xml("a", "primary.xml"))
        b.virt.virsh("define", bed.xml("b", "secondary.xml"))
        b.virsh("start", "--paused")
        # As the disk is attached before the guest's first write, nothing has to be copied.
        a.virsh("start", "--paused")
        colo = {"capabilities": [{"capability": "x-colo", "state": True}]}
        b.qmp("migrate-set-capabilities", colo)
        b.qmp("nbd-server-start", {"addr": {"type": "inet", "data": {
            "host": "0.0.0.0", "port": "9999"}}})
        b.qmp("nbd-server-add", {"device": "libvirt-1-format", "writable": True})
        a.virsh("qemu-monitor-command", "--hmp",
                "drive_add -n buddy driver=replication,mode=primary,file.driver=nbd,"
                "file.host=%s,file.port=9999,file.export=libvirt-1-format,"
                "node-name=replication0" % bed.net.link["b"])
        a.qmp("x-blockdev-change", {"parent": "colo-disk0", "node": "replication0"})
        a.virsh("resume")
        a.wait_ready()
        a.qmp("migrate-set-capabilities", colo)
        a.qmp("migrate", {"uri": "tcp:%s:9998" % bed.net.link["b"]})
        for d, mode in ((a, "primary"), (b, "secondary")):
            d.wait("protection", lambda: d.qmp("query-colo-status")["mode"] == mode)
        assert a.state() == "running" and b.state() == "running"
        # The operator's pause is of both sides, and libvirt sees its own.
        a.virsh("suspend")
        assert a.state() == "paused" and a.qmp("query-status")["status"] == "paused"
        a.virsh("resume")
        assert a.state() == "running"
        assert b.virsh("suspend", check=False).returncode, "a secondary's guest was stopped"
        assert b.state() == "running"
        client = bed.client("all", 12)
        t.sleep(2, 4)
        os.kill(a.virt.pid("colo"), 9)
        b.wait("loss", lambda: b.qmp("query-colo-status")["state"] == "lost")
        b.qmp("nbd-server-stop")
        b.qmp("x-colo-lost-heartbeat")
        assert client.wait() == 0, client.why()
        b.wait("running", lambda: b.state() == "running", 10)
        a.wait("crashed", lambda: a.state() in ("shut off", "crashed"), 10)
        bed.check_guest()
        b.virsh("destroy")
        return "gap %.0f ms" % client.gap_ms()


if __name__ == "__main__":
    sys.exit(main())
