# The procedure of QEMU's own manual with nothing but the program's name changed.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The guest is the firmware alone, on the machine that those command lines ask for: default
VGA, floppy, parallel port and the rest of what QEMU adds by itself, rtl8139, IDE, a USB
tablet, 512 MiB, KVM where there is any, a tap of the bridge helper, QMP on standard input.
Both hosts are this one, as there. All of it in network and mount namespaces of our own.
"""

import atexit
import ctypes
import queue
import threading

from colo_qtest import *

CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
HELPER = "/usr/lib/qemu/qemu-bridge-helper"


def own_world():
    """Loopback, a bridge that the helper may use, and nothing of the host's."""
    if os.geteuid() != 0:
        raise Skip("namespaces need root")
    if not os.path.exists(HELPER):
        raise Skip("no %s" % HELPER)
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS | CLONE_NEWNET):
        raise Skip("unshare: %s" % os.strerror(ctypes.get_errno()))
    if not os.path.isdir("/etc/qemu"):
        os.mkdir("/etc/qemu")  # a place to mount on; it is the host's, so it goes again
        atexit.register(lambda: [subprocess.run(["umount", "/etc/qemu"]), os.rmdir("/etc/qemu")])
    for command in ("mount --make-rprivate /", "mount -t tmpfs none /etc/qemu",
                    "ip link set lo up", "ip link add br0 type bridge", "ip link set br0 up"):
        subprocess.run(command.split(), check=True)
    with open("/etc/qemu/bridge.conf", "w") as f:
        f.write("allow br0\n")


COMMON = """-enable-kvm -cpu qemu64,kvmclock=on -m 512 -smp 1 -qmp stdio
-device piix3-usb-uhci -device usb-tablet
-netdev tap,id=hn0,vhost=off,helper=/usr/lib/qemu/qemu-bridge-helper
-device rtl8139,id=e0,netdev=hn0"""

PRIMARY = COMMON + """ -name primary
-chardev socket,id=mirror0,host=0.0.0.0,port=9003,server=on,wait=off
-chardev socket,id=compare1,host=0.0.0.0,port=9004,server=on,wait=on
-chardev socket,id=compare0,host=127.0.0.1,port=9001,server=on,wait=off
-chardev socket,id=compare0-0,host=127.0.0.1,port=9001
-chardev socket,id=compare_out,host=127.0.0.1,port=9005,server=on,wait=off
-chardev socket,id=compare_out0,host=127.0.0.1,port=9005
-object filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0
-object filter-redirector,netdev=hn0,id=redire0,queue=rx,indev=compare_out
-object filter-redirector,netdev=hn0,id=redire1,queue=rx,outdev=compare0
-object iothread,id=iothread1
-object colo-compare,id=comp0,primary_in=compare0-0,secondary_in=compare1,outdev=compare_out0,iothread=iothread1
-drive if=ide,id=colo-disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,children.0.file.filename={dir}/primary.qcow2,children.0.driver=qcow2
-S"""

SECONDARY = COMMON + """ -name secondary
-chardev socket,id=red0,host=127.0.0.1,port=9003,reconnect-ms=1000
-chardev socket,id=red1,host=127.0.0.1,port=9004,reconnect-ms=1000
-object filter-redirector,id=f1,netdev=hn0,queue=tx,indev=red0
-object filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=red1
-object filter-rewriter,id=rew0,netdev=hn0,queue=all
-drive if=none,id=parent0,file.filename={dir}/primary.qcow2,driver=qcow2
-drive if=none,id=childs0,driver=replication,mode=secondary,file.driver=qcow2,top-id=colo-disk0,file.file.filename={dir}/secondary-active.qcow2,file.backing.driver=qcow2,file.backing.file.filename={dir}/secondary-hidden.qcow2,file.backing.backing=parent0
-drive if=ide,id=colo-disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,children.0=childs0
-incoming tcp:0.0.0.0:9998"""

X_COLO = {"capabilities": [{"capability": "x-colo", "state": True}]}
DRIVE_ADD = ("drive_add -n buddy driver=replication,mode=primary,file.driver=nbd,"
             "file.host=%s,file.port=9999,file.export=parent0,node-name=replication0")


def inet(port, server, host="127.0.0.1"):
    return {"type": "socket", "data": {"server": server, "addr": {
        "type": "inet", "data": {"host": host, "port": port}}}}


class OnStdio:
    """A program with QMP on its standard input and output."""

    def __init__(self, b, name, options):
        self.dir = "%s/%s" % (b.dir, name)
        os.makedirs(self.dir, exist_ok=True)
        self.log = open(self.dir + "/log", "w")
        self.popen = subprocess.Popen([b.program, *options.format(dir=self.dir).split()],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=self.log, text=True)
        b.closers.append(self)
        self.answers, self.events = queue.Queue(), []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for text in self.popen.stdout:
            said = json.loads(text)
            (self.events.append if "event" in said else self.answers.put)(said)
        self.answers.put(None)

    def __call__(self, name, arguments=None):
        said = {"execute": name}
        if arguments:
            said["arguments"] = arguments
        self.popen.stdin.write(json.dumps(said) + "\n")
        self.popen.stdin.flush()
        answer = self.answers.get(timeout=60)
        assert answer and "return" in answer, (name, arguments, answer, self.output())
        return answer["return"]

    def begin(self):
        greeting = self.answers.get(timeout=60)
        assert greeting and "QMP" in greeting, self.output()
        self("qmp_capabilities")

    def output(self):
        return open(self.dir + "/log").read()

    def wait_state(self, state, timeout=90):
        end = time.monotonic() + timeout
        while self("query-colo-status")["state"] != state:
            within(end, lambda: (state, self("query-colo-status"), self.output()))
            time.sleep(0.1)

    def close(self):
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(10)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


