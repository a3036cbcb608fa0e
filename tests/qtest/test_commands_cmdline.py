# The command table: the command line.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import glob
import re

import colo_qtest
from colo_commands import *
from colo_qtest import *


# --- Command line ---

def options(cell):
    return line("Command line", cell)


@options("-object")
def _(b):
    """Keyval and JSON are one; what is wrong is said as stock says it."""
    net = ("-netdev", "user,id=n", "-chardev", "socket,id=c,path=%s/c,server=on,wait=off" % b.dir)
    for text in ("filter-mirror,id=m,netdev=n,outdev=c,queue=tx",
                 "qom-type=filter-mirror,id=m,netdev=n,outdev=c,queue=tx",
                 '{"qom-type":"filter-mirror","id":"m","netdev":"n","outdev":"c","queue":"tx"}'):
        host = starts(b, *net, "-object", text)
        assert host.cmd("qom-get", {"path": "m", "property": "queue"}) == "tx"
        host.close()
    for first in ('{"qom-type":"iothread","id":"io"}', "qom-type=iothread,id=io"):
        host = starts(b, *[x for i in "abc" for x in (
            "-chardev", "socket,id=%s,path=%s/%s1,server=on,wait=off" % (i, b.dir, i))],
            "-object", '{"qom-type":"colo-compare","id":"k","primary_in":"a","secondary_in":"b",'
            '"outdev":"c","iothread":"io"}', "-object", first)
        assert host.cmd("qom-get", {"path": "k", "property": "iothread"})
        host.close()
    has_words(refuses(b, *net, "-object", "filter-mirror,id=m,netdev=n,outdev=x"), "'x' not found")
    has_words(refuses(b, *net, "-object", '{"qom-type":"filter-mirror","id":"m"'), "JSON")
    has_words(refuses(b, *net, "-object", "filter-mirror,id=m,netdev=n,outdev=c,bla=1"), "bla")


@options("-chardev")
def _(b):
    host = starts(b, "-chardev", "socket,id=c,path=%s/c,server=on,wait=off" % b.dir,
                  "-chardev", "null,id=z", "-chardev", "backend=ringbuf,id=d")
    labels = [c["label"] for c in host.cmd("query-chardev")]
    assert sorted(labels) == ["c", "compat_monitor0", "d", "z"], labels
    has_words(refuses(b, "-chardev", "socket,id=c,path=x,port=5,server=on,wait=off"), "exclude")


@options("-netdev")
def _(b):
    for text in ("user,id=n,hostfwd=tcp:127.0.0.1:%d-:22" % free_port(),
                 '{"type":"user","id":"n","hostfwd":[{"str":"tcp:127.0.0.1:%d-:22"}]}'
                 % free_port(),
                 '{"type":"socket","id":"n","listen":"127.0.0.1:%d"}' % free_port(),
                 "stream,id=n,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=%d"
                 % free_port(),
                 '{"type":"stream","id":"n","server":true,"addr":{"type":"unix","path":"%s/s"}}'
                 % b.dir):
        host = starts(b, "-netdev", text, "-device", '{"driver":"e1000","netdev":"n","id":"e"}')
        assert "n" in host.cmd("human-monitor-command", {"command-line": "info network"})
        host.cmd("netdev_del", {"id": "n"})
        host.close()
    has_words(refuses(b, "-netdev", "user,id=n", "-netdev", "user,id=n"), "n", "Duplicate|already")


@options("-net, -nic")
def _(b):
    starts(b, "-net", "none", "-nic", "none").close()
    for text in (("-net", "nic"), ("-nic", "user")):
        has_words(refuses(b, *text), text[0], "-netdev")


@options("-drive, -blockdev, -hda, -cdrom")
def _(b):
    q = b.image("d.qcow2", 4, "qcow2")
    for i, args in enumerate((
            ("-hda", q), ("-cdrom", b.image("cd", 4)),
            ("-drive", "file=%s,if=virtio" % q),
            ("-drive", "file.filename=%s,driver=qcow2,if=none,id=d" % q, "-device",
             "virtio-blk-pci,drive=d"),
            ("-blockdev", "driver=qcow2,node-name=d,file.driver=file,file.filename=" + q,
             "-device", '{"driver":"virtio-blk-pci","drive":"d"}'),
            ("-blockdev", '{"driver":"qcow2","node-name":"d","file":{"driver":"file",'
             '"filename":"%s"}}' % q, "-device", "virtio-blk-pci,drive=d"),
            ("-blockdev", '{"driver":"quorum","node-name":"d","vote-threshold":1,'
             '"read-pattern":"fifo","children":[{"driver":"qcow2","file":{"driver":"file",'
             '"filename":"%s"}}]}' % q, "-device", "virtio-blk-pci,drive=d"),
            ("-blockdev", '{"driver":"qcow2","node-name":"c0","file":{"driver":"file",'
             '"filename":"%s"}}' % q, "-blockdev",
             '{"driver":"quorum","node-name":"d","vote-threshold":1,"children":["c0"]}',
             "-device", "virtio-blk-pci,drive=d"))):
        host = starts(b, *args)
        disks = [d for d in host.cmd("query-block") if d.get("inserted")]
        assert len(disks) == 1, (args, disks)
        if "-cdrom" not in args:
            assert disks[0]["inserted"]["image"]["virtual-size"] == 4 << 20, (args, disks)
        host.close()
    has_words(refuses(b, "-drive", "file=%s,snapshot=on" % q), "snapshot")


