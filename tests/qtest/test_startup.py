# Command lines that cannot be honoured: one clear message, exit status 1, nothing left.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import pwd

from colo_qtest import *
from e2e_huge import HugePages  # after colo_qtest, which knows where it is

COLO = ["-colo", "checkpoint-events=on"]
NET = ["-netdev", "user,id=n"]
MIRROR = ["-chardev", "socket,id=m,host=127.0.0.1,port=0,server=on,wait=off"]


def start(b, *args, before=(), expect=1, program=None, env=None):
    """Its messages; it must end by itself, at once, and take its emulator along."""
    mark = "COLO_QTEST_MARK=%s" % b.dir
    command = [*before, program or b.program, *MACHINE, *args]
    done = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True,
                            env=dict(env or os.environ, COLO_QTEST_MARK=b.dir))
    try:
        text = done.communicate(timeout=15)[0]
    except subprocess.TimeoutExpired:
        done.terminate()
        raise AssertionError("it started: %s %s" % (args, done.communicate()[0])) from None
    assert done.returncode == expect, "exit status %d: %s" % (done.returncode, text)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/environ" % pid) as f:
                assert mark not in f.read().split("\0"), "process %s is left" % pid
        except OSError:
            pass
    return text


def refused(b, args, *words, **kw):
    """One line of ours, that has all of @words."""
    text = start(b, *args, **kw)
    lines = [line for line in text.splitlines() if line.startswith("qemu-colo: ")]
    assert len(lines) == 1, "%s said: %s" % (args, text)
    has_words(lines[0], *words)
    return lines[0]


@case
def colo_options(b):
    refused(b, ["-colo", "speed=fast"], "-colo", "speed", "peer-timeout")
    refused(b, ["-colo", "peer-timeout=soon"], "peer-timeout", "soon")
    refused(b, ["-colo", "peer-timeout=1"], "peer-timeout", "100")
    refused(b, ["-colo", "checkpoint-events=maybe"], "checkpoint-events", "maybe")
    refused(b, ["-colo", "=5"], "parameter name")
    refused(b, ["-colo", "metrics=9100"], "metrics", "127.0.0.1:PORT")
    refused(b, ["-colo", "metrics=0.0.0.0:9100"], "metrics", "loopback")
    refused(b, ["-colo", "{nonsense"], "JSON")
    refused(b, ["-colo"], "-colo", "argument")


@case
def emulator_is_missing(b):
    refused(b, ["-colo", "emulator=/nonexistent/qemu"], "/nonexistent/qemu", "install",
            "emulator=")
    name = b.dir + "/qemu-colo-system-nonsense"
    os.symlink(b.program, name)
    refused(b, COLO, "qemu-system-nonsense", "install", program=name)


@case
def emulator_is_none(b):
    """A program that is no emulator, and one that is none at all."""
    refused(b, ["-colo", "emulator=/bin/true"], "/bin/true", "did not start")
    path = b.dir + "/text"
    with open(path, "w") as f:
        f.write("no program\n")
    os.chmod(path, 0o755)
    refused(b, ["-colo", "emulator=" + path], path, "did not start")


@case
def emulator_refuses(b):
    """Its own words come first."""
    text = start(b, *COLO, "-device", "no-such-device")
    has_words(text, "no-such-device.*not a valid device", "qemu-colo: .*did not start")
    text = start(b, *COLO, "-no-such-option", "x")
    has_words(text, "no-such-option")


