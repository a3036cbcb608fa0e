#!/usr/bin/env python3
# The connection between two hosts: several channels, compression, TLS, faults of each.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

from colo_conf import credentials
from colo_qtest import case, free_port, has_words, main, socket, sys, time

import select
import threading

VERIFY = ["-colo", "verify-ram=on"]


def settings(host, channels=0, compression=None, xbzrle=False, **params):
    host.cmd("migrate-set-capabilities", {"capabilities": [
        {"capability": "multifd", "state": channels > 0},
        {"capability": "xbzrle", "state": xbzrle}]})
    if channels:
        params["multifd-channels"] = channels
    if compression:
        params["multifd-compression"] = compression
    if params:
        host.cmd("migrate-set-parameters", params)


def two(b, *args, **kw):
    primary, secondary = b.primary(*b.rom, *args), b.secondary(*b.rom, *args)
    primary.wait("guest counts", primary.runs)
    settings(primary, **kw)
    return primary, secondary


def checkpoints(host, n, timeout=60):
    """@n more checkpoints, loaded by the secondary."""
    for _ in range(n):
        before = host.status()["checkpoints"]
        host.cmd("xen-colo-do-checkpoint")
        host.wait("checkpoint", lambda b=before: host.status()["checkpoints"] > b, timeout)


def good(primary, secondary):
    """Every page of every checkpoint was right."""
    checkpoints(primary, 3)
    primary.wait("verified", lambda: primary.status()["verified-checkpoints"] >= 5)
    assert primary.status()["wrong-pages"] == 0, primary.status()


def goes_on(dead, other):
    """The survivor serves from where the guest was."""
    reached = dead.count()
    dead.process.kill()
    other.wait_state("lost", 30)
    other.cmd("x-colo-lost-heartbeat")
    other.wait("serves", other.runs)
    return reached


@case
def each_number_and_method(b):
    """All pages are right, whatever way they went; small ones travel as differences."""
    for channels, method in ((0, None), (1, "none"), (2, "zlib"), (4, "zstd"), (16, "zstd")):
        b.port = free_port()
        primary, secondary = two(b, *VERIFY, channels=channels, compression=method)
        b.protect(primary, secondary)
        good(primary, secondary)
        t = primary.status()["transfer"]
        assert t["channels"] == channels and t["compression"] == (method or "none"), t
        packs = method not in (None, "none")
        assert bool(t["pages"]["packed"]) == packs and bool(t["pages"]["delta"]) == packs, t
        assert not packs or t["bytes-sent"] < t["bytes-raw"] / 2, t
        for h in (primary, secondary):
            h.close()


@case
def differences_alone(b):
    """xbzrle without compression."""
    primary, secondary = two(b, *VERIFY, xbzrle=True)
    b.protect(primary, secondary)
    good(primary, secondary)
    t = primary.status()["transfer"]
    assert t["pages"]["delta"] and not t["pages"]["packed"], t


@case
def takeovers(b):
    """The cases of QEMU's own test of COLO: plain and multifd, each side, idle or in transfer."""
    notes = []
    for channels in (0, 3):
        for who in ("primary", "secondary"):
            for busy in (False, True):
                b.port = free_port()
                primary, secondary = two(b, channels=channels, compression="none")
                b.protect(primary, secondary)
                if busy:
                    # So slow that a checkpoint is under way for long.
                    primary.cmd("migrate-set-parameters", {"max-bandwidth": 20000})
                    primary.cmd("xen-colo-do-checkpoint")
                    time.sleep(0.05 + 0.2 * b.rng.random())
                dead, left = (primary, secondary) if who == "primary" else (secondary, primary)
                if busy:
                    dead.process.kill()
                    left.wait_state("lost", 30)
                    left.cmd("x-colo-lost-heartbeat")
                    left.wait("serves", left.runs)
                else:
                    goes_on(dead, left)
                left.wait_state("alone", 30)
                assert left.status()["last-mode"] == ("secondary" if who == "primary"
                                                      else "primary")
                notes.append(who[0])
                left.close()
    return "%d takeovers" % len(notes)


