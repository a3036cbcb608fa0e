# Peers that do not fit, or are none: clear words, and the guest goes on unharmed.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import threading

from colo_qtest import *


def unharmed(primary):
    assert primary.run_state() == "running"
    assert primary.runs(), "the guest stands still"
    assert primary.status()["state"] == "alone"


def mismatch(b, ours, theirs, *words, prepare=lambda p, s: None):
    """A pair whose secondary differs: refused on both sides, and a right one works."""
    ours = b.rom + ours
    primary = b.primary(*ours)
    secondary = b.secondary(*b.rom, *theirs)
    secondary.x_colo()
    prepare(primary, secondary)
    b.migrate(primary)
    b.failed(primary, "secondary refuses", *words)
    unharmed(primary)
    assert secondary.process.alive(), "the secondary must go on waiting"
    secondary.wait_state("waiting")
    has_words(secondary.output(), "refused", *words)
    return primary, secondary


def right_one(b, primary, secondary, *args):
    secondary.close()
    b.protect(primary, b.secondary(*b.rom, *args))
    assert primary.runs()


def keeper_of(process):
    """The process id of its keeper; None where a sanitizer is built in, which has none."""
    with open("/proc/%d/maps" % process.pid) as f:
        text = f.read()
    if "libasan" in text or "libtsan" in text:
        return None
    for pid in process.children():
        with open("/proc/%d/comm" % pid) as f:
            if f.read() == "colo-keeper\n":
                return pid
    raise AssertionError("there is no keeper")


@case
def killed_with_a_keeper(b):
    """The peer sees a death before the dead one's memory is gone, whatever peer-timeout says; and
    nothing is left of the dead."""
    primary, secondary = b.pair("-colo", "peer-timeout=3600000")
    keeper, emulator = keeper_of(primary.process), primary.process.emulator_pid()
    assert emulator != primary.process.pid
    if keeper:
        freeze(keeper)  # so the memory stays
    os.kill(primary.process.pid, signal.SIGKILL)
    secondary.wait_state("lost")
    if keeper:
        assert is_running(keeper), "the keeper went before its process' memory"
        with open("/proc/%d/statm" % keeper) as f:
            assert int(f.read().split()[1]) * 4096 > 16 << 20, "there is no memory to keep"
        os.kill(keeper, signal.SIGCONT)
    wait_gone(filter(None, (keeper, emulator)), "outlives the dead")


@case
def another_ram_size(b):
    primary, secondary = mismatch(b, [], ["-m", "64"], "RAM size", "33554432", "67108864")
    right_one(b, primary, secondary)


@case
def another_machine_type(b):
    mismatch(b, ["-machine", "pc"], ["-machine", "q35"], "machine type", "pc-i440fx", "q35")


@case
def another_version_of_the_machine(b):
    mismatch(b, ["-machine", "pc"], ["-machine", "pc-i440fx-6.0"], "machine type", "6.0")


@case
def another_cpu(b):
    mismatch(b, ["-cpu", "qemu64"], ["-cpu", "max"], "CPU", "qemu64", "max")


@case
def another_number_of_cpus(b):
    mismatch(b, ["-smp", "1"], ["-smp", "2"], "-smp", "1", "2")


@case
def other_devices(b):
    mismatch(b, ["-device", "virtio-rng-pci"], [], "devices", "virtio-rng-pci")


def quorum(b, name, mib=1):
    return ["-drive", "if=virtio,id=d0,driver=quorum,read-pattern=fifo,vote-threshold=1,"
            "children.0.driver=raw,children.0.file.filename=" + b.image(name, mib)]