def images(folder, *names):
    os.makedirs(folder, exist_ok=True)
    for name in names:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "%s/%s.qcow2" % (folder, name),
                        "16M"], check=True)


def start_secondary(b, name):
    images("%s/%s" % (b.dir, name), "primary", "secondary-active", "secondary-hidden")
    return OnStdio(b, name, SECONDARY)


def prepare(secondary):
    secondary.begin()
    secondary("migrate-set-capabilities", X_COLO)
    secondary("nbd-server-start", {"addr": {"type": "inet", "data": {"host": "0.0.0.0",
                                                                     "port": "9999"}}})
    secondary("nbd-server-add", {"device": "parent0", "writable": True})


def protect(primary, secondary):
    said = primary("human-monitor-command", {"command-line": DRIVE_ADD % "127.0.0.2"})
    assert said == "", said
    primary("x-blockdev-change", {"parent": "colo-disk0", "node": "replication0"})
    primary("migrate-set-capabilities", X_COLO)
    primary("migrate", {"uri": "tcp:127.0.0.2:9998"})
    primary.wait_state("protected")
    secondary.wait_state("protected")
    assert primary("query-migrate")["status"] == "colo"
    before = primary("query-colo-status")["checkpoints"]
    primary("migrate-set-parameters", {"x-checkpoint-delay": 500})
    time.sleep(2.5)
    assert primary("query-colo-status")["checkpoints"] > before, primary("query-colo-status")


@case
def the_secondary_dies_and_a_new_one_comes(b):
    own_world()
    images(b.dir + "/primary", "primary")
    primary = OnStdio(b, "primary", PRIMARY)
    secondary = start_secondary(b, "secondary")
    prepare(secondary)
    primary.begin()
    protect(primary, secondary)
    secondary.popen.kill()
    secondary.popen.wait()
    primary("x-blockdev-change", {"parent": "colo-disk0", "child": "children.1"})
    said = primary("human-monitor-command", {"command-line": "drive_del replication0"})
    assert said == "", said
    for ident in ("comp0", "iothread1", "m0", "redire0", "redire1"):
        primary("object-del", {"id": ident})
    primary("x-colo-lost-heartbeat")
    primary.wait_state("alone")
    assert primary("query-status")["status"] == "running"

    new = start_secondary(b, "new")
    prepare(new)
    primary("drive-mirror", {"device": "colo-disk0", "job-id": "resync", "mode": "existing",
                             "target": "nbd://127.0.0.2:9999/parent0", "format": "raw",
                             "sync": "full"})
    end = time.monotonic() + 60
    while not any(e["event"] == "BLOCK_JOB_READY" for e in primary.events):
        within(end, lambda: primary.events)
        time.sleep(0.1)
    primary("stop")
    primary("block-job-cancel", {"device": "resync"})
    while primary("query-block-jobs"):
        within(end, "in time")
        time.sleep(0.05)
    for extra in ({"qom-type": "filter-mirror", "id": "m0", "queue": "tx", "outdev": "mirror0"},
                  {"qom-type": "filter-redirector", "id": "redire0", "queue": "rx",
                   "indev": "compare_out"},
                  {"qom-type": "filter-redirector", "id": "redire1", "queue": "rx",
                   "outdev": "compare0"}):
        primary("object-add", {"netdev": "hn0", **extra})
    primary("object-add", {"qom-type": "iothread", "id": "iothread1"})
    primary("object-add", {"qom-type": "colo-compare", "id": "comp0",
                           "primary_in": "compare0-0", "secondary_in": "compare1",
                           "outdev": "compare_out0", "iothread": "iothread1"})
    protect(primary, new)

    primary.popen.kill()
    primary.popen.wait()
    new("nbd-server-stop")
    new("x-colo-lost-heartbeat")
    new.wait_state("alone")
    for ident in ("f2", "f1"):
        new("object-del", {"id": ident})
    for ident in ("red1", "red0"):
        new("chardev-remove", {"id": ident})
    for ident, backend in (("mirror0", inet("9003", True, "0.0.0.0")),
                           ("compare1", inet("9004", True, "0.0.0.0")),
                           ("compare0", inet("9001", True)),
                           ("compare0-0", inet("9001", False)),
                           ("compare_out", inet("9005", True)),
                           ("compare_out0", inet("9005", False))):
        new("chardev-add", {"id": ident, "backend": backend})
    assert new("query-status")["status"] == "running"


if __name__ == "__main__":
    sys.exit(main())