@case
def bandwidth(b):
    """max-bandwidth bounds checkpoints, changes at run time, and does not lengthen the pause."""
    primary, secondary = two(b, channels=2, compression="none")
    b.protect(primary, secondary)
    checkpoints(primary, 2)
    primary.cmd("migrate-set-parameters", {"max-bandwidth": 20000})
    before, begin = primary.status()["transfer"]["bytes-sent"], time.monotonic()
    checkpoints(primary, 3)
    sent, took = primary.status()["transfer"]["bytes-sent"] - before, time.monotonic() - begin
    # The last message's own bytes are not waited for; nor are bytes of before.
    assert took > (sent * 0.5) / 20000, (sent, took)
    assert primary.status()["pause-us"]["last"] < took * 1e6 / 3
    primary.cmd("migrate-set-parameters", {"max-bandwidth": 1 << 40})
    checkpoints(primary, 3)
    return "%d bytes in %.1f s" % (sent, took)


# TLS


@case
def encrypted(b):
    """tls-creds on both sides: all channels; nothing of RAM can be read on the way."""
    client, server = credentials(b)
    secondary = b.secondary(*b.rom, *VERIFY, *server)
    primary = b.primary(*b.rom, *VERIFY, *client)
    primary.wait("guest counts", primary.runs)
    wire = Wire(b, b.port)
    settings(primary, channels=2, compression="zstd", **{"tls-creds": "tls0"})
    settings(secondary, **{"tls-creds": "tls0"})
    secondary.x_colo()
    b.migrate(primary, wire.port)
    primary.wait_state("protected", 30)
    good(primary, secondary)
    assert primary.status()["transfer"]["tls"] is True
    assert len(wire.joined) == 4 and not any(b"QCLO" in c.seen for c in wire.joined)
    goes_on(primary, secondary)


@case
def encryption_is_refused(b):
    """One side without, the wrong name, tls-authz: each with a reason; then it works."""
    client, server = credentials(b)
    secondary = b.secondary(*b.rom, *server)
    primary = b.primary(*b.rom, *client)
    primary.wait("guest counts", primary.runs)
    secondary.x_colo()
    settings(primary, channels=1, **{"tls-creds": "tls0"})
    b.migrate(primary)
    b.failed(primary, "TLS|closed|protocol")
    secondary.wait_state("waiting")
    has_words(secondary.output(), "wants TLS", "tls-creds")
    settings(secondary, **{"tls-creds": "tls0"})
    settings(primary, channels=1, **{"tls-creds": "tls0", "tls-hostname": "elsewhere"})
    b.migrate(primary)
    b.failed(primary, "certificate", "name|hostname|match")
    secondary.wait_state("waiting")
    settings(primary, channels=1, **{"tls-hostname": "there", "tls-authz": "a0"})
    b.migrate(primary)
    b.failed(primary, "tls-authz")
    settings(primary, channels=1, **{"tls-authz": "", "tls-creds": ""})
    b.migrate(primary)
    b.failed(primary, "TLS|closed|connection|reset|not answer")
    secondary.wait_state("waiting")
    settings(primary, channels=1, **{"tls-creds": "tls0"})
    b.protect(primary, secondary)
    checkpoints(primary, 1)


# Faults, from a wire of our own between the two