def replica(b, name, mib=1):
    b.image("active.qcow2", mib, "qcow2")
    b.image("hidden.qcow2", mib, "qcow2")
    return ["-drive", "if=none,id=parent0,driver=raw,file.filename=" + b.image(name, mib),
            "-drive", "if=none,id=childs0,driver=replication,mode=secondary,top-id=d0,"
            "file.driver=qcow2,file.file.filename=%s/active.qcow2,"
            "file.backing.driver=qcow2,file.backing.file.filename=%s/hidden.qcow2,"
            "file.backing.backing=parent0" % (b.dir, b.dir),
            "-drive", "if=virtio,id=d0,driver=quorum,read-pattern=fifo,vote-threshold=1,"
            "children.0=childs0"]


def serve(secondary, port, name="parent0"):
    secondary.cmd("nbd-server-start", {"addr": {"type": "inet", "data": {
        "host": "127.0.0.1", "port": str(port)}}})
    secondary.cmd("nbd-server-add", {"device": name, "writable": True})


def attach(primary, port, name="parent0"):
    text = primary.cmd("human-monitor-command", {"command-line": (
        "drive_add -n buddy driver=replication,mode=primary,file.driver=nbd,"
        "file.host=127.0.0.1,file.port=%d,file.export=%s,node-name=rep0" % (port, name))})
    if text.strip():
        raise QMPError(text)
    primary.cmd("x-blockdev-change", {"parent": "d0", "node": "rep0"})


@case
def disk_replicated(b):
    """The right one, for comparison with those below."""
    primary = b.primary(*b.rom, *quorum(b, "p.raw"))
    secondary = b.secondary(*b.rom, *replica(b, "s.raw"))
    port = free_port()
    serve(secondary, port)
    attach(primary, port)
    b.protect(primary, secondary)
    assert primary.runs() and secondary.runs()
    assert primary.status()["disks"], primary.status()


@case
def media_and_sizes_stay_under_protection(b):
    """What would change one machine and not its twin is refused, by QMP and by HMP; the
    pair stays as it is, and afterwards the same is the emulator's business again."""
    cd = ["-drive", "if=none,id=cd0,media=cdrom,driver=raw,file.filename=" + b.image("c.raw", 1),
          "-device", "ide-cd,id=cdrom,drive=cd0"]
    primary = b.primary(*b.rom, *quorum(b, "p.raw"), *cd)
    secondary = b.secondary(*b.rom, *replica(b, "s.raw"), *cd)
    port = free_port()
    serve(secondary, port)
    attach(primary, port)
    b.protect(primary, secondary)
    for name, arguments in (
            ("block_resize", {"node-name": "d0", "size": 2 << 20}),
            ("eject", {"id": "cdrom", "force": True}),
            ("change", {"device": "cd0", "target": b.dir + "/c.raw"}),
            ("blockdev-open-tray", {"id": "cdrom", "force": True}),
            ("blockdev-remove-medium", {"id": "cdrom"}),
            ("blockdev-insert-medium", {"id": "cdrom", "node-name": "x"}),
            ("blockdev-change-medium", {"id": "cdrom", "filename": b.dir + "/c.raw"})):
        for host in (primary, secondary):
            has_words(host.error(name, arguments), name, "end protection first")
    for line in ("block_resize d0 2", "eject -f cd0", "change cd0 %s/c.raw" % b.dir,
                 "device_add usb-tablet", "device_del cdrom", "balloon 16"):
        has_words(primary.error("human-monitor-command", {"command-line": line}),
                  line.split()[0], "end protection first")
    assert primary.status()["state"] == "protected" and primary.runs() and secondary.runs()
    secondary.close()
    primary.qmp.wait_event("COLO_EXIT")
    primary.cmd("x-colo-lost-heartbeat")
    primary.wait_state("alone")
    primary.cmd("eject", {"id": "cdrom", "force": True})


@case
def another_disk_size(b):
    primary = b.primary(*b.rom, *quorum(b, "p.raw", 2))
    secondary = b.secondary(*b.rom, *replica(b, "s.raw", 1))
    port = free_port()
    serve(secondary, port)
    try:
        attach(primary, port)
        secondary.x_colo()
        b.migrate(primary)
        text = b.failed(primary)["error-desc"]
    except QMPError as e:
        text = str(e)
    has_words(text, "2097152|2 MiB", "1048576|1 MiB")
    unharmed(primary)