@options("-incoming")
def _(b):
    for text, word in (("tcp:127.0.0.1", "tcp:host:port"), ("nonsense", "nonsense")):
        has_words(refuses(b, "-incoming", text), word)
    for text in ("tcp:127.0.0.1:%d" % free_port(), "unix:%s/in" % b.dir, "tcp:0:%d" % free_port(), "defer"):
        host = starts(b, "-incoming", text)
        assert host.run_state() == "inmigrate"
        host.close()


@options("-qmp, -qmp-pretty, -mon")
def _(b):
    port = free_port()
    host = starts(b, "-qmp-pretty", "tcp:127.0.0.1:%d,server=on,wait=off" % port,
                  "-chardev", "socket,id=q,path=%s/q,server=on,wait=off" % b.dir,
                  "-mon", "chardev=q,mode=control,pretty=on")
    for s in (socket.create_connection(("127.0.0.1", port)), socket.socket(socket.AF_UNIX)):
        if s.family == socket.AF_UNIX:
            s.connect(b.dir + "/q")
        s.settimeout(10)
        f = s.makefile("rwb")
        assert b"QMP" in f.readline() + f.readline(), "no greeting"
        s.close()
    assert {"q", "compat_monitor0", "compat_monitor1"} <= \
        {c["label"] for c in host.cmd("query-chardev")}
    has_words(refuses(b, "-mon", "chardev=nope,mode=control"), "nope")


@options("-S, -no-shutdown, -pidfile")
def _(b):
    host = starts(b, "-S", "-no-shutdown", "-pidfile", b.dir + "/pid")
    assert host.run_state() == "prelaunch"
    assert int(open(b.dir + "/pid").read()) == host.process.pid
    host.cmd("cont")
    assert host.run_state() == "running"
    host.cmd("quit")
    assert host.ended() == 0 and not os.path.exists(b.dir + "/pid")


@options("-m")
def _(b):
    for text, size in (("48", 48), ("size=48M", 48), ("49152K", 48), ("0.0625G", 64)):
        host = starts(b, "-m", text)
        got = host.cmd("query-memory-size-summary")["base-memory"]
        assert got == size << 20, (text, got)
        host.close()
    has_words(refuses(b, "-m", "32,slots=2,maxmem=64"), "slots|maxmem")
    has_words(refuses(b, "-m", "lots"), "lots")


@options("-accel, -enable-kvm")
def _(b):
    for args in (("-enable-kvm",), ("-accel", "kvm"), ("-machine", "pc,accel=kvm")):
        machine = [a for a in MACHINE if a not in ("-accel", "tcg")]
        host = starts(b, *args, machine=machine)
        assert host.run_state() == "running"
        host.close()


@options("-device")
def _(b):
    host = starts(b, "-device", "virtio-rng-pci,id=r", "-device",
                  '{"driver":"virtio-rng-pci","id":"j"}')
    for name in ("r", "j"):
        assert host.cmd("qom-get", {"path": "/machine/peripheral/" + name,
                                    "property": "type"}) == "virtio-rng-pci"
    for driver in ("virtio-balloon-pci", "nvdimm", "vfio-pci"):
        has_words(refuses(b, "-device", driver), driver, "cannot be replicated")
        has_words(refuses(b, "-device", '{"driver":"%s"}' % driver), driver)