class Join:
    """One connection through the wire."""

    def __init__(self, down, up):
        self.ends = (down, up)
        self.held = False      # stall: nothing more goes from primary to secondary
        self.corrupt = False   # flip a bit in what comes next
        self.tear = False      # let half of it through, then cut
        self.seen = b""        # the first bytes of the primary

    def cut(self):
        for s in self.ends:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Wire:
    """A TCP relay: connections in the order in which they were made."""

    def __init__(self, b, port):
        self.to, self.joined = port, []
        self.listener, self.port = b.listen()
        self.closing = False
        b.closers.append(self)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        self.listener.settimeout(0.05)
        while not self.closing:
            try:
                down, _ = self.listener.accept()
                up = socket.create_connection(("127.0.0.1", self.to), 10)
            except OSError:
                time.sleep(0.01)
                continue
            j = Join(down, up)
            self.joined.append(j)
            threading.Thread(target=self.carry, args=(j,), daemon=True).start()

    def carry(self, j):
        down, up = j.ends
        try:
            while not self.closing:
                watch = [up] if j.held else [down, up]
                for s in select.select(watch, [], [], 0.05)[0]:
                    if s is down and j.held:
                        continue
                    data = s.recv(1 << 16)
                    if not data:
                        j.cut()
                        return
                    if s is down:
                        if len(j.seen) < 4096:
                            j.seen += data[:4096]
                        # Not in a header, nor in a message without payload.
                        if j.corrupt and len(data) > 200:
                            data = data[:150] + bytes([data[150] ^ 1]) + data[151:]
                            j.corrupt = False
                        if j.tear and len(data) > 200:
                            up.sendall(data[:len(data) // 2])
                            j.tear = False
                            j.cut()
                            return
                    (up if s is down else down).sendall(data)
        except OSError:
            j.cut()

    def close(self):
        self.closing = True
        for j in self.joined:
            j.cut()


FAULTS = {
    "cut": (lambda j: j.cut(), ""),
    "corrupt": (lambda j: setattr(j, "corrupt", True), "checksum"),
    "tear": (lambda j: setattr(j, "tear", True), ""),
    "stall": (lambda j: setattr(j, "held", True), "stands still|did not come|nothing was heard"),
}


def fault(b, what, number):
    """Fault @what on connection @number (0: control; 3: the pulse) of four; the secondary goes on
    from the last whole checkpoint, with a clear reason."""
    act, words = FAULTS[what]
    b.port = free_port()
    timeout = ["-colo", "peer-timeout=1500"]
    primary, secondary = two(b, *timeout, channels=2, compression="none")
    wire = Wire(b, b.port)
    secondary.x_colo()
    b.migrate(primary, wire.port)
    primary.wait_state("protected", 30)
    secondary.wait_state("protected", 30)
    checkpoints(primary, 2)
    assert len(wire.joined) == 4
    whole = secondary.status()["epoch"]
    act(wire.joined[number])
    primary.cmd("xen-colo-do-checkpoint")
    if what in ("corrupt", "tear") or number == 2:
        # A small checkpoint needs but one data channel: make them large.
        for _ in range(3):
            try:
                primary.key("r")
                primary.cmd("xen-colo-do-checkpoint")
            except Exception:
                break
            time.sleep(0.3)
    if number == 2 and (wire.joined[2].corrupt or wire.joined[2].tear):
        primary.close()  # nothing large enough went there
        secondary.close()
        return False
    secondary.wait_state("lost", 20)
    primary.wait_state("lost", 20)
    reason = secondary.status().get("error", "") + secondary.output()
    has_words(reason, words)
    assert secondary.status()["epoch"] >= whole
    primary.process.kill()
    secondary.cmd("x-colo-lost-heartbeat")
    secondary.wait("serves", secondary.runs)
    for h in (primary, secondary):
        h.close()
    return True


@case
def cut_channels(b):
    for number in range(4):
        assert fault(b, "cut", number)


@case
def corrupted_channels(b):
    return "channels %s" % [n for n in range(3) if fault(b, "corrupt", n)]


@case
def channels_torn_inside_a_message(b):
    return "channels %s" % [n for n in range(3) if fault(b, "tear", n)]


@case
def stalled_channels(b):
    return "channels %s" % [n for n in (0, 1, 3) if fault(b, "stall", n)]


@case
def late_channels(b):
    """A data channel that had nothing to carry for longer than peer-timeout, and whose next
    bytes come later than the control channel's, is no dead one."""
    b.port = free_port()
    primary, secondary = two(b, "-colo", "peer-timeout=3000", channels=1, compression="none")
    wire = Wire(b, b.port)
    secondary.x_colo()
    b.migrate(primary, wire.port)
    primary.wait_state("protected", 30)
    secondary.wait_state("protected", 30)
    checkpoints(primary, 1)
    for _ in range(2):
        time.sleep(3.5)
        before = primary.status()["checkpoints"]
        wire.joined[1].held = True
        primary.cmd("xen-colo-do-checkpoint")
        time.sleep(0.3)
        wire.joined[1].held = False
        primary.wait("checkpoint", lambda n=before: primary.status()["checkpoints"] > n, 20)
    assert primary.status()["state"] == "protected"


@case
def strangers_are_no_data_channels(b):
    """Connections that come between the greeting and the data channels are dropped."""
    primary, secondary = two(b, channels=2)
    wire = Wire(b, b.port)
    stop = []

    def knock():
        while not stop:
            try:
                with socket.create_connection(("127.0.0.1", b.port), 1) as s:
                    s.sendall(b"hello?" * 20)
            except OSError:
                pass
            time.sleep(0.005)
    secondary.x_colo()
    thread = threading.Thread(target=knock, daemon=True)
    b.migrate(primary, wire.port)
    thread.start()
    try:
        primary.wait_state("protected", 30)
    finally:
        stop.append(1)
        thread.join()
    checkpoints(primary, 2)


@case
def settings_are_checked(b):
    primary, secondary = two(b)
    secondary.x_colo()
    settings(primary, channels=17)
    b.migrate(primary)
    b.failed(primary, "multifd-channels", "16")
    settings(primary, channels=2)
    b.protect(primary, secondary)


if __name__ == "__main__":
    sys.exit(main())
