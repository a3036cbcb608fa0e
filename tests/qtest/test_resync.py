# Copying disks that are in use: mirror jobs beside stock QEMU's, and resynchronisation.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import struct
import zlib

from colo_qtest import *

MIB = 1 << 20


def disk(b, name="a.raw", mib=8):
    path = b.image(name, mib)
    with open(path, "r+b") as f:
        f.write(b.rng.randbytes(mib * MIB // 2))
    return path


def drive(path, name="disk0"):
    return ["-drive", "if=ide,id=%s,driver=raw,file.filename=%s" % (name, path)]


def content(path):
    with open(path, "rb") as f:
        return f.read()


def block(path, offset):
    """64 KiB: a single byte of a random disk may be what it is not to be."""
    with open(path, "rb") as f:
        f.seek(offset)
        return f.read(65536)


def guest_io(host, text, name="disk0"):
    """A request as the guest's would come; what qemu-io says."""
    return host.cmd("human-monitor-command", {"command-line": 'qemu-io %s "%s"' % (name, text)})


def mirror(host, target, name="disk0", **more):
    args = {"device": name, "job-id": "j", "target": target, "mode": "existing",
            "format": "raw", "sync": "full"}
    args.update({k.replace("_", "-"): v for k, v in more.items()})
    host.cmd("drive-mirror", args)


def wait_event(host, name, timeout=30, **fields):
    def there():
        for e in host.events(name):
            if all(e["data"].get(k) == v for k, v in fields.items()):
                return e["data"]
        return None
    return host.wait("event %s %s" % (name, fields), there, timeout)


def gone(host, job="j"):
    wait_event(host, "JOB_STATUS_CHANGE", status="null", id=job)
    assert host.cmd("query-jobs") == [], host.cmd("query-jobs")


def nbdkit(b, *args, size="8M", filters=()):
    """A server; its process and URI. Without size, what args say is all."""
    sock = "%s/nbdkit-%d.sock" % (b.dir, len(b.closers))
    command = ["nbdkit", "-f", "-U", sock] + ["--filter=" + f for f in filters] + list(args)
    popen = subprocess.Popen(command, stderr=open(b.dir + "/nbdkit.log", "ab"))

    class End:
        @staticmethod
        def close():
            popen.send_signal(signal.SIGCONT)
            popen.kill()
            popen.wait()
    b.closers.append(End)
    listens(sock, popen)
    return popen, "nbd+unix:///?socket=" + sock


# Beside stock

def shape(value):
    """Names and types; values of what does not depend on time."""
    if isinstance(value, dict):
        return {k: v if k in ("type", "status", "device", "id", "speed", "io-status", "ready",
                              "paused", "auto-finalize", "auto-dismiss", "action", "operation")
                else shape(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shape(v) for v in value]
    return type(value).__name__


def script(b, host):
    """The same commands to either program; what each answered, and the events."""
    seen = []

    def cmd(name, **args):
        try:
            got = shape(host.cmd(name, {k.replace("_", "-"): v for k, v in args.items()}))
        except QMPError as e:
            got = "error " + str(e.cls)
        seen.append((name, got))

    def start(**more):
        args = dict(device="disk0", target=b.dir + "/t.raw", mode="existing", format="raw",
                    sync="full", job_id="j")
        args.update(more)
        cmd("drive-mirror", **args)

    def event(name, **fields):
        seen.append(("event " + name, shape(wait_event(host, name, **fields))))

    def null():
        wait_event(host, "JOB_STATUS_CHANGE", status="null")
        states = [e["data"]["status"] for e in host.events("JOB_STATUS_CHANGE")
                  if e["data"]["status"] != "aborting"]
        seen.append(("states", states))
        host.qmp.events.clear()

    cmd("query-block-jobs")
    cmd("query-jobs")
    start(speed=1 << 20)
    cmd("query-block-jobs")
    cmd("query-jobs")
    start(job_id="k")
    cmd("block-job-complete", device="j")
    cmd("block-job-set-speed", device="j", speed=-1)
    cmd("block-job-set-speed", device="j", speed=2 << 20)
    cmd("block-job-resume", device="j")
    cmd("block-job-pause", device="j")
    wait_event(host, "JOB_STATUS_CHANGE", status="paused")
    cmd("query-block-jobs")
    cmd("block-job-pause", device="j")
    cmd("block-job-resume", device="j")
    cmd("block-job-cancel", device="j")
    event("BLOCK_JOB_CANCELLED")
    null()
    start()
    event("BLOCK_JOB_READY")
    cmd("query-block-jobs")
    cmd("query-jobs")
    cmd("job-pause", id="j")
    wait_event(host, "JOB_STATUS_CHANGE", status="standby")
    cmd("query-jobs")
    cmd("job-resume", id="j")
    cmd("block-job-cancel", device="j")
    event("BLOCK_JOB_COMPLETED")
    null()
    start(auto_finalize=False, auto_dismiss=False)
    event("BLOCK_JOB_READY")
    cmd("block-job-cancel", device="j")
    event("BLOCK_JOB_PENDING")
    cmd("query-block-jobs")
    cmd("query-jobs")
    cmd("job-dismiss", id="j")
    cmd("job-finalize", id="j")
    event("BLOCK_JOB_COMPLETED")
    cmd("query-jobs")
    cmd("job-dismiss", id="j")
    null()
    for name, key in (("block-job-cancel", "device"), ("block-job-pause", "device"),
                      ("block-job-resume", "device"), ("block-job-complete", "device"),
                      ("block-job-finalize", "id"), ("block-job-dismiss", "id"),
                      ("job-cancel", "id"), ("job-pause", "id"), ("job-resume", "id"),
                      ("job-complete", "id"), ("job-finalize", "id"), ("job-dismiss", "id")):
        cmd(name, **{key: "x"})
    cmd("block-job-set-speed", device="x", speed=0)
    start(device="nope")
    start(target=b.dir + "/none.raw")
    start(target="nbd://127.0.0.1:1/x")
    start(sync="bitmap")
    start(sync="x")
    start(granularity=3000)
    start(buf_size=-1)
    start(job_id="1 2")
    start(format="nbd")
    start(target=b.dir + "/small.raw")
    event("BLOCK_JOB_COMPLETED")
    null()
    start(target=b.dir + "/new.raw", mode="absolute-paths")
    event("BLOCK_JOB_READY")
    cmd("block-job-cancel", device="j", force=True)
    event("BLOCK_JOB_CANCELLED")
    null()
    return seen


@case
def answers_like_stock(b):
    b.image("t.raw", 64)
    b.image("small.raw", 4)
    path = disk(b, mib=64)
    ours = script(b, b.host("ours", "-colo", "checkpoint-events=on", *drive(path)))
    b.hosts[-1].close()
    b.program = shutil_which("qemu-system-x86_64")
    theirs = script(b, b.host("stock", *drive(path)))
    for mine, stock in zip(ours, theirs):
        assert mine == stock, "\nours:  %s\nstock: %s" % (mine, stock)
    return "%d answers and events" % len(ours)


def shutil_which(name):
    for folder in os.environ["PATH"].split(":"):
        if os.access(folder + "/" + name, os.X_OK):
            return folder + "/" + name
    raise Skip(name + " is not installed")


# What it copies

@case
def file_while_the_guest_writes(b):
    path, copy = disk(b), b.image("t.raw", 8)
    host = b.host("host", "-colo", "checkpoint-events=on", *drive(path))
    mirror(host, copy, speed=4 * MIB)
    for i in range(20):
        guest_io(host, "write -P %d %dk 64k" % (i + 1, b.rng.randrange(0, 8 * 1024 - 64)))
    host.cmd("block-job-set-speed", {"device": "j", "speed": 0})
    wait_event(host, "BLOCK_JOB_READY")
    guest_io(host, "write -P 200 1M 100k")
    guest_io(host, "write -z 3M 100k")
    host.cmd("block-job-cancel", {"device": "j"})
    wait_event(host, "BLOCK_JOB_COMPLETED")
    gone(host)
    guest_io(host, "flush")
    assert content(path) == content(copy), "the copy differs"
    guest_io(host, "write -P 201 1M 4k")
    guest_io(host, "flush")
    assert content(path) != content(copy), "a job that ended still copies"


@case
def the_guest_goes_on_with_the_copy(b):
    path, copy = disk(b), b.dir + "/copy.qcow2"
    host = b.host("host", "-colo", "checkpoint-events=on", *drive(path))
    mirror(host, copy, mode="absolute-paths", format="qcow2")
    wait_event(host, "BLOCK_JOB_READY")
    host.cmd("block-job-complete", {"device": "j"})
    wait_event(host, "BLOCK_JOB_COMPLETED")
    before = content(path)
    guest_io(host, "write -P 77 2M 64k")
    assert "verification failed" not in guest_io(host, "read -P 77 2M 64k")
    guest_io(host, "flush")
    host.cmd("quit")
    host.ended()
    assert content(path) == before, "the old disk was written to"
    text = subprocess.run(["qemu-io", "-f", "qcow2", "-c", "read -P 77 2M 64k", copy],
                          capture_output=True, text=True).stdout
    assert "verification failed" not in text and "read 65536" in text, text


# Targets that fail

@case
def target_is_full(b):
    path = disk(b)
    host = b.host("host", "-colo", "checkpoint-events=on", *drive(path))
    _, uri = nbdkit(b, "memory", "8M", "error-pwrite-rate=100%", "error-pwrite=ENOSPC",
                    "error-file=%s/full" % b.dir, filters=["error"])
    open(b.dir + "/full", "w").close()
    mirror(host, uri, on_target_error="enospc")
    wait_event(host, "BLOCK_JOB_ERROR", action="stop", operation="write")
    info = host.cmd("query-block-jobs")[0]
    assert info["io-status"] == "nospace" and info["paused"], info
    guest_io(host, "write -P 9 1M 64k")
    os.unlink(b.dir + "/full")
    while not host.events("BLOCK_JOB_READY"):
        if host.cmd("query-block-jobs")[0]["paused"]:
            host.cmd("block-job-resume", {"device": "j"})
        time.sleep(0.05)
    host.cmd("block-job-cancel", {"device": "j"})
    gone(host)
    open(b.dir + "/full", "w").close()
    host.qmp.events.clear()
    mirror(host, uri)
    has_words(wait_event(host, "BLOCK_JOB_COMPLETED")["error"], "No space left")


@case
def target_vanishes(b):
    path = disk(b)
    host = b.host("host", "-colo", "checkpoint-events=on", *drive(path))
    server, uri = nbdkit(b, "memory", "8M")
    mirror(host, uri)
    wait_event(host, "BLOCK_JOB_READY")
    server.kill()
    server.wait()
    guest_io(host, "write -P 9 1M 64k")
    data = wait_event(host, "BLOCK_JOB_COMPLETED")
    has_words(data["error"], "connection is lost")
    gone(host)
    assert "verification failed" not in guest_io(host, "read -P 9 1M 64k")


@case
def target_stands_still(b):
    path = disk(b)
    host = b.host("host", "-colo", "checkpoint-events=on", *drive(path))
    server, uri = nbdkit(b, "memory", "8M")
    mirror(host, uri)
    wait_event(host, "BLOCK_JOB_READY")
    freeze(server.pid)
    begin = time.monotonic()
    guest_io(host, "write -P 9 1M 64k")
    first = time.monotonic() - begin
    guest_io(host, "write -P 10 1M 64k")
    second = time.monotonic() - begin - first
    in_time(first, 10, "the write that finds the target silent")
    in_time(second, 1.5, "the next write")
    begin = time.monotonic()
    host.cmd("block-job-cancel", {"device": "j", "force": True})
    wait_event(host, "BLOCK_JOB_CANCELLED", timeout=30)
    gone(host)
    return "write %.1f s, then %.3f s; cancelled in %.1f s" % (first, second,
                                                              time.monotonic() - begin)


# The documented procedure

def colo_primary(b, path, name="primary"):
    return b.host(name, "-colo", "checkpoint-events=on", "-drive", "if=ide,id=colo-disk0,driver=quorum,read-pattern=fifo,"
                     "vote-threshold=1,children.0.file.filename=%s,children.0.driver=raw" % path)


def colo_secondary(b, path, name="s", mib=8):
    """A secondary that exports parent0, and the port of its NBD server."""
    active, hidden = b.image(name + "-active.raw", mib), b.image(name + "-hidden.raw", mib)
    host = b.host(
        name, "-colo", "checkpoint-events=on", "-incoming", "tcp:127.0.0.1:%d" % b.port,
        "-drive", "if=none,id=parent0,file.filename=%s,driver=raw" % path,
        "-drive", "if=none,id=childs0,driver=replication,mode=secondary,file.driver=raw,"
        "top-id=colo-disk0,file.file.filename=%s,file.backing.driver=raw,"
        "file.backing.file.filename=%s,file.backing.backing=parent0" % (active, hidden),
        "-drive", "if=ide,id=colo-disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,"
        "children.0=childs0")
    host.x_colo()
    port = free_port()
    host.cmd("nbd-server-start", {"addr": {"type": "inet", "data": {
        "host": "127.0.0.1", "port": str(port)}}})
    host.cmd("nbd-server-add", {"device": "parent0", "writable": True})
    return host, port


def attach(primary, port):
    text = primary.cmd("human-monitor-command", {
        "command-line": "drive_add -n buddy driver=replication,mode=primary,file.driver=nbd,"
        "file.host=127.0.0.1,file.port=%d,file.export=parent0,node-name=replication0" % port})
    assert not text, text
    primary.cmd("x-blockdev-change", {"parent": "colo-disk0", "node": "replication0"})


def detach(primary):
    primary.cmd("x-blockdev-change", {"parent": "colo-disk0", "child": "replication0"})
    primary.cmd("human-monitor-command", {"command-line": "drive_del replication0"})


def protect(b, primary, secondary):
    b.migrate(primary)
    primary.wait_state("protected")
    secondary.wait_state("protected")


def resync(host, port, sync="full", **more):
    """drive-mirror to READY, stop, cancel: as documented. The job's last event."""
    host.qmp.events.clear()
    mirror(host, "nbd://127.0.0.1:%d/parent0" % port, "colo-disk0", sync=sync, **more)
    wait_event(host, "BLOCK_JOB_READY")
    guest_io(host, "write -P 99 5M 64k", "colo-disk0")
    host.cmd("stop")
    host.cmd("block-job-cancel", {"device": "j"})
    data = wait_event(host, "BLOCK_JOB_COMPLETED")
    gone(host)
    return data


@case
def primary_resumes_replication(b):
    mine = disk(b, "primary.raw")
    subprocess.run(["cp", mine, b.dir + "/secondary.raw"], check=True)
    primary = colo_primary(b, mine)
    secondary, port = colo_secondary(b, b.dir + "/secondary.raw")
    attach(primary, port)
    protect(b, primary, secondary)
    guest_io(primary, "write -P 1 1M 256k", "colo-disk0")
    time.sleep(0.3)
    secondary.process.kill()
    primary.cmd("x-colo-lost-heartbeat")
    detach(primary)
    guest_io(primary, "write -P 2 2M 256k", "colo-disk0")
    b.port = free_port()
    fresh, port = colo_secondary(b, b.image("fresh.raw", 8), "f")
    resync(primary, port)
    attach(primary, port)
    protect(b, primary, fresh)
    guest_io(primary, "write -P 3 3M 256k", "colo-disk0")
    primary.cmd("stop")
    guest_io(primary, "flush", "colo-disk0")
    primary.process.kill()
    fresh.cmd("nbd-server-stop")
    fresh.cmd("x-colo-lost-heartbeat")
    fresh.wait_state("alone")
    guest_io(fresh, "flush", "colo-disk0")
    a, z = content(mine), content(b.dir + "/fresh.raw")
    # The last write may belong to an epoch that was never committed.
    keep = slice(0, 3 * MIB), slice(3 * MIB + 256 * 1024, None)
    assert all(a[k] == z[k] for k in keep), "the disks differ"
    assert a[1 * MIB] == 1 and a[2 * MIB] == 2 and a[5 * MIB] == 99


# What a returning host must copy

def paired(b, mib=64):
    """A protected pair with one disk, whose logs have begun; primary, secondary, paths."""
    mine, its = b.dir + "/a.raw", b.dir + "/z.raw"
    disk(b, "a.raw", mib)
    subprocess.run(["cp", mine, its], check=True)
    primary = colo_primary(b, mine)
    secondary, port = colo_secondary(b, its, "z", mib)
    attach(primary, port)
    protect(b, primary, secondary)
    primary.cmd("migrate-set-parameters", {"x-checkpoint-delay": 200})
    end = time.monotonic() + 20
    while generation(mine) != generation(its) or not generation(its):
        within(end, lambda: (generation(mine), generation(its)))
        time.sleep(0.1)
    return primary, secondary, mine, its


def generation(image):
    try:
        with open(image + ".colo-bitmap", "rb") as f:
            return f.read(4096)[48:88].rstrip(b"\0")
    except FileNotFoundError:
        return b""


def clean_log(image):
    """Its log with the same generation that names nothing: what it would be without it."""
    name = image + ".colo-bitmap"
    with open(name, "rb") as f:
        pages = bytearray(f.read())
    for at in range(4096, len(pages), 4096):
        pages[at + 16:at + 4096] = bytes(4080)
        pages[at + 12:at + 16] = struct.pack(">I", zlib.crc32(
            pages[at:at + 12] + pages[at + 16:at + 4096]))
    with open(name, "wb") as f:
        f.write(pages)


def copied(data):
    return data["offset"]


def secondary_survives(b):
    """The primary dies with writes that were never committed; the survivor writes, too."""
    primary, secondary, mine, its = paired(b)
    guest_io(primary, "write -P 1 1M 256k", "colo-disk0")
    time.sleep(1)
    primary.cmd("migrate-set-parameters", {"x-checkpoint-delay": 100000})
    time.sleep(0.5)
    # Between two checkpoints; what is written now only this host has.
    guest_io(primary, "write -P 7 20M 64k", "colo-disk0")
    guest_io(primary, "flush", "colo-disk0")
    primary.process.kill()
    secondary.cmd("nbd-server-stop")
    secondary.cmd("x-colo-lost-heartbeat")
    secondary.wait_state("alone")
    guest_io(secondary, "write -P 2 40M 128k", "colo-disk0")
    guest_io(secondary, "flush", "colo-disk0")
    written = bytes([7]) * 65536
    assert block(mine, 20 * MIB) == written, "the write is not on the disk"
    assert block(its, 20 * MIB) != written, "the case is void: the write was committed"
    return secondary, mine, its


def returns(b, image, name, mib=64):
    b.port = free_port()
    return colo_secondary(b, image, name, mib)


def same(host, a, z):
    guest_io(host, "flush", "colo-disk0")
    x, y = content(a), content(z)
    return [i for i in range(0, len(x), 65536) if x[i:i + 65536] != y[i:i + 65536]]


@case
def old_primary_returns(b):
    survivor, mine, its = secondary_survives(b)
    fresh, port = returns(b, mine, "a")
    data = resync(survivor, port, "incremental")
    assert same(survivor, mine, its) == [], "the disks differ"
    assert copied(data) < 32 * MIB, data
    attach(survivor, port)
    protect(b, survivor, fresh)
    return "%.1f of 64 MiB copied" % (copied(data) / MIB)


@case
def without_its_log_the_dead_sides_writes_survive(b):
    survivor, mine, its = secondary_survives(b)
    clean_log(mine)
    fresh, port = returns(b, mine, "a")
    resync(survivor, port, "incremental")
    assert same(survivor, mine, its) == [20 * MIB], same(survivor, mine, its)
    # Checksums find it without a log.
    survivor.cmd("cont")
    survivor.qmp.events.clear()
    mirror(survivor, "nbd://127.0.0.1:%d/parent0" % port, "colo-disk0", sync="none",
           x_verify=True)
    wait_event(survivor, "BLOCK_JOB_READY")
    info = survivor.cmd("query-block-jobs")[0]
    assert info["x-verified"] == 64 * MIB and info["x-differed"] == 65536, info
    survivor.cmd("block-job-cancel", {"device": "j"})
    gone(survivor)
    assert same(survivor, mine, its) == []
    fresh.close()


@case
def killed_secondary_returns(b):
    primary, secondary, mine, its = paired(b)
    guest_io(primary, "write -P 1 1M 256k", "colo-disk0")
    secondary.process.kill()
    primary.cmd("x-colo-lost-heartbeat")
    detach(primary)
    guest_io(primary, "write -P 2 40M 256k", "colo-disk0")
    assert os.path.exists(its + ".colo"), "no marker"
    fresh, port = returns(b, its, "z2")
    # Its image may hold parts of two checkpoints: not to be used before it is whole.
    primary.cmd("stop")
    attach(primary, port)
    b.migrate(primary)
    b.failed(primary, "drive-mirror")
    detach(primary)
    primary.cmd("cont")
    data = resync(primary, port, "incremental", x_verify=True)
    assert same(primary, mine, its) == [], "the disks differ"
    assert copied(data) < 32 * MIB, data
    attach(primary, port)
    protect(b, primary, fresh)
    return "%.1f of 64 MiB copied" % (copied(data) / MIB)


@case
def survivor_dies_and_comes_back(b):
    survivor, mine, its = secondary_survives(b)
    guest_io(survivor, "write -P 3 50M 4k", "colo-disk0")
    survivor.process.kill()
    again = colo_primary(b, its, "again")
    guest_io(again, "write -P 4 60M 4k", "colo-disk0")
    fresh, port = returns(b, mine, "a")
    resync(again, port, "incremental")
    assert same(again, mine, its) == [], "the disks differ"
    attach(again, port)
    protect(b, again, fresh)


@case
def no_common_past(b):
    survivor, mine, its = secondary_survives(b)
    uri = "nbd://127.0.0.1:%d/parent0"
    args = {"device": "colo-disk0", "job-id": "j", "mode": "existing", "format": "raw",
            "sync": "incremental"}
    os.unlink(mine + ".colo-bitmap")
    fresh, port = returns(b, mine, "a")
    has_words(survivor.error("drive-mirror", dict(args, target=uri % port)),
              "no activity log", "sync=full")
    fresh.close()
    with open(its + ".colo-bitmap", "rb") as f:
        head = bytearray(f.read())
    head[48:84] = b"00000000-0000-0000-0000-000000000000"
    head[88:92] = struct.pack(">I", zlib.crc32(head[:88]))
    with open(mine + ".colo-bitmap", "wb") as f:
        f.write(head)
    fresh, port = returns(b, mine, "a3")
    has_words(survivor.error("drive-mirror", dict(args, target=uri % port)),
              "never equal", "sync=full")
    _, nbd = nbdkit(b, "memory", "64M")
    has_words(survivor.error("drive-mirror", dict(args, target=nbd)), "no qemu-colo")
    assert survivor.cmd("query-block-jobs") == []
    has_words(survivor.error("drive-mirror", dict(args, target=nbd, sync="full",
                                                  **{"x-verify": True})), "no qemu-colo")


if __name__ == "__main__":
    sys.exit(main())
