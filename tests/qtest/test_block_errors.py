# Disks that fail: what stock QEMU says and does, we do; and what a pair does.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

from colo_qtest import *
from colo_small import almost_fill, make_room, small_disk
from colo_way import Way
from colo_writer import DONE, STATUS, boot_image, pair, word, writes


def answer(host, name, arguments=None):
    """What a command says, in a form that two programs' answers can be compared in."""
    try:
        return json.dumps(host.cmd(name, arguments), sort_keys=True)
    except QMPError as e:
        return "error: %s" % e


def compare(got):
    different = [(s, o) for s, o in zip(got["stock"], got["ours"]) if s != o]
    assert len(got["stock"]) == len(got["ours"]) and not different, \
        "\n".join("stock %.300s\nours  %.300s" % d for d in different)


def raw(b, name):
    return "driver=raw,node-name=%s,file.driver=file,file.filename=%s" % (
        name, b.image(name + ".raw"))


@case
def children_come_and_go_as_stock(b):
    """x-blockdev-change and blockdev-add of quorums, with everything wrong with them."""
    got = {}
    for name, extra in (("stock", []), ("ours", ["-colo", "checkpoint-events=on"])):
        nodes = sum((["-blockdev", raw(b, n)] for n in "abcd"), [])
        host = b.host(name, *extra, *nodes, "-blockdev",
                      "driver=quorum,node-name=q,vote-threshold=1,read-pattern=fifo,"
                      "children.0=a,children.1=b")
        change, add = "x-blockdev-change", "blockdev-add"
        quorum = {"driver": "quorum", "node-name": "q3", "vote-threshold": 1, "children": ["c"]}
        script = [
            (change, {"parent": "q"}),
            (change, {"parent": "q", "child": "children.0", "node": "c"}),
            (change, {"parent": "q", "child": "none"}),
            (change, {"parent": "q", "child": "children.7"}),
            (change, {"parent": "q", "node": "none"}),
            (change, {"parent": "none", "node": "c"}),
            (change, {"parent": "q", "node": "b"}),
            (change, {"parent": "q", "node": "q"}),
            (change, {"parent": "a", "node": "c"}),
            (change, {"parent": "a", "child": "file"}),
            (change, {"parent": "q", "node": "c"}),
            (change, {"parent": "q", "child": "children.1"}),
            (change, {"parent": "q", "child": "children.1"}),
            (change, {"parent": "q", "node": "b"}),
            (change, {"parent": "q", "child": "children.2"}),
            (change, {"parent": "q", "child": "children.3"}),
            (change, {"parent": "q", "child": "children.0"}),
            ("blockdev-del", {"node-name": "b"}),
            ("blockdev-del", {"node-name": "b"}),
            ("blockdev-del", {"node-name": "a"}),
            (add, dict(quorum, children=["b"])),
            (add, dict(quorum, **{"vote-threshold": 0})),
            (add, dict(quorum, children=[])),
            (add, dict(quorum, children=["none"])),
            (add, dict(quorum, children=["c", "d"], blkverify=True,
                       **{"vote-threshold": 2, "rewrite-corrupted": True})),
            (add, dict(quorum, **{"node-name": "q"})),
            (add, dict(quorum, **{"rewrite-corrupted": True})),
            ("blockdev-del", {"node-name": "q3"}),
        ]
        got[name] = ["%s %s: %s" % (c, a, answer(host, c, a)) for c, a in script]
        host.close()
    compare(got)


@case
def quorum_events_as_stock(b):
    """A child with an injected error, and one that lies: the same events."""
    got = {}
    for name, extra in (("stock", []), ("ours", ["-colo", "checkpoint-events=on"])):
        broken = ("driver=raw,node-name=b,file.driver=blkdebug,file.image.driver=file,"
                  "file.image.filename=%s,file.inject-error.0.event=write_aio,"
                  "file.inject-error.0.errno=28,file.inject-error.0.once=off" % b.image("b.raw"))
        host = b.host(name, *extra, "-blockdev", raw(b, "a"), "-blockdev", broken, "-blockdev",
                      raw(b, "c"), "-blockdev", raw(b, "d"), "-blockdev",
                      "driver=quorum,node-name=q,vote-threshold=1,read-pattern=fifo,"
                      "children.0=a,children.1=b", "-blockdev",
                      "driver=quorum,node-name=v,vote-threshold=2,children.0=c,children.1=d",
                      "-device", "ide-hd,drive=q,id=q-disk", "-device", "ide-hd,drive=v,id=v-disk")

        def io(node, command):
            host.cmd("human-monitor-command",
                     {"command-line": "qemu-io -d %s-disk \"%s\"" % (node, command)})
        io("q", "write -P 1 4k 8k")
        io("q", "read -P 1 4k 8k")
        io("v", "write -P 1 0 64k")
        with open(b.dir + "/d.raw", "r+b") as f:
            f.seek(1024)
            f.write(b"lies")
        io("v", "read 1k 512")
        io("v", "read 8k 512")
        events = ["%s %s" % (e["event"], json.dumps(e["data"], sort_keys=True))
                  for _, e in list(host.qmp.events) if e["event"].startswith("QUORUM")]
        got[name] = events
        host.close()
    assert len(got["stock"]) == 2, got
    compare(got)


