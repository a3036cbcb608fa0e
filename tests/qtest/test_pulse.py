#!/usr/bin/env python3
# A pair without a heartbeat: the lease by which its primary speaks.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

from colo_frames import Wire, udp
from colo_qtest import *
from colo_way import Way

PATIENT = ["-colo", "peer-timeout=60000", "-trace", "colo:migration_peer_silent"]
LEASE_MS = 2000 * 4 // 5  # of so patient a pair, too


def sock(b, name, server=True):
    return ["-chardev", "socket,id=%s%s,path=%s/%s%s" % (
        name, "" if server else "-c", b.dir, name, ",server=on,wait=off" if server else "")]


def netdev(b, who):
    return ["-netdev", "stream,id=n0,server=on,addr.type=unix,addr.path=%s/%s-n0" % (b.dir, who),
            "-device", "e1000,netdev=n0,romfile="]


def primary_net(b):
    """What is put in at "guest" goes the way of what colo-compare lets through."""
    return [*netdev(b, "p"), *sock(b, "guest"), *sock(b, "mirror"), *sock(b, "twin"),
            *sock(b, "own"), *sock(b, "own", False), *sock(b, "out"), *sock(b, "out", False),
            "-object", "filter-redirector,id=g0,netdev=n0,queue=rx,indev=guest",
            "-object", "filter-mirror,id=m0,netdev=n0,queue=tx,outdev=mirror",
            "-object", "filter-redirector,id=r0,netdev=n0,queue=rx,indev=out",
            "-object", "filter-redirector,id=r1,netdev=n0,queue=rx,outdev=own",
            "-object", "iothread,id=io0", "-object",
            "colo-compare,id=c0,primary_in=own-c,secondary_in=twin,outdev=out-c,iothread=io0"]


def secondary_net(b):
    return [*netdev(b, "s"), *sock(b, "mirror", False), *sock(b, "twin", False),
            "-object", "filter-redirector,id=f0,netdev=n0,queue=tx,indev=mirror-c",
            "-object", "filter-redirector,id=f1,netdev=n0,queue=rx,outdev=twin-c",
            "-object", "filter-rewriter,id=w0,netdev=n0,queue=all"]


def pair(b, address="127.0.0.1"):
    """Protected, with a wire to what the guest of the primary would say, and one to the LAN."""
    primary = b.primary(*PATIENT, *b.rom, *primary_net(b))
    secondary = b.secondary(*PATIENT, *b.rom, *secondary_net(b))
    secondary.x_colo()
    primary.x_colo()
    primary.cmd("migrate", {"uri": "tcp:%s:%d" % (address, b.port)})
    for host in primary, secondary:
        host.wait_state("protected")
    guest, lan = Wire(b.dir + "/guest"), Wire(b.dir + "/p-n0")
    b.closers += [guest, lan]
    return primary, secondary, guest, lan


def lease(primary):
    return primary.status()["transfer"]["lease-left"]


def takeover(b, fenced):
    """From a primary that stands still; how long it took, and what it would have had."""
    primary, secondary, guest, lan = pair(b)
    guest.send(udp(b"before"))
    lan.expect(udp(b"before"))
    begin = time.monotonic()
    left = lease(primary)
    assert 0 < left <= LEASE_MS, left
    primary.process.freeze()
    secondary.cmd("x-colo-lost-heartbeat", {"fenced": fenced})
    secondary.wait_state("alone")
    took = time.monotonic() - begin
    for n in range(50):  # what a socket takes while nobody reads
        guest.send(udp(b"late %d" % n))
    os.kill(primary.process.pid, signal.SIGCONT)
    return primary, lan, took, left / 1e3


@case
def takeover_waits_for_the_pulse(b):
    """A primary that stands still believes that it may speak: the secondary, told to take over at
    once, waits until that is over. Nothing that the guest said meanwhile leaves when it wakes."""
    primary, lan, took, left = takeover(b, False)
    # What it believed then; an answer that came later made it only longer.
    assert took >= left, (took, left)
    lan.none(0.5)
    primary.wait_state("fenced")


@case
def operator_who_vouches_waits_for_nothing(b):
    primary, _, took, _ = takeover(b, True)
    primary.wait_state("fenced")
    in_time(took, 1, "a takeover with the operator's word")


@case
def cut_off_primary_is_silent_before_another_serves(b):
    """Nothing tells the primary that the way to its peer is cut, and it has patience for a minute.
    The operator has none: who serves then is alone in it."""
    way = Way(b, "127.0.0.2", "127.0.0.1", [b.port])
    primary, secondary, guest, lan = pair(b, "127.0.0.2")
    guest.send(udp(b"before"))
    lan.expect(udp(b"before"))
    way.cut()
    secondary.cmd("x-colo-lost-heartbeat")
    secondary.wait_state("alone")
    guest.send(udp(b"late"))
    lan.none(0.5)
    assert primary.status()["state"] == "protected"  # for all that it knows
    way.mend(broken=False)
    # Whether it hears the last word or but the end of the connection: it holds its output.
    primary.wait("an end", lambda: primary.status()["state"] in ("lost", "fenced"))
    lan.none(0.5)


@case
def primary_that_lives_lets_go_at_once(b):
    """Told to take over from a primary that is well: the end of its connection, before which it is
    silent, cuts the wait short."""
    primary, secondary, _, _ = pair(b)
    begin = time.monotonic()
    secondary.cmd("x-colo-lost-heartbeat")
    secondary.wait_state("alone")
    took = time.monotonic() - begin
    has_words(secondary.output(), "migration_peer_silent")
    primary.wait_state("fenced")
    return "%.0f ms" % (took * 1e3)


@case
def killed_primary_is_not_waited_for(b):
    primary, secondary, _, _ = pair(b)
    assert lease(primary) > 0
    primary.process.kill()
    secondary.wait_state("lost")
    begin = time.monotonic()
    secondary.cmd("x-colo-lost-heartbeat")
    secondary.wait_state("alone")
    took = time.monotonic() - begin
    in_time(took, 1, "the takeover")
    return "%.0f ms" % (took * 1e3)


@case
def known_things_wait_for_the_answer(b):
    """A secondary that stands still answers nothing: what the primary says is kept, in order,
    and leaves when it goes on."""
    primary, secondary, guest, lan = pair(b)
    secondary.process.freeze()
    primary.wait("lease over", lambda: lease(primary) == 0)
    for n in range(3):
        guest.send(udp(b"%d" % n))
    lan.none(0.3)
    os.kill(secondary.process.pid, signal.SIGCONT)
    for n in range(3):
        lan.expect(udp(b"%d" % n), 20)
    assert primary.status()["state"] == "protected"


if __name__ == "__main__":
    sys.exit(main())