@case
def options_that_colo_excludes(b):
    for args, words in (
            (["-daemonize"], ["-daemonize", "service manager"]),
            (["-mem-path", "/no/such"], ["mem-path", "/no/such"]),
            (["-numa", "node,mem=64M"], ["-numa", "mem=", "memdev="]),
            (["-object", "memory-backend-memfd,id=m,size=64M,share=off"],
             ["memory-backend-memfd", "id=m", "share=on"]),
            (["-object", "memory-backend-file,id=m,size=64M,mem-path=/dev/shm"], ["share=on"]),
            (["-object", "memory-backend-file,id=m,size=64M"], ["mem-path"]),
            (["-object", "memory-backend-file,id=m,size=64M,mem-path=/dev/shm,share=on,pmem=on"],
             ["pmem=on"]),
            (["-object", "memory-backend-epc,id=m,size=64M"], ["memory-backend-epc"]),
            (["-object", "memory-backend-memfd,id=m,size=64M,share=on,hugetlb=on,"
              "hugetlbsize=12k"], ["hugetlbsize", "power of two"]),
            (["-colo", "tracker=magic"], ["tracker=magic", "soft-dirty"]),
            (["-loadvm", "x"], ["-loadvm", "start"]),
            (["-snapshot"], ["-snapshot", "discard"]),
            (["-icount", "auto"], ["-icount"]),
            (["-runas", "nobody"], ["-runas"]),
            (["-chroot", "/"], ["-chroot"]),
            (["-net", "user"], ["-net user", "-netdev"]),
            (["-nic", "user"], ["-nic user", "-netdev"]),
            (["-m", "32,slots=2,maxmem=1G"], ["-m", "hotplug"]),
            (["-m", "lots"], ["-m", "lots"]),
            (["-device", "virtio-balloon-pci"], ["virtio-balloon-pci", "leave it out"]),
            (["-device", "virtio-mem-pci"], ["virtio-mem"]),
            (["-device", "vfio-pci,host=00:01.0"], ["vfio-pci", "host"]),
            (["-device", "ivshmem-plain,memdev=x"], ["ivshmem"]),
            (["-incoming", "tcp:127.0.0.1"], ["tcp:127.0.0.1", "tcp:host:port"]),
            (["-incoming", "tcp:no.such.host.invalid:1"], ["no.such.host.invalid"])):
        refused(b, COLO + args, *words)


@case
def drives(b):
    image = b.image("d.raw")
    for args, words in (
            (["-drive", "file=%s/none.raw,format=raw" % b.dir], ["none.raw", "no such file"]),
            (["-drive", "file=%s,format=raw,snapshot=on" % image], ["snapshot=on"]),
            (["-drive", "file=%s,format=raw,speed=9" % image], ["speed"]),
            (["-colo", "other-ram=off", "-drive", "if=pflash,file=%s,format=raw" % image],
             ["flash", "readonly=on"]),
            (["-drive", "file=%s,format=qcow2" % image], ["qcow2"]),
            (["-drive", "file=%s,format=vaporware" % image], ["vaporware"]),
            (["-blockdev", "driver=raw,file.filename=" + image], ["node-name"]),
            (["-drive", "if=none,id=q,driver=quorum,vote-threshold=1"], ["children|child"]),
            (["-drive", "if=none,id=q,driver=quorum,vote-threshold=9,"
              "children.0.driver=raw,children.0.file.filename=" + image], ["vote-threshold"]),
            (["-drive", "if=none,id=r,driver=replication,mode=tertiary,file.driver=raw,"
              "file.file.filename=" + image], ["tertiary|mode"]),
            (["-drive", "if=none,id=x,format=raw,file=" + image,
              "-drive", "if=none,id=x,format=raw,file=" + image], ["x"])):
        refused(b, COLO + args, *words)


@case
def image_of_another_program(b):
    image = b.image("d.raw")
    b.host("a", *COLO, "-drive", "if=ide,format=raw,file=" + image)
    refused(b, COLO + ["-drive", "if=ide,format=raw,file=" + image], "d.raw", "lock|in use")