@case
def missing_export(b):
    primary = b.primary(*b.rom, *quorum(b, "p.raw"))
    secondary = b.secondary(*b.rom, *replica(b, "s.raw"))
    port = free_port()
    secondary.cmd("nbd-server-start", {"addr": {"type": "inet", "data": {
        "host": "127.0.0.1", "port": str(port)}}})
    try:
        attach(primary, port)
        secondary.x_colo()
        b.migrate(primary)
        text = b.failed(primary)["error-desc"]
    except QMPError as e:
        text = str(e)
    has_words(text, "parent0", "export")
    unharmed(primary)


@case
def x_colo_off_on_the_secondary(b):
    primary, secondary = mismatch(b, [], [], "x-colo", "migrate-set-capabilities",
                                  prepare=lambda p, s: s.x_colo(False))
    b.protect(primary, secondary)  # the same one, once it is told
    assert primary.runs()


@case
def migrate_without_x_colo_is_the_emulators(b):
    primary = b.primary(*b.rom)
    sock, port = b.listen()
    primary.cmd("migrate", {"uri": "tcp:127.0.0.1:%d" % port})
    conn, _ = sock.accept()
    assert conn.recv(4) == b"QEVM"
    conn.close()


# The secondary's port and anybody

def still_waits(b, secondary):
    secondary.wait_state("waiting")
    primary = b.primary(*b.rom)
    b.protect(primary, secondary)
    assert primary.runs()


def hello(**changes):
    body = {"program": "qemu-colo", "version": "0.1.0", "protocol": 5, "role": "primary",
            "machine": {}, "disks": []}
    body.update(changes)
    return message(HELLO, json.dumps(body).encode())


@case
def nonsense_on_the_migration_port(b):
    secondary = b.secondary(*b.rom)
    secondary.x_colo()
    deep = b'{"program":' + b"[" * 4000000
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"\xff" * 100000, b"QEVM\0\0\0\3",
                 message(HELLO, b"{}"), message(HELLO, b""), message(HELLO, b"no json"),
                 message(HELLO, b'{"program":'), message(HELLO, deep),
                 message(HELLO, length=0xffffffff), message(0), message(99), message(PING),
                 message(HELLO, b"{}", version=9), message(HELLO, b"{}", magic=1),
                 hello(machine=5), hello(disks=7), hello(disks=[5]), hello(protocol="x"),
                 hello(protocol={}), hello(role="secondary"), hello(role=None),
                 hello(program=["x"]), hello(machine={"ram": []}), message(HELLO)[:9]):
        s = b.dial()
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            s.settimeout(10)
            while s.recv(4096):
                pass
        except OSError:  # reset by then
            pass
        s.close()
        assert secondary.process.alive(), "%r: %s" % (data[:40], secondary.output())
    still_waits(b, secondary)


@case
def another_protocol_version(b):
    secondary = b.secondary(*b.rom)
    secondary.x_colo()
    s = b.dial()
    s.sendall(message(HELLO, b"{}", version=7))
    s.settimeout(10)
    try:
        assert read_message(s) is None
    except ConnectionResetError:
        pass
    secondary.wait_state("waiting")
    has_words(secondary.output(), "version 7", "same qemu-colo on both hosts")
    s = b.dial()
    s.sendall(hello(protocol=99, version="9.9"))
    kind, text = read_message(s)
    assert kind == REFUSE
    has_words(text.decode(), "9.9", "protocol 99", "same version on both hosts")
    still_waits(b, secondary)


@case
def silent_client_on_the_migration_port(b):
    secondary = b.secondary(*b.rom)
    secondary.x_colo()
    s = b.dial()
    secondary.wait_state("setup")
    still_waits(b, secondary)
    s.close()


# The primary and a peer that is none