@options("-readconfig")
def _(b):
    q = b.image("d.qcow2", 4, "qcow2")
    with open(b.dir + "/conf", "w") as f:
        f.write('# a comment\n\n[name]\n  guest = "conf"\n\n[memory]\n  size = "48M"\n\n'
                '[netdev "hn0"]\n  type = "user"\n\n'
                '[chardev "c0"]\n  backend = "socket"\n  path = "%s/cc"\n  server = "on"\n'
                '  wait = "off"\n\n'
                '[object "m0"]\n  qom-type = "filter-mirror"\n  netdev = "hn0"\n'
                '  outdev = "c0"\n\n'
                '[drive "d0"]\n  if = "none"\n  driver = "quorum"\n  vote-threshold = "1"\n'
                '  children.0.driver = "qcow2"\n  children.0.file.filename = "%s"\n\n'
                '[device "vb"]\n  driver = "virtio-blk-pci"\n  drive = "d0"\n'
                % (b.dir, q))
    machine = ["-accel", "tcg", "-nodefaults", "-display", "none"]
    host = b.host("conf", "-readconfig", b.dir + "/conf", machine=machine)
    assert host.cmd("qom-get", {"path": "m0", "property": "outdev"}) == "c0"
    assert host.cmd("query-name") == {"name": "conf"}
    assert host.cmd("query-memory-size-summary")["base-memory"] == 48 << 20
    assert [d["inserted"]["drv"] for d in host.cmd("query-block")] == ["quorum"]
    has_words(refuses(b, "-readconfig", "/nonexistent"), "/nonexistent")
    with open(b.dir + "/bad", "w") as f:
        f.write("[netdev\n")
    has_words(refuses(b, "-readconfig", b.dir + "/bad"), "bad:1")
    with open(b.dir + "/bad", "w") as f:
        f.write('[nope "x"]\n  a = "b"\n')
    has_words(refuses(b, "-readconfig", b.dir + "/bad"), "nope")


@options("-object memory-backend-memfd, -file, -ram; -mem-path, -mem-prealloc")
def _(b):
    base = [a for a in MACHINE if a not in ("-m", "32")]
    for args in (("-m", "32", "-object", "memory-backend-memfd,id=m,size=32M,share=on",
                  "-machine", "memory-backend=m"),
                 ("-m", "32", "-object", '{"qom-type":"memory-backend-ram","id":"m","size":33554432}',
                  "-machine", "memory-backend=m"),
                 ("-m", "32", "-mem-path", b.dir), ("-m", "32", "-mem-path", b.dir,
                                                    "-mem-prealloc")):
        host = starts(b, *args, machine=base)
        assert host.cmd("query-memory-size-summary")["base-memory"] == 32 << 20
        host.close()
    has_words(refuses(b, "-object", "memory-backend-epc,id=m,size=32M"), "memory-backend-epc")


@options("-machine memory-backend=, -numa")
def _(b):
    starts(b, "-object", "memory-backend-memfd,id=m,size=32M,share=on", "-numa",
           "node,memdev=m").close()
    has_words(refuses(b, "-machine", "memory-backend=nope"), "nope")
    has_words(refuses(b, "-numa", "node,mem=32"), "mem=")


@options("-daemonize, -runas, -chroot, -loadvm, -snapshot, -icount, -pflash, -sd, -mtdblock, "
         "-fsdev, -virtfs")
def _(b):
    for option in names("-daemonize -snapshot"):
        has_words(refuses(b, option), option)
    for option in names("-runas, -chroot, -loadvm, -icount, -pflash, -sd, -mtdblock, -fsdev, "
                        "-virtfs"):
        has_words(refuses(b, option, "x"), option)


@options("-trace")
def _(b):
    host = starts(b, "-trace", "colo:monitor_command", "-trace", "enable=nothing_like_this*")
    host.cmd("query-name")
    has_words(host.output(), "monitor_command.*query-name")


@options("-colo")
def _(b):
    for text in ("die-at=unknown", "die-at=cut:x", "die-at=cut:0", "nope=1", "peer-timeout=soon",
                 "checkpoint-events=perhaps", "arbiter=coin"):
        has_words(refuses(b, "-colo", text), text.split("=")[0])
    known = refuses(b, "-colo", "die-at=x").split("known: ")[1].split(")")[0].split(", ")
    sources = "".join(open(f).read() for folder in ("migration", "block/replication")
                      for f in glob.glob("%s/../../%s/*.c" % (colo_qtest.HERE, folder)))
    steps = set(re.findall(r'(?:colo|secondary)_step\("([a-z-]+)"\)', sources))
    assert len(steps) > 20 and steps == set(known), steps ^ set(known)
    starts(b, "-colo", "die-at=cut:3").close()
    starts(b, "-colo", "die-at=takeover-begin").close()


@options("everything else")
def _(b):
    host = starts(b, "-name", "x,debug-threads=on", "-uuid",
                  "01234567-89ab-cdef-0123-456789abcdef", "-rtc", "base=utc", "-boot", "menu=off")
    assert host.cmd("query-uuid")["UUID"].startswith("01234567")
    has_words(refuses(b, "-machine", "nonsense"), "unsupported machine type")
    has_words(refuses(b, "-nope"), "nope")


@case
def differences_are_seen(b):
    differences_are_needed()


if __name__ == "__main__":
    sys.exit(main())
