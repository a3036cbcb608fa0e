# The heartbeat between two real qemu-colo, through a forwarder that loses, delays, repeats
# and forges datagrams.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import hashlib
import hmac
import random
import select
import struct
import threading

from colo_qtest import *

KEY = b"a key that both of the two have"
BEAT = 96


def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", 0))
    return s, s.getsockname()[1]


class Link:
    """What lies between two ends: each end speaks to a port of ours. Datagrams to and from
    are counted as 0 (the first side's) and 1."""

    def __init__(self, b):
        reserve = [udp(), udp()]  # ports for the two sides
        self.ports = [port for _, port in reserve]
        for s, _ in reserve:
            s.close()
        self.ours = [udp(), udp()]  # what each side calls its peer
        self.lose = [0, 0]          # percent, from side i
        self.delay = self.twice = 0
        self.seen = [[], []]
        self.rng = random.Random(b.rng.random())
        self.stop = False
        b.closers.append(self)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def put(self, side, data):
        """A datagram for a side, as if its peer had sent it."""
        try:
            self.ours[side][0].sendto(data, ("127.0.0.1", self.ports[side]))
        except OSError:
            pass  # nobody there just now

    def run(self):
        later = []
        socks = [s for s, _ in self.ours]
        while not self.stop:
            for s in select.select(socks, [], [], 0.005)[0]:
                try:
                    data = s.recv(2000)
                except OSError:
                    continue
                side = socks.index(s)
                self.seen[side].append(data)
                for _ in range(1 + (self.rng.random() * 100 < self.twice)):
                    if self.rng.random() * 100 >= self.lose[side]:
                        at = time.monotonic() + self.rng.random() * self.delay
                        later.append((at, 1 - side, data))
            now = time.monotonic()
            for entry in [e for e in later if e[0] <= now]:
                later.remove(entry)
                self.put(entry[1], entry[2])

    def cut(self, cut=True):
        self.lose = [100 * cut] * 2

    def close(self):
        self.stop = True
        self.thread.join()
        for s, _ in self.ours:
            s.close()


def key_file(b, key=KEY, name="key", mode=0o600):
    path = "%s/%s" % (b.dir, name)
    with open(path, "wb") as f:
        f.write(key + b"\n")
    os.chmod(path, mode)
    return path


def heart(links, side, timeout=2000, interval=50, key=None):
    words = "colo-heartbeat,id=hb0,interval=%d,timeout=%d" % (interval, timeout)
    for i, link in enumerate(links):
        words += ",links.%d.local=127.0.0.1:%d,links.%d.peer=127.0.0.1:%d" % (
            i, link.ports[side], i, link.ours[side][1])
    return ["-object", words + (",key-file=" + key if key else "")]


def start(b, links, second=(), **kw):
    """Two sides that hear each other."""
    primary = b.primary(*heart(links, 0, **kw), *b.rom)
    secondary = b.secondary(*heart(links, 1, **kw), *b.rom, *second)
    for host in primary, secondary:
        host.wait("heartbeat", lambda: beat(host)["state"] == "up")
    return primary, secondary


def protected(b, links, **kw):
    primary, secondary = start(b, links, **kw)
    b.protect(primary, secondary)
    return primary, secondary


def beat(host):
    return host.status()["heartbeat"]


def told(host, event, link):
    return [e for e in host.events(event) if e["data"].get("link") == link]