@case
def objects(b):
    ok = NET + MIRROR
    for args, words in (
            (ok + ["-object", "filter-mirror,id=f,netdev=n,queue=tx,outdev=m,speed=9"],
             ["filter-mirror", "speed"]),
            (ok + ["-object", "filter-mirror,id=f,netdev=n,queue=tx,outdev=none"],
             ["filter-mirror", "f", "none"]),
            (ok + ["-object", "filter-mirror,id=f,netdev=none,queue=tx,outdev=m"],
             ["filter-mirror", "f", "netdev"]),
            (ok + ["-object", "filter-mirror,id=f,netdev=n,queue=up,outdev=m"],
             ["queue", "up"]),
            (ok + ["-object", "filter-mirror,id=f,netdev=n,queue=tx"], ["outdev"]),
            (ok + ["-object", "filter-mirror,netdev=n,queue=tx,outdev=m"], ["id"]),
            (ok + ["-object", "filter-redirector,id=f,netdev=n,queue=tx"],
             ["indev", "outdev"]),
            (ok + ["-object", "filter-redirector,id=f,netdev=n,queue=tx,indev=m,outdev=m"],
             ["indev", "outdev"]),
            (ok + ["-object", "filter-buffer,id=f,netdev=n,interval=0"], ["interval"]),
            (ok + ["-object", "filter-mirror,id=f,netdev=n,queue=tx,outdev=m",
                   "-object", "filter-rewriter,id=f,netdev=n"], ["f", "duplicate|exists|twice"]),
            (ok + ["-object", "filter-mirror,id=f,netdev=n,outdev=m,status=perhaps"],
             ["filter-mirror", "f", "status"]),
            (ok + ["-object", "colo-compare,id=c,primary_in=m"], ["colo-compare", "c"]),
            (ok + ["-object", "iothread,id=i", "-object",
                   "colo-compare,id=c,primary_in=m,secondary_in=m,outdev=m,iothread=i"],
             ["colo-compare", "c"]),
            (ok + ["-object", "colo-compare,id=c,primary_in=m,secondary_in=x,outdev=y,"
                   "iothread=none"], ["colo-compare"])):
        refused(b, COLO + args, *words)


@case
def chardevs_and_netdevs(b):
    wanted = ["-object", "filter-mirror,id=f,netdev=n,queue=tx,outdev=m"]
    taken, port = b.listen()
    for args, words in (
            (NET + wanted + ["-chardev", "file,id=m,path=/dev/null"], ["socket"]),
            (NET + wanted + ["-chardev", "socket,id=m,host=127.0.0.1,port=%d,server=on,"
                             "wait=off" % port], ["m", str(port), "in use"]),
            (NET + wanted + ["-chardev", "socket,id=m,host=127.0.0.1,port=%d" % free_port()],
             ["m", "refused"]),
            (NET + wanted + ["-chardev", "socket,id=m"], ["m", "path|host"]),
            (NET + wanted + ["-chardev", "socket,id=m,host=127.0.0.1,port=0,server=on,"
                             "wait=off,speed=9"], ["speed"]),
            (NET + wanted + MIRROR + MIRROR, ["m", "duplicate|exists|already|taken"]),
            (["-netdev", "vde,id=n"], ["vde", "tap"]),
            (["-netdev", "tap,id=n,vhost=on,ifname=tap-none"], ["vhost"]),
            (["-netdev", "tap,id=n,ifname=this-name-is-too-long"], ["this-name-is-too-long"]),
            (["-netdev", "tap,id=n,fd=999,script=no"], ["999|fd"]),
            (["-netdev", "user,id=n,speed=9"], ["speed"]),
            (NET + NET, ["n", "duplicate|exists|already|taken"])):
        refused(b, COLO + args, *words)


@case
def ports_and_sockets_taken(b):
    _, port = b.listen()
    refused(b, COLO + ["-incoming", "tcp:127.0.0.1:%d" % port], str(port), "in use")
    refused(b, COLO + ["-qmp", "tcp:127.0.0.1:%d,server=on,wait=off" % port], str(port),
            "in use")
    refused(b, COLO + ["-qmp", "unix:/nonexistent/qmp,server=on,wait=off"],
            "/nonexistent/qmp", "no such")
    refused(b, COLO + ["-mon", "chardev=none,mode=control"], "-mon", "none")
    refused(b, COLO + ["-pidfile", "/nonexistent/pid"], "/nonexistent/pid")


@case
def end_while_waiting_for_a_client(b):
    host = b.host("a", *COLO, *NET, "-chardev",
                  "socket,id=m,host=127.0.0.1,port=%d,server=on,wait=on" % b.port, "-object",
                  "filter-mirror,id=f,netdev=n,queue=tx,outdev=m", connect=False)
    time.sleep(0.7)
    os.kill(host.process.pid, signal.SIGTERM)
    host.ended(8)