@case
def closed_port(b):
    primary = b.primary(*b.rom)
    b.migrate(primary)
    b.failed(primary, "127.0.0.1:%d" % b.port, "refused")
    unharmed(primary)
    b.protect(primary, b.secondary(*b.rom))


def speak(sock, answer):
    """Take one connection and say @answer(hello's body) to it."""
    def body():
        try:
            conn, _ = sock.accept()
            first = read_message(conn)
            conn.sendall(answer(first[1]))
            conn.settimeout(20)
            while conn.recv(65536):
                pass
        except OSError:
            pass
    threading.Thread(target=body, daemon=True).start()


def accept_all(body):
    """HELLO_OK of a secondary that is like the primary."""
    theirs = json.loads(body)
    theirs["role"] = "secondary"
    return message(HELLO_OK, json.dumps(theirs).encode())


@case
def peer_speaks_nonsense(b):
    primary = b.primary(*b.rom)
    for answer, words in (
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", ["does not speak"]),
            (b"\0" * 64, ["does not speak"]),
            (message(HELLO_OK, b"{}", version=9), ["version 9", "both hosts"]),
            (message(HELLO_OK, b"{}"), ["same version|program"]),
            (message(HELLO_OK, b'{"a":' + b"[" * 4000000), ["JSON|lists"]),
            (message(HELLO_OK, length=1 << 31), ["bad message"]),
            (message(PING), ["unexpected message"]),
            (message(REFUSE, b"I do not like you"), ["refuses: I do not like you"])):
        sock, port = b.listen()
        speak(sock, lambda _, answer=answer: answer)
        b.migrate(primary, port)
        b.failed(primary, *words)
        unharmed(primary)
    b.protect(primary, b.secondary(*b.rom))


@case
def peer_closes(b):
    primary = b.primary(*b.rom)
    for answer in (None, accept_all):
        sock, port = b.listen()
        b.migrate(primary, port)
        conn = sock.accept()[0]
        if answer:
            conn.sendall(answer(read_message(conn)[1]))
        conn.close()
        b.failed(primary, "closed|reset|broken pipe|peer")
        unharmed(primary)


@case
def peer_is_silent(b):
    primary = b.primary(*b.rom)
    _, port = b.listen()
    b.migrate(primary, port)
    b.failed(primary, "does not answer|nothing was heard", timeout=25)
    unharmed(primary)


@case
def peer_falls_silent(b):
    """After the greeting."""
    primary = b.primary(*b.rom)
    sock, port = b.listen()
    speak(sock, accept_all)
    b.migrate(primary, port)
    b.failed(primary, "nothing was heard")
    unharmed(primary)
    b.protect(primary, b.secondary(*b.rom))


@case
def cancel(b):
    """In each state before protection, at once."""
    primary = b.primary(*b.rom, "-colo", "peer-timeout=60000")
    for answer in (None, accept_all):
        sock, port = b.listen()
        if answer:
            speak(sock, answer)
        b.migrate(primary, port)
        time.sleep(0.4)
        begin = time.monotonic()
        primary.cmd("migrate_cancel")
        primary.wait_state("alone", 20)
        in_time(time.monotonic() - begin, 10, "migrate_cancel")
        assert primary.cmd("query-migrate")["status"] == "cancelled"
        unharmed(primary)
    secondary = b.secondary(*b.rom)
    b.protect(primary, secondary)
    has_words(primary.error("migrate_cancel"), "protected", "x-colo-lost-heartbeat")
    assert primary.status()["state"] == "protected"


@case
def failure_after_an_earlier_protection(b):
    primary, secondary = b.pair()
    secondary.close()
    primary.qmp.wait_event("COLO_EXIT")
    primary.cmd("x-colo-lost-heartbeat")
    primary.wait_state("alone")
    b.migrate(primary, free_port())
    b.failed(primary, "refused")
    unharmed(primary)


if __name__ == "__main__":
    sys.exit(main())