@case
def shown_and_managed(b):
    """State, links, QOM, events; added, deleted and refused at run time."""
    links = [Link(b), Link(b)]
    primary, secondary = start(b, links, key=key_file(b))
    primary.wait("links", lambda: all(l["state"] == "up" for l in beat(primary)["links"]))
    s = beat(primary)
    assert s["authenticated"] and s["interval"] == 50 and s["timeout"] == 2000, s
    assert len(s["links"]) == 2 and s["links"][1]["received"] > 0, s
    assert s["links"][0]["local"] == "127.0.0.1:%d" % links[0].ports[0], s
    assert not any(v for k, v in s["links"][0].items() if k.startswith("refused")), s
    for link in (0, 1, None):
        primary.wait("event", lambda: told(primary, "COLO_HEARTBEAT_RESTORED", link))
    get = lambda what: primary.cmd("qom-get", {"path": "/objects/hb0", "property": what})
    assert get("type") == "colo-heartbeat" and get("state") == "up" and len(get("links")) == 2
    assert {"name": "hb0", "type": "child<colo-heartbeat>"} in \
        primary.cmd("qom-list", {"path": "/objects"})
    has_words(primary.error("qom-get", {"path": "hb0", "property": "x"}), "not found")
    has_words(primary.error("object-add", {"qom-type": "colo-heartbeat", "id": "h2",
                                           "local": "127.0.0.1:1", "peer": "127.0.0.1:1"}),
              "already", "links.N")
    # A clean stop of the object is the peer's silence: it is lost after the time-out.
    secondary.cmd("object-del", {"id": "hb0"})
    assert beat(secondary)["state"] == "off"
    primary.wait("loss", lambda: beat(primary)["state"] == "lost")
    for link in (0, 1, None):
        primary.wait("event", lambda: told(primary, "COLO_HEARTBEAT_LOST", link))
    secondary.cmd("object-add", {
        "qom-type": "colo-heartbeat", "id": "hb1", "interval": 50, "timeout": 2000,
        "key-file": key_file(b),
        "links": [{"local": "127.0.0.1:%d" % l.ports[1], "peer": "127.0.0.1:%d" % l.ours[1][1]}
                  for l in links]})
    primary.wait("again", lambda: beat(primary)["state"] == "up")