def io_errors(host):
    return [e["data"] for e in host.events("BLOCK_IO_ERROR")]


def same_event(host):
    """What BLOCK_IO_ERROR says, without the names that the emulator made up."""
    host.wait("BLOCK_IO_ERROR", lambda: io_errors(host))
    data = dict(io_errors(host)[0])
    data.pop("node-name", None)
    return data


def disk(path, werror, iface="ide"):
    return ["-drive", "if=%s,id=d0,driver=raw,file.driver=file,file.filename=%s%s" % (
        iface, path, ",werror=" + werror if werror else "")]


@case
def full_disk_stops_the_guest(b):
    """werror=enospc is the default: ENOSPC arrives as such, cont goes on where it stood."""
    said = {}
    for name, extra in (("stock", []), ("ours", ["-colo", "checkpoint-events=on"])):
        path = small_disk(b, name + "-disk", 512)
        host = b.host(name, *extra, *disk(boot_image(path + "/d.raw"), ""))
        said[name] = same_event(host)
        host.wait("io-error", lambda: host.run_state() == "io-error")
        stood = word(host, DONE)
        time.sleep(0.2)
        assert word(host, DONE) == stood, "the guest runs on"
        host.cmd("cont")  # still full: it stops again
        host.wait("stopped again", lambda: len(io_errors(host)) > 1)
        host.wait("io-error", lambda: host.run_state() == "io-error")
        make_room(path, 80 << 10)
        host.cmd("cont")
        assert writes(host), "the guest does not go on"
        assert word(host, STATUS) & 0xff == 0, "the guest was told"
        assert host.run_state() == "running"
        host.close()
    assert said["stock"] == said["ours"], said
    assert said["ours"]["nospace"] and said["ours"]["action"] == "stop", said


@case
def full_disk_is_reported_or_ignored(b):
    for iface in "ide", "virtio":
        for policy in "report", "ignore":
            path = small_disk(b, iface + policy, 512)
            host = b.host(iface + policy, "-colo", "checkpoint-events=on",
                          *disk(boot_image(path + "/d.raw"), policy, iface))
            data = same_event(host)
            assert data["action"] == policy, data
            assert writes(host) and host.run_state() == "running"
            told = set()
            host.wait("what the guest is told", lambda: told.add(word(host, STATUS) & 0xff) or
                      (told - {0} if policy == "report" else word(host, DONE) > 500))
            assert policy == "report" or told == {0}, told
            host.close()


@case
def io_error_is_no_lack_of_space(b):
    """EIO by an NBD server's filter, and the server's death: both are EIO to the guest."""
    if not os.access("/usr/bin/nbdkit", os.X_OK):
        raise Skip("nbdkit is not installed")
    image, sock = boot_image(b.dir + "/d.raw"), b.dir + "/nbd.sock"
    for how in "error", "death":
        command = ["nbdkit", "-f", "-U", sock, "--filter=error", "file", image]
        if how == "error":
            command += ["error-pwrite=EIO", "error-pwrite-rate=100%",
                        "error-file=%s/broken" % b.dir]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        listens(sock, server)
        host = b.host(how, "-colo", "checkpoint-events=on", "-drive",
                      "if=ide,id=d0,driver=raw,file.driver=nbd,file.server.type=unix,"
                      "file.server.path=%s,werror=enospc" % sock)
        try:
            host.wait("guest writes", lambda: word(host, DONE) > 10 and writes(host))
            if how == "error":
                open(b.dir + "/broken", "w").close()
            else:
                server.kill()
            data = same_event(host)
            assert not data.get("nospace") and data["action"] == "report", data
            host.wait("guest is told", lambda: word(host, STATUS) & 0xff)
            assert host.run_state() == "running"
        finally:
            server.kill()
            server.wait()
        os.path.exists(sock) and os.unlink(sock)
        host.close()