def as_nobody(b):
    """Words before a command that runs it as a user without rights."""
    if os.geteuid() != 0:
        raise Skip("needs root to become another user")
    nobody = pwd.getpwnam("nobody")
    done = subprocess.run(["setpriv", "--reuid", str(nobody.pw_uid), "--regid",
                           str(nobody.pw_gid), "--clear-groups", b.program, "-version"],
                          capture_output=True)
    if done.returncode:
        raise Skip("nobody cannot run %s" % b.program)
    return ["setpriv", "--reuid", str(nobody.pw_uid), "--regid", str(nobody.pw_gid),
            "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]


@case
def no_right_to_tap(b):
    refused(b, COLO + ["-netdev", "tap,id=n,ifname=tap-colo-x,script=no,downscript=no"],
            "tap", "not permitted|permission", "root|CAP_NET_ADMIN|helper|fd=",
            before=as_nobody(b))


@case
def no_right_to_ptrace(b):
    """The kernel refuses ptrace to a process whose seccomp filter says so."""
    path = b.dir + "/no-ptrace.py"
    # BPF: ptrace(2), 101 on x86-64, fails with EPERM; so does process_vm_writev (311).
    with open(path, "w") as f:
        f.write('''
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
code = struct.pack("HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 101, 0x06, 0, 0, 0x50001,
                   0x06, 0, 0, 0x7fff0000)
buf = ctypes.create_string_buffer(code)
prog = struct.pack("HxxxxxxP", 4, ctypes.addressof(buf))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.create_string_buffer(prog)):
    sys.exit("prctl: " + os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
''')
    if os.uname().machine != "x86_64":
        raise Skip("the filter is made for x86-64")
    refused(b, COLO, "ptrace", "not permitted",
            "yama|ptrace_scope|CAP_SYS_PTRACE|seccomp|root",
            before=[sys.executable, path])


@case
def no_memory_for_the_guest(b):
    refused(b, COLO + ["-m", "8E"], "memfd|RAM|-m")


# 16 huge pages of 2 MiB, and who holds them: until its end, or for so many seconds.
HOLD = """
import ctypes, mmap, os, sys, time
fd = ctypes.CDLL(None).memfd_create(b"x", 4)
os.ftruncate(fd, 32 << 20)
m = mmap.mmap(fd, 32 << 20)
print("has them", flush=True)
time.sleep(float(sys.argv[1]))
"""


def holder(b, seconds):
    popen = subprocess.Popen([sys.executable, "-c", HOLD, str(seconds)], stdout=subprocess.PIPE,
                             text=True)
    b.closers.append(Ending(popen))
    assert popen.stdout.readline() == "has them\n"
    return popen


class Ending:
    def __init__(self, popen):
        self.popen = popen

    def close(self):
        self.popen.kill()
        self.popen.wait()
        self.popen.stdout.close()


HUGE = (*COLO, "-object", "memory-backend-memfd,id=ram0,size=32M,share=on,hugetlb=on,hugetlbsize=2M",
        "-machine", "pc,memory-backend=ram0")


@case
def huge_pages_of_a_side_that_just_died(b):
    """A service manager starts a killed side at once, while what is left of the old one still holds the
    only pages: the start waits for them."""
    with HugePages(20, skip=Skip):
        for _ in range(3):
            host = b.host("one", *HUGE)
            host.cmd("query-status")
            host.process.kill()
        host = b.host("two", *HUGE)
        host.cmd("quit")
        assert host.ended() == 0
        begin = time.monotonic()
        held = holder(b, 1.5)
        host = b.host("three", *HUGE)
        assert host.cmd("query-status")["running"]
        assert time.monotonic() - begin > 1.4 and held.wait(20) == 0
        has_words(host.output(), "waiting for 16 huge pages of 2048 KiB")


@case
def huge_pages_that_are_not_to_be_had(b):
    """In use by others for good: an error after a while. More than there are: at once."""
    with HugePages(20, skip=Skip):
        holder(b, 600)
        host = b.host("one", *HUGE, connect=False)
        assert host.ended(60) == 1
        has_words(host.output(), "16 huge pages of 2048 KiB", "4 are free", "nr_hugepages")
        host = b.host("two", *[w.replace("32M", "512M") for w in HUGE], "-m", "512", connect=False)
        assert host.ended(60) == 1
        has_words(host.output(), "256 huge pages of 2048 KiB", "nr_hugepages")
        assert "waiting" not in host.output()


if __name__ == "__main__":
    sys.exit(main())
