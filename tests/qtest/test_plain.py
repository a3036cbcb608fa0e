#!/usr/bin/env python3
# Migration without x-colo: between two qemu-colo, and with stock QEMU, both ways.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

from colo_qtest import (Skip, case, free_port, has_words, main, shutil, socket, sys)

STOCK = "qemu-system-x86_64"
COLO = ["-colo", "checkpoint-events=on"]
MULTIFD = [{"capability": "multifd", "state": True}]


def stock(b, name, *args):
    if not shutil.which(STOCK):
        raise Skip("no stock emulator")
    return b.host(name, *b.rom, *args, program=STOCK)


def ours(b, name, *args):
    return b.host(name, *COLO, *b.rom, *args)


def completed(b, source, destination, uri=None):
    """Migrate, and look: the guest goes on there from where it was, and not here."""
    source.wait("guest counts", source.runs)
    source.cmd("migrate", {"uri": uri or "tcp:127.0.0.1:%d" % b.port})

    def over():
        info = source.cmd("query-migrate")
        assert info.get("status") != "failed", info
        return info.get("status") == "completed"
    source.wait("migration over", over, 60)
    reached = source.count()
    assert source.run_state() == "postmigrate", source.run_state()
    destination.wait("guest there", lambda: destination.run_state() == "running", 30)
    assert destination.count() >= reached, (destination.count(), reached)
    assert destination.runs()
    destination.key("r")  # its firmware came with it: the ROM counts again after a reset
    destination.wait("counts after a reset", destination.runs)


def protects(b, host):
    """An ordinary guest it is: it can be made a primary."""
    port = free_port()
    twin = b.host("twin", *COLO, *b.rom, "-incoming", "tcp:127.0.0.1:%d" % port)
    twin.x_colo()
    host.x_colo()
    host.cmd("migrate", {"uri": "tcp:127.0.0.1:%d" % port})
    host.wait_state("protected", 30)
    twin.wait_state("protected", 30)
    assert host.runs()


def multifd(*hosts, channels=3):
    for h in hosts:
        h.cmd("migrate-set-capabilities", {"capabilities": MULTIFD})
        h.cmd("migrate-set-parameters", {"multifd-channels": channels})


@case
def between_two(b):
    there = ours(b, "there", "-incoming", "tcp:127.0.0.1:%d" % b.port)
    assert there.run_state() == "inmigrate"
    completed(b, ours(b, "here"), there)
    assert there.status()["state"] == "alone"
    protects(b, there)


@case
def from_stock(b):
    there = ours(b, "there", "-incoming", "tcp:127.0.0.1:%d" % b.port)
    completed(b, stock(b, "here"), there)
    protects(b, there)


@case
def to_stock(b):
    there = stock(b, "there", "-incoming", "tcp:127.0.0.1:%d" % b.port)
    completed(b, ours(b, "here"), there)


@case
def several_connections(b):
    """multifd: set before the emulator is replaced, it holds after it."""
    there = ours(b, "there", "-incoming", "tcp:127.0.0.1:%d" % b.port)
    here = stock(b, "here")
    multifd(here, there)
    completed(b, here, there)
    params = there.cmd("query-migrate-parameters")
    assert params["multifd-channels"] == 3, params


@case
def deferred(b):
    """migrate-incoming says where, by any means of QEMU's; what was changed before stays."""
    for n, uri in enumerate(("tcp:127.0.0.1:%d" % b.port, "unix:%s/m" % b.dir)):
        there = ours(b, "there%d" % n, "-incoming", "defer")
        there.cmd("object-add", {"qom-type": "rng-builtin", "id": "r0"})
        here = stock(b, "here%d" % n)
        multifd(here, there)
        there.cmd("migrate-incoming", {"uri": uri})
        has_words(there.error("migrate-incoming", {"uri": uri}), "already been started")
        completed(b, here, there, uri)
        there.cmd("object-del", {"id": "r0"})


@case
def deferred_for_a_primary(b):
    there = ours(b, "there", "-incoming", "defer")
    there.x_colo()
    has_words(there.error("migrate-incoming", {"uri": "exec:cat"}), "tcp:host:port")
    there.cmd("migrate-incoming", {"uri": "tcp:127.0.0.1:%d" % b.port})
    here = ours(b, "here")
    here.wait("guest counts", here.runs)
    b.migrate(here)
    here.wait_state("protected", 30)
    there.wait_state("protected", 30)
    here.process.kill()
    there.wait_state("lost", 30)
    there.cmd("x-colo-lost-heartbeat")
    there.wait("serves", there.runs)
    there.key("r")  # it has its firmware
    there.wait("counts after a reset", there.runs)


@case
def from_a_file(b):
    """exec: is QEMU's own affair."""
    path = b.dir + "/state"
    here = ours(b, "here")
    here.wait("guest counts", here.runs)
    here.cmd("migrate", {"uri": "exec:cat > " + path})
    here.wait("saved", lambda: here.cmd("query-migrate").get("status") == "completed", 60)
    reached = here.count()
    there = ours(b, "there", "-incoming", "exec:cat " + path)
    there.wait("guest there", lambda: there.run_state() == "running", 30)
    assert there.count() >= reached
    has_words(there.error("migrate-incoming", {"uri": "defer"}), "already been started")


@case
def paused_guest_stays_paused(b):
    there = ours(b, "there", "-S", "-incoming", "tcp:127.0.0.1:%d" % b.port)
    here = stock(b, "here")
    here.wait("guest counts", here.runs)
    here.cmd("migrate", {"uri": "tcp:127.0.0.1:%d" % b.port})
    there.wait("guest there", lambda: there.run_state() == "paused", 60)
    assert not there.runs()
    there.cmd("cont")
    assert there.runs()


@case
def wrong_kind_is_told_apart(b):
    """With x-colo off a primary is refused, with it on a plain migration; neither ends us."""
    there = ours(b, "there", "-incoming", "tcp:127.0.0.1:%d" % b.port)
    here = ours(b, "here")
    b.migrate(here)
    b.failed(here, "x-colo")
    with socket.create_connection(("127.0.0.1", b.port), 10) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        s.settimeout(20)
        try:
            while s.recv(100):
                pass
        except ConnectionResetError:
            pass
    here.x_colo(False)
    there.x_colo()
    here.cmd("migrate", {"uri": "tcp:127.0.0.1:%d" % b.port})
    here.wait("refused", lambda: here.cmd("query-migrate").get("status") in (
        "failed", "completed"), 30)
    there.wait_state("waiting")
    there.wait("says so", lambda: "plain migration" in there.output())


@case
def the_disk_comes_along(b):
    """Both have the image open, which wants locking=off."""
    disk = ["-drive", "if=virtio,id=d0,driver=raw,file.locking=off,file.filename=" +
            b.image("d.raw")]
    there = ours(b, "there", *disk, "-incoming", "tcp:127.0.0.1:%d" % b.port)
    completed(b, ours(b, "here", *disk), there)


if __name__ == "__main__":
    sys.exit(main())