# --- Pairs ---

@case
def full_disk_stops_the_pair(b):
    """The primary's disk is full, the guest stops on both sides; cont lets both go on, and
    both stay protected all the time."""
    path = small_disk(b, "full", 80 << 10)
    p, s = pair(b, path + "/p.raw", b.dir + "/s.raw", b.dir)
    almost_fill(path, 1024)
    same_event(p)
    p.wait("io-error", lambda: p.run_state() == "io-error")
    s.wait("the secondary stops", lambda: s.run_state() == "paused")
    stood = word(p, DONE), word(s, DONE)
    time.sleep(1.5)  # more than one checkpoint
    assert (word(p, DONE), word(s, DONE)) == stood, "a guest runs on"
    assert p.status()["state"] == s.status()["state"] == "protected", p.status()
    make_room(path, 80 << 10)
    p.cmd("cont")
    p.wait("running", lambda: p.run_state() == "running")
    s.wait("running", lambda: s.run_state() == "running")
    assert writes(p) and writes(s)
    assert p.status()["state"] == s.status()["state"] == "protected", p.status()


@case
def stopped_pair_fails_over_stopped(b):
    """The primary dies while the guest stands still for a full disk: the secondary has room,
    but it stands still too, until cont."""
    path = small_disk(b, "full", 80 << 10)
    p, s = pair(b, path + "/p.raw", b.dir + "/s.raw", b.dir)
    almost_fill(path, 1024)
    same_event(p)
    s.wait("the secondary stops", lambda: s.run_state() == "paused")
    p.process.kill()
    s.wait_state("lost")
    s.cmd("x-colo-lost-heartbeat")
    s.wait_state("alone")
    stood = word(s, DONE)
    time.sleep(0.3)
    assert word(s, DONE) == stood and s.run_state() == "paused", s.run_state()
    s.cmd("cont")
    assert writes(s), "cont does not help"


def longest_stand(host, seconds, over=lambda: False):
    """Between two writes that the guest begins, for so many seconds or until @over."""
    longest, last, end = 0, time.monotonic(), time.monotonic() + seconds
    begun = word(host, DONE)
    while time.monotonic() < end and not over():
        if word(host, DONE) != begun:
            begun, now = word(host, DONE), time.monotonic()
            longest, last = max(longest, now - last), now
    return longest


@case
def full_image_of_the_secondary_ends_protection(b):
    """The primary goes on serving, and says why it is no longer protected."""
    path = small_disk(b, "full", 80 << 10)
    p, s = pair(b, b.dir + "/p.raw", path + "/s.raw", b.dir)
    almost_fill(path, 1024)
    longest = longest_stand(p, 30, lambda: p.status()["state"] != "protected")
    p.wait_state("lost", 10)
    has_words(p.status()["error"], "disk", "No space left")
    has_words(p.output(), "No space left")
    p.cmd("x-colo-lost-heartbeat")
    p.wait_state("alone")
    assert writes(p) and p.run_state() == "running"
    in_time(longest, 4, "the guest's longest pause")
    return "longest stall %.2f s" % longest


@case
def full_active_disk_of_the_secondary(b):
    """Its guest's own writes fail; the primary's guest does not notice."""
    path = small_disk(b, "full", 80 << 10)
    p, s = pair(b, b.dir + "/p.raw", b.dir + "/s.raw", path)
    almost_fill(path, 128)
    longest = longest_stand(p, 6)
    state = p.status()["state"]
    if state == "lost":
        p.cmd("x-colo-lost-heartbeat")
    assert writes(p) and p.run_state() == "running"
    assert word(p, STATUS) & 0xff == 0 and not io_errors(p), io_errors(p)
    in_time(longest, 4, "the guest's longest pause")
    return "%s, %d errors over there, longest stall %.2f s" % (state, len(io_errors(s)), longest)


@case
def slow_way_of_the_disk_is_no_hang(b):
    """Writes that the checkpoint needs take longer than progress-timeout: as they come on, it
    is waited for, and the pair stays protected."""
    ways = []

    def via(port):
        ways.append(Way(b, "127.0.0.2", "127.0.0.1", [port], narrow=[port]))
        return "127.0.0.2"
    p, s = pair(b, b.dir + "/p.raw", b.dir + "/s.raw", b.dir, via=via,
                more=["-colo", "progress-timeout=2000"])
    p.cmd("migrate-set-parameters", {"x-checkpoint-delay": 3600000})
    ways[0].rate = 100 << 10
    queue = lambda: sum(d.get("queued-bytes", 0) for d in p.status()["disks"])
    p.wait("writes wait", lambda: queue() > 600 << 10, 60)
    before, begin = p.status()["checkpoints"], time.monotonic()
    p.cmd("xen-colo-do-checkpoint")
    p.wait("the checkpoint", lambda: p.status()["checkpoints"] > before, 60)
    took = time.monotonic() - begin
    ways[0].rate = None
    assert p.status()["state"] == s.status()["state"] == "protected", p.status()
    assert took > 2.5, "nothing was waited for (%.1f s)" % took
    return "%.1f s" % took