@case
def options_that_do_not_fit(b):
    def fails(words, *want):
        done = subprocess.run([b.program, *MACHINE, "-S", "-object", "colo-heartbeat," + words],
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 1, done
        has_words(done.stderr.splitlines()[0], "colo-heartbeat", *want)
    good = "id=h,local=127.0.0.1:%d,peer=127.0.0.1:9" % free_port()
    fails("id=h", "local=ADDRESS:PORT")
    fails("local=127.0.0.1:0,peer=127.0.0.1:9", "id")
    fails("id=h,local=127.0.0.1,peer=127.0.0.1:9", "ADDRESS:PORT")
    fails("id=h,local=192.0.2.1:7,peer=127.0.0.1:9", "192.0.2.1")
    fails(good + ",speed=9", "speed")
    fails(good + ",interval=5", "interval")
    fails(good + ",interval=100,timeout=300", "four times")
    fails(good + ",links.9.local=127.0.0.1:0,links.9.peer=127.0.0.1:9", "links")
    fails(good + ",links.0.local=127.0.0.1:0,links.0.peer=127.0.0.1:9,links.0.key=7", "key")
    fails(good + ",key-file=/nonexistent", "/nonexistent")
    fails(good + ",key-file=" + b.dir, "ordinary file|mode")
    for mode in (0o640, 0o604, 0o620, 0o602):
        fails(good + ",key-file=" + key_file(b, mode=mode), "mode", "chmod")
    fails(good + ",key-file=" + key_file(b, b"short"), "16")
    fails(good + ",key-file=" + key_file(b, b"x" * 3000), "1024")


def sign(data, key=KEY):
    return data[:64] + hmac.new(key, data[:64], hashlib.sha256).digest()


def other_byte(data, i):
    return data[:i] + bytes([data[i] ^ 0x55]) + data[i + 1:]


@case
def what_is_wrong_is_refused_and_counted(b):
    """Forged, malformed, reflected, replayed, misdirected, strange: each is counted by its
    name, and the pair stays protected; none of them keeps a dead peer alive."""
    link = Link(b)
    primary, secondary = protected(b, [link], key=key_file(b))
    def counts():
        return {k[8:]: v for k, v in beat(primary)["links"][0].items()
                if k.startswith("refused-")}
    assert not any(counts().values()), counts()
    theirs = link.seen[1][-1]
    swapped = theirs[:24] + struct.pack(">Q", 99) + theirs[32:]
    bad = {"forged": [sign(theirs, b"another key than the two have"), other_byte(theirs, 95),
                      other_byte(theirs, 50)],
           "malformed": [b"", b"x", theirs[:95], theirs + b"x", b"\0" * BEAT, os.urandom(BEAT),
                         sign(theirs[:5] + b"\x63" + theirs[6:])],
           "reflected": [link.seen[0][-1], link.seen[0][-2]],
           "replayed": [theirs, link.seen[1][-3]],
           "misdirected": [sign(swapped), sign(theirs[:7] + b"\5" + theirs[8:])],
           "stranger": [sign(theirs[:16] + struct.pack(">Q", 77) + theirs[24:])]}
    for _ in range(3):
        for datagrams in bad.values():
            for data in datagrams:
                link.put(0, data)
        time.sleep(0.05)
    want = {name: 3 * len(datagrams) for name, datagrams in bad.items()}
    primary.wait("refusals", lambda: counts() == want, 5)
    assert primary.status()["state"] == "protected"
    # Going on with it while the secondary's own do not come: lost all the same.
    link.lose[1] = 100
    before = link.seen[1][-5]
    end = time.monotonic() + 15
    while primary.status()["state"] == "protected":
        for datagrams in bad.values():
            for data in datagrams:
                link.put(0, data)
        link.put(0, before)
        within(end, "kept alive by what is not the peer's")
        time.sleep(0.02)
    has_words(primary.status()["error"], "heartbeat")


@case
def beats_of_another_life(b):
    """A restarted secondary: what its former self sent is worth nothing, not even to greet."""
    link = Link(b)
    primary, secondary = start(b, [link], key=key_file(b))
    old = list(link.seen[1])
    secondary.process.kill()
    primary.wait("loss", lambda: beat(primary)["state"] == "lost")
    for data in old:
        link.put(0, data)
    time.sleep(0.3)
    assert beat(primary)["state"] == "lost", beat(primary)
    b.port = free_port()
    again = b.host("again", "-incoming", "tcp:127.0.0.1:%d" % b.port,
                   *heart([link], 1, key=key_file(b)), *b.rom)
    for host in primary, again:
        host.wait("heartbeat", lambda: beat(host)["state"] == "up")
    before = beat(primary)["links"][0]["refused-replayed"]
    for data in old[-20:]:
        link.put(0, data)
    primary.wait("refusals", lambda: beat(primary)["links"][0]["refused-replayed"] > before)


@case
def one_link_of_two(b):
    """Protection stays; the events name the link, that it is lost and that it is back."""
    links = [Link(b), Link(b)]
    primary, secondary = protected(b, links)
    links[0].cut()
    for host in primary, secondary:
        host.wait("loss", lambda: told(host, "COLO_HEARTBEAT_LOST", 0))
        assert beat(host)["links"][0]["state"] == "lost"
        assert beat(host)["state"] == "up"
    links[0].cut(False)
    n = len(told(primary, "COLO_HEARTBEAT_RESTORED", 0))
    primary.wait("mended", lambda: len(told(primary, "COLO_HEARTBEAT_RESTORED", 0)) > n - 1 and
                 beat(primary)["links"][0]["state"] == "up")
    # One direction a link is enough.
    links[0].lose, links[1].lose = [100, 0], [0, 100]
    time.sleep(3)
    for host in primary, secondary:
        assert host.status()["state"] == "protected", host.status()
        assert not told(host, "COLO_HEARTBEAT_LOST", None)


@case
def all_links(b):
    """The peer is lost although the checkpoint channel lives; nobody goes on by himself."""
    link = Link(b)
    primary, secondary = protected(b, [link])
    link.cut()
    for host in primary, secondary:
        host.wait_state("lost")
        # Whoever sees it first closes the channel, which the other may see before.
        has_words(host.status()["error"], "heartbeat|closed|reset")
    assert any(told(h, "COLO_HEARTBEAT_LOST", None) for h in (primary, secondary))
    secondary.cmd("x-colo-lost-heartbeat")
    secondary.wait_state("alone")


@case
def deaf_side_is_noticed_by_both(b):
    """Nothing reaches the secondary: the primary, which hears it well, counts it as lost too."""
    link = Link(b)
    primary, secondary = protected(b, [link])
    link.lose[0] = 100
    primary.wait_state("lost")
    secondary.wait_state("lost")


@case
def heavy_loss_is_no_death(b):
    """A third of all beats is lost, some come twice, late, out of order: protected."""
    links = [Link(b), Link(b)]
    primary, secondary = protected(b, links, timeout=3000)
    for link in links:
        link.lose, link.twice, link.delay = [30, 30], 20, 0.1
    time.sleep(5)
    for host in primary, secondary:
        assert host.status()["state"] == "protected", host.status()
    refused = sum(l["refused-replayed"] for l in beat(primary)["links"])
    assert refused > 0, "what came twice counted twice"
    return "rtt %d us" % beat(primary)["links"][0]["rtt-us"]


@case
def last_words(b):
    """A clean end and a dead emulator are said at once, though every second copy is lost."""
    for word in "quit", "emulator":
        link = Link(b)
        b.port = free_port()
        kw = {"timeout": 20000}
        first = b.host("first-" + word, *heart([link], 0, **kw), *b.rom)
        second = b.host("second-" + word, "-incoming", "tcp:127.0.0.1:%d" % b.port,
                        *heart([link], 1, **kw), *b.rom)
        second.wait("heartbeat", lambda: beat(second)["state"] == "up")
        link.rng.seed(5)
        link.lose = [50, 0]
        begin = time.monotonic()
        if word == "quit":
            first.cmd("quit")
        else:
            os.kill(first.process.emulator_pid(), signal.SIGKILL)
        second.wait("loss", lambda: beat(second)["state"] == "lost")
        in_time(time.monotonic() - begin, 15, "the last word")
        has_words(told(second, "COLO_HEARTBEAT_LOST", None)[0]["data"]["reason"],
                  "ended" if word == "quit" else "emulator died")
        second.close()


@case
def greetings_agree(b):
    """One side without, or with another time-out, or another key: no protection, and why."""
    link = Link(b)
    primary = b.primary(*heart([link], 0), *b.rom)
    secondary = b.secondary(*b.rom)
    secondary.x_colo()
    b.migrate(primary)
    b.failed(primary, "only the peer has a colo-heartbeat")
    secondary.cmd("object-add", {"qom-type": "colo-heartbeat", "id": "x", "interval": 50,
                                 "timeout": 700, "local": "127.0.0.1:%d" % link.ports[1],
                                 "peer": "127.0.0.1:%d" % link.ours[1][1]})
    b.migrate(primary)
    b.failed(primary, "differ", "700 ms", "2000 ms")
    secondary.cmd("object-del", {"id": "x"})
    secondary.cmd("object-add", {"qom-type": "colo-heartbeat", "id": "x", "interval": 50,
                                 "timeout": 2000, "local": "127.0.0.1:%d" % link.ports[1],
                                 "peer": "127.0.0.1:%d" % link.ours[1][1],
                                 "key-file": key_file(b)})
    b.migrate(primary)
    b.failed(primary, "does not hear the secondary", "forged", timeout=40)
    assert primary.status()["state"] == "alone"


@case
def takeover_waits_for_the_lease(b):
    """A primary that stands still may believe that it may speak: the secondary, told to take
    over at once, waits until that is over; not if the operator vouches for its death."""
    for fenced in False, True:
        link = Link(b)
        b.port = free_port()
        kw = {"timeout": 20000 if fenced else 4000}
        first = b.host("p%d" % fenced, *heart([link], 0, **kw), *b.rom)
        second = b.host("s%d" % fenced, "-incoming", "tcp:127.0.0.1:%d" % b.port,
                        *heart([link], 1, **kw), *b.rom)
        b.protect(first, second)
        has_words(first.error("object-del", {"id": "hb0"}), "in use")
        begin = time.monotonic()
        lease = beat(first)["lease-left"]
        assert kw["timeout"] / 2 < lease <= kw["timeout"] * 4 / 5, lease
        first.process.freeze()
        second.cmd("x-colo-lost-heartbeat", {"fenced": fenced})
        second.wait_state("alone")
        took = time.monotonic() - begin
        # What it believed then; a beat that came later made it only longer.
        assert fenced or took >= lease / 1e3, (took, lease)
        if fenced:
            in_time(took, 15, "a takeover with the operator's word")
        os.kill(first.process.pid, signal.SIGCONT)
        first.wait_state("fenced")
        first.close()
        second.close()


@case
def primary_that_lives_lets_go_at_once(b):
    """Told to take over from a primary that is well: its word that it is silent cuts the
    wait short."""
    link = Link(b)
    primary, secondary = protected(b, [link], timeout=20000)
    begin = time.monotonic()
    secondary.cmd("x-colo-lost-heartbeat")
    secondary.wait_state("alone")
    took = time.monotonic() - begin
    in_time(took, 10, "the takeover")
    primary.wait_state("fenced")
    return "%.0f ms" % (took * 1e3)


@case
def busy_main_loop_goes_on_beating(b):
    """QMP clients that keep the main loop at work for longer than the time-out."""
    link = Link(b)
    primary, secondary = protected(b, [link], timeout=1500)
    begin = time.monotonic()
    primary.qmp.sock.sendall(b'{"execute":"query-qmp-schema"}\n' * 12)
    primary.status()
    took = time.monotonic() - begin
    assert secondary.status()["state"] == "protected", secondary.status()
    assert not told(secondary, "COLO_HEARTBEAT_LOST", None)
    return "busy for %.1f s, heart at most %d us late" % (took, beat(primary)["late-us"])


if __name__ == "__main__":
    sys.exit(main())