@case
def slow_storage_of_the_secondary_is_no_hang(b):
    """Its image takes what was committed so slowly that a checkpoint waits for it longer than
    progress-timeout: as it comes on, the pair stays protected."""
    if not os.access("/usr/bin/nbdkit", os.X_OK):
        raise Skip("nbdkit is not installed")
    sock, rate = b.dir + "/nbd.sock", b.dir + "/rate"

    def set_rate(text):
        with open(rate + ".new", "w") as f:
            f.write(text + "\n")
        os.rename(rate + ".new", rate)
    set_rate("8G")
    # What is slow is slow by its rate alone, and the primary's own disk, which is waited for as
    # well, never is: the machine's disk may have other work.
    quick = small_disk(b, "quick", 160 << 10)
    boot_image(quick + "/s.raw")
    server = subprocess.Popen(["nbdkit", "-f", "-U", sock, "--filter=rate", "file",
                               quick + "/s.raw", "rate=8G", "rate-file=" + rate])
    try:
        listens(sock, server)
        p, s = pair(b, quick + "/p.raw", quick + "/s.raw", b.dir,
                    file="file.driver=nbd,file.server.type=unix,file.server.path=" + sock,
                    more=["-colo", "progress-timeout=3000"])
        set_rate("400K")
        p.cmd("migrate-set-parameters", {"x-checkpoint-delay": 500})
        made, since, longest = p.status()["checkpoints"], time.monotonic(), 0
        end = since + 120
        while longest < 7:
            assert p.status()["state"] == s.status()["state"] == "protected", p.status()["error"]
            full = s.status()["disks"][0]["log-layers"] >= 8  # as many as may wait
            if p.status()["checkpoints"] != made or not full:
                made, since = p.status()["checkpoints"], time.monotonic()
            longest = max(longest, time.monotonic() - since)
            within(end, lambda: "no checkpoint waited: %s" % s.status()["disks"])
            time.sleep(0.1)
        set_rate("8G")
        p.wait("a checkpoint", lambda: p.status()["checkpoints"] > made)
        assert p.status()["state"] == s.status()["state"] == "protected"
    finally:
        set_rate("8G")
        for host in b.hosts:
            host.process.kill()
        server.kill()
        server.wait()


@case
def nodes_are_told_of(b):
    """query-named-block-nodes and query-block: our nodes, replication's state in them."""
    image, active, hidden = (b.dir + "/" + n for n in ("image", "active", "hidden"))
    for path in (image, active, hidden):
        subprocess.run(["qemu-img", "create", "-q", "-f", "raw", path, "4M"], check=True)
    host = b.host("nodes", "-colo", "checkpoint-events=on",
                  "-drive", "if=none,id=parent0,driver=raw,file.filename=" + image,
                  "-drive", "if=none,id=childs0,driver=replication,mode=secondary,top-id=d0,"
                  "file.driver=raw,file.file.filename=%s,file.backing.driver=raw,"
                  "file.backing.file.filename=%s,file.backing.backing=parent0,log-memory=1M"
                  % (active, hidden),
                  "-drive", "if=ide,id=d0,driver=quorum,vote-threshold=1,read-pattern=fifo,"
                  "children.0=childs0")
    nodes = {n["node-name"]: n for n in host.cmd("query-named-block-nodes")}
    assert nodes["childs0"]["mode"] == "secondary", nodes["childs0"]
    assert nodes["childs0"]["state"] == "none", nodes["childs0"]
    assert nodes["childs0"]["log-memory-limit"] == 1 << 20, nodes["childs0"]
    assert nodes["parent0"]["drv"] == "raw" and nodes["parent0"]["image"]["virtual-size"] == \
        4 << 20, nodes["parent0"]
    drive = next(d for d in host.cmd("query-block") if d["device"] == "d0")
    child = drive["inserted"]["children"][0]
    assert child["child"] == "children.0" and child["state"] == "none", drive


if __name__ == "__main__":
    sys.exit(main())
