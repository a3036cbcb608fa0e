#!/usr/bin/env python3
# coloctl check finds what is wrong, with a remedy; coloctl bundle tells no secret.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import re
import threading

from colo_conf import *
from colo_qtest import *


@case
def both_hosts_are_examined(b):
    """Round trip, bandwidth, clocks and ports are measured; what differs is found."""
    vm = Vm(b)
    got, text = check(b, vm, "a", OK)
    assert got["the other host"][0] == "warn" and "--serve" in text, text
    assert got["kernel"][0] == got["PAGEMAP_SCAN"][0] == got["disk.root"][0] == "ok", text
    serving(b, vm, "b")
    got, text = check(b, vm, "a", OK)
    for what in ("same vm.conf", "same emulator", "same size of disk.root", "round trip",
                 "clocks", "bandwidth", "ports of the peer", "b: kernel", "b: disk.root",
                 "b: ports", "ports"):
        assert what in got and got[what][0] != "FAIL", "%s: %s" % (what, text)
    # The other image has another size, and one key file is open to all.
    os.truncate(b.dir + "/b.raw", 8 << 20)
    got, text = check(b, vm, "a", FAILED)
    assert got["same size of disk.root"][0] == "FAIL", text
    os.unlink(b.dir + "/b.raw")
    got, text = check(b, vm, "a", FAILED)
    assert got["b: disk.root"][0] == "FAIL" and "qemu-img create" in text, text


@case
def what_check_finds_here(b):
    key = b.dir + "/key"
    with open(key, "w") as f:
        f.write("k" * 32)
    os.chmod(key, 0o640)
    vm = Vm(b, key_file=key, arbiter="witness", witness="http://127.0.0.1:9")
    with open(vm.file, "a") as f:
        f.write("[net.lan]\ntap = no-such-tap\nmac = 52:54:00:00:00:01\n")
    with socket.socket() as s:
        base = vm.base
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", base + 999))
        s.listen()
        got, text = check(b, vm, "a", FAILED)
    for what in ("key-file", "witness", "net.lan", "ports"):
        assert got[what][0] == "FAIL", "%s: %s" % (what, text)
    assert text.count("remedy:") == sum(x[0] != "ok" for x in got.values()), text
    assert str(base + 999) in got["ports"][1], text


@case
def every_port_is_tried(b):
    """What this side would listen on in any role, one taken after the other: the loopback's, the
    heartbeat's, the metrics' too. Nothing is said of a port that it does not use."""
    vm = Vm(b, heartbeat="on", metrics="127.0.0.1:METRICS")
    metrics = vm.base + 900
    with open(vm.file) as f:
        text = f.read().replace("METRICS", str(metrics)).replace("a = 127.0.0.1", "a = 127.0.0.1, 127.0.0.5").replace(
            "b = 127.0.0.2", "b = 127.0.0.2, 127.0.0.6")
    with open(vm.file, "w") as f:
        f.write(text + "[net.lan]\nuser = restrict=on\nmac = 52:54:00:00:00:01\n")
    tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
    for kind, address, port in ((tcp, "127.0.0.1", 1), (tcp, "127.0.0.1", 3), (tcp, "127.0.0.1", 4),
                                (tcp, "127.0.0.1", 5), (udp, "127.0.0.1", 996),
                                (udp, "127.0.0.5", 996), (tcp, "127.0.0.1", 997),
                                (tcp, "127.0.0.1", 998), (tcp, "127.0.0.1", 999)):
        with socket.socket(socket.AF_INET, kind) as s:
            s.bind((address, vm.base + port))
            if kind == tcp:
                s.listen()
            got, out = check(b, vm, "a", FAILED)
        assert got["ports"][0] == "FAIL", (address, port, out)
        has_words(got["ports"][1], r"^%s port %d( \(UDP\))?: \S" % (address, vm.base + port))
    with socket.socket() as s:
        s.bind(("127.0.0.1", metrics))
        s.listen()
        got, out = check(b, vm, "a", FAILED)
    assert got["metrics"][0] == "FAIL" and got["ports"][0] == "ok", out
    with socket.socket(socket.AF_INET, udp) as s:
        s.bind(("127.0.0.1", vm.base + 997))
        got, out = check(b, vm, "a", OK)
    assert got["metrics"][0] == got["ports"][0] == "ok", out


@case
def links_of_the_heartbeat_are_tried(b):
    """Datagrams go there and back on each link; one that is not answered is found, and a stranger
    is not answered."""
    vm = Vm(b, disk=False, heartbeat="on")
    with open(vm.file) as f:
        good = f.read()
    with open(vm.file, "w") as f:
        f.write(good.replace("a = 127.0.0.1", "a = 127.0.0.1, 127.0.0.5").replace(
            "b = 127.0.0.2", "b = 127.0.0.2, 127.0.0.6"))
    serving(b, vm, "b")
    got, text = check(b, vm, "a", OK)
    assert got["heartbeat link 0"][0] == got["heartbeat link 1"][0] == "ok", text
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.7", 0))
        s.settimeout(1)
        s.sendto(b"coloctl check", ("127.0.0.2", vm.base + 996))
        try:
            raise AssertionError("a stranger has %r" % s.recv(100))
        except socket.timeout:
            pass
    # This side's second address is not the one that the other side knows.
    with open(vm.file) as f:
        text = f.read()
    with open(vm.file, "w") as f:
        f.write(text.replace("127.0.0.5", "127.0.0.8"))
    got, text = check(b, vm, "a", FAILED)
    assert got["heartbeat link 0"][0] == "ok" and got["heartbeat link 1"][0] == "FAIL", text
    has_words(got["heartbeat link 1"][1], "127.0.0.8 to 127.0.0.6 port %d" % (vm.base + 996),
              "no answer")


@case
def keys_and_certificates(b):
    """What encrypts and proves: modes, contents, and whether both hosts have the same."""
    credentials(b)
    for who in "ab":
        shutil.copytree(b.dir + "/pki", "%s/pki-%s" % (b.dir, who))
        with open(os.open("%s/key-%s" % (b.dir, who), os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
            f.write("k" * 32)
    vm = Vm(b, disk=False, tls_dir=b.dir + "/pki-%h", key_file=b.dir + "/key-%h")
    got, text = check(b, vm, "a", OK)
    assert got["tls-dir, client"][0] == got["tls-dir, server"][0] == got["key-file"][0] == "ok", text
    # A key of the heartbeat, and no heartbeat.
    assert got["heartbeat"][0] == "warn", text
    serving(b, vm, "b")
    got, text = check(b, vm, "a", OK)
    assert got["same key-file"][0] == got["same CA of tls-dir"][0] == "ok", text
    assert got["b: tls-dir, server"][0] == "ok" and "k" * 32 not in text, text
    with open(b.dir + "/key-b", "w") as f:
        f.write("j" * 32)
    os.unlink(b.dir + "/pki-b/client-key.pem")
    shutil.rmtree(b.dir + "/pki")
    shutil.rmtree(b.dir + "/pki-a")
    credentials(b)
    os.rename(b.dir + "/pki", b.dir + "/pki-a")
    os.chmod(b.dir + "/pki-a/server-key.pem", 0o644)
    got, text = check(b, vm, "a", FAILED)
    for what in ("same key-file", "same CA of tls-dir", "b: tls-dir, client", "tls-dir, server"):
        assert got[what][0] == "FAIL", "%s: %s" % (what, text)
    assert got["tls-dir, client"][0] == "ok", text
    has_words(got["tls-dir, server"][1], "server-key.pem", "600|others|mode")
    assert text.count("remedy:") == sum(x[0] != "ok" for x in got.values()), text


@case
def each_finding_has_a_remedy(b):
    """What can be provoked here, one after the other; none without a word of what to do."""
    vm = Vm(b)
    with open(vm.file) as f:
        good = f.read()

    def told(what, level, *words, **changes):
        text = good
        for old, new in changes.items():
            old = {"accel": "accel = tcg", "memory": "memory = 32"}.get(old, "port-base")
            text = text.replace(old, new + ("\nport-base" if old == "port-base" else ""), 1)
        with open(vm.file, "w") as f:
            f.write(text)
        got, out = check(b, vm, "a", FAILED if level == "FAIL" else OK)
        assert what in got and got[what][0] == level, "%s: %s" % (what, out)
        has_words(got[what][1], *words)
        at = out.splitlines().index("%-4s  %s: %s" % (level, what, got[what][1]))
        assert re.match(r"      remedy: \S", out.splitlines()[at + 1]), out

    told("memory", "FAIL", "available", memory="memory = 9999G")
    told("smp", "warn", "one", "CPU")
    told("cpu", "warn", "alike", accel="accel = tcg\ncpu = host")
    told("emulator", "FAIL", "/no/such cannot be run", accel="accel = tcg\nemulator = /no/such")
    told("machine", "FAIL", "pd, qemu64, 1: ", "unsupported", accel="accel = tcg\nmachine = pd")
    told("machine", "FAIL", "qemu65", accel="accel = tcg\ncpu = qemu65")
    told("machine", "FAIL", "2,maxcpus=1: ", "CPU", accel="accel = tcg\nsmp = 2,maxcpus=1")
    told("arbiter", "warn", "operator")
    told("arbiter", "FAIL", "without an address", x="arbiter = witness")
    told("fence-agent", "FAIL", "/no/agent", x="arbiter = fence\nfence-agent = /no/agent")
    told("fence-options", "FAIL", "No such",
         x="arbiter = fence\nfence-agent = /bin/true\nfence-options = /no/options")
    told("key-file", "FAIL", "No such", x="heartbeat = on\nkey-file = /no/key")
    told("key-file", "warn", "none", x="heartbeat = on")
    with open(os.open(b.dir + "/short", os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
        f.write("too short\n")
    told("key-file", "FAIL", "9 bytes", "16", x="heartbeat = on\nkey-file = %s/short" % b.dir)
    told("witness", "FAIL", "refused",
         x="arbiter = witness\nwitness = http://me:pass@127.0.0.1:9")
    told("tls-dir, client", "FAIL", "ca-cert.pem", x="tls-dir = /no/pki")
    with open(b.dir + "/a.raw.colo", "w"):
        told("disk.root", "warn", "between two")
    os.unlink(b.dir + "/a.raw.colo")
    with open(b.dir + "/a.raw", "r+b") as f:
        os.truncate(f.fileno(), 0)
    told("disk.root", "FAIL", "size")


@case
def check_beside_strangers(b):
    """A peer that answers rubbish, or the pair port of a VM that runs: no crash, a finding."""
    vm = Vm(b, disk=False)
    base = vm.base
    vm.run("b", "--role", "primary")
    vm.wait("b", "alone")
    got, text = check(b, vm, "a", OK)
    assert "qemu-colo" in got["the other host"][1] and "serves" in got["the other host"][1], text
    with socket.socket() as s:
        s.bind(("127.0.0.2", base + 995))
        s.listen()

        def answer():
            for reply in (b"rubbish\n", b'{"findings": [1, {"level": 99}, []]}\n', b"\0" * 9):
                c = s.accept()[0]
                c.recv(100)
                try:
                    c.sendall(reply)
                finally:
                    c.close()
        threading.Thread(target=answer, daemon=True).start()
        for _ in range(3):
            done = subprocess.run([tool(b), *vm.words("check", "a")], capture_output=True,
                                  text=True, timeout=120)
            assert done.returncode == FAILED, done


@case
def colours_and_bars_are_for_terminals(b):
    """On one that can show them, and not with NO_COLOR; an empty NO_COLOR is none."""
    import pty
    vm = Vm(b, disk=False)
    serving(b, vm, "b")

    def shown(**env):
        master, slave = pty.openpty()
        p = subprocess.Popen([tool(b), *vm.words("check", "a")], stdin=slave, stdout=slave,
                             stderr=slave, env=dict({k: v for k, v in os.environ.items()
                                                     if k not in ("NO_COLOR", "TERM")}, **env))
        os.close(slave)
        got = b""
        while True:
            try:
                got += os.read(master, 65536)
            except OSError:
                break
        os.close(master)
        assert p.wait(60) == OK and b"round trip" in got, got
        return got
    assert b"\033[32mok" in shown(TERM="xterm") and b"\033[32mok" in shown(TERM="xterm", NO_COLOR="")
    for env in (dict(TERM="xterm", NO_COLOR="1"), dict(TERM="dumb"), dict()):
        assert b"\033[3" not in shown(**env), env
    assert b"bandwidth" in shown(TERM="xterm").split(b"ok", 1)[0], "no bar"
    done = subprocess.run([tool(b), *vm.words("check", "a")], capture_output=True, timeout=120,
                          env=dict(os.environ, TERM="xterm"))
    assert done.returncode == OK and b"\033" not in done.stdout + done.stderr and not done.stderr, done


@case
def only_the_peer_is_served(b):
    vm = Vm(b)
    serving(b, vm, "b")
    base = vm.base
    with socket.socket() as s:
        s.bind(("127.0.0.3", 0))
        s.connect(("127.0.0.2", base + 995))
        s.settimeout(20)
        try:
            s.sendall(b"facts\n")
            got = s.recv(100)
        except ConnectionError:
            got = b""
        assert got == b"", got


@case
def secrets_of_every_place_stay_here(b):
    """A word in each place that may hold one: none is in the archive, in the log or in an
    answer; half of a password is none either."""
    import tarfile
    places = {}

    def plant(place, form="%s"):
        places[place] = "s3cr%d" % b.rng.randrange(1 << 60)
        return form % places[place]

    credentials(b)
    for name in ("key", "fence"):
        with open(os.open("%s/%s" % (b.dir, name), os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
            f.write(plant("file " + name, "passwd=%s and more of it\n"))
    for name in ("client", "server"):
        with open("%s/pki/%s-key.pem" % (b.dir, name)) as f:
            places["key of the " + name] = f.read().splitlines()[1][:40]
    vm = Vm(b, disk=False, tls_dir=b.dir + "/pki", key_file=b.dir + "/key", arbiter="witness",
            witness="http://%s:%s/%s@%s@127.0.0.1:9;http://%s@127.0.0.1:9" % (
                plant("user"), plant("password"), plant("after a slash"), plant("after an @"),
                plant("second user")),
            colo_options="witness-key=" + plant("colo-options"))
    with open(vm.file) as f:
        text = f.read().replace("args = ", "# %s\nargs = -object secret,id=s,data=%s " % (
            plant("comment"), plant("args")))
    with open(vm.file, "w") as f:
        f.write(text + "[net.lan]\nuser = hostname=%s\nmac = 52:54:00:00:00:01\n"
                % plant("user networking"))
    p = vm.run("a", "--role", "primary")
    vm.said("a", "-nodefaults", 20)
    time.sleep(1)
    # The arguments of the log's time may be others than the file's of today.
    with open(vm.file) as f:
        text = f.read()
    with open(vm.file, "w") as f:
        f.write(re.sub("(?m)^args = .*", "args = -no-user-config", text))
    path = b.dir + "/x.tar.gz"
    vm.ctl("bundle", "a", "-o", path)
    with tarfile.open(path) as tar:
        contents = {m.name: tar.extractfile(m).read().decode(errors="replace")
                    for m in tar.getmembers()}
    assert any(n.endswith("state/log") and "-nodefaults" in t for n, t in contents.items())
    contents["output of run"] = p.output()
    contents["check"] = check(b, vm, "a", FAILED)[1]
    for place, secret in places.items():
        for name, text in contents.items():
            assert secret not in text, "%s is in %s: %s" % (place, name, text)


@case
def bundle_has_no_secret(b):
    import tarfile
    secret = "hunter%d" % b.rng.randrange(1 << 60)
    vm = Vm(b, disk=False, witness="http://root:%s@127.0.0.1:9" % secret, arbiter="witness",
            fence_options="/x/%s" % secret)
    with open(vm.file) as f:
        text = f.read().replace("args = ", "# %s\nargs = -object secret,id=s,data=%s " % (
            secret, secret)).replace("fence-options", "# fence-options")
    text = text.replace("arbiter = witness\n", "").replace("witness = ", "# witness = ")
    with open(vm.file, "w") as f:
        f.write(text)
    vm.run("a", "--role", "primary")
    vm.wait("a", "alone")
    path = b.dir + "/x.tar.gz"
    has_words(vm.ctl("bundle", "a", "-o", path), "x.tar.gz")
    assert os.stat(path).st_mode & 0o777 == 0o600
    with tarfile.open(path) as tar:
        names = [m.name.split("/", 1)[1] for m in tar.getmembers()]
        for name in ("vm.conf", "state/role", "state/log", "versions.txt", "emulator.txt",
                     "qmp/query-colo-status.json", "host/proc-version", "run-state.txt"):
            assert name in names, (name, names)
        contents = {m.name.split("/", 1)[1]: tar.extractfile(m).read().decode()
                    for m in tar.getmembers()}
    for name, text in contents.items():
        assert secret not in text, "%s: %s" % (name, text)
        # Names of any length are whole.
        assert "host/sys-devices-system-clocksource-clocksource0-current_clocksource" in names
    assert json.loads(contents["qmp/query-colo-status.json"])["state"] == "alone"
    has_words(contents["vm.conf"], "name = vm1", r"args = \(left out\)")
    has_words(contents["state/log"], "starts as primary", "-machine pc")
    has_words(vm.ctl("bundle", "a", "-o", path, expect=FAILED), "exists")
    # Without a monitor, too.
    vm.kill_tree("a")
    vm.ctl("bundle", "a", "-o", b.dir + "/y.tar.gz")


@case
def messages_that_quote_a_secret(b):
    """An emulator that names one value of an argument in its complaint, and an image whose
    backing file's address has a password in it."""
    import tarfile
    secret, other = ["hunter%d" % b.rng.randrange(1 << 60) for _ in range(2)]
    vm = Vm(b)
    subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b",
                    "nbd://me:%s@192.0.2.9/x" % other, b.dir + "/a.raw", "4M"], check=True)
    with open(vm.file) as f:
        text = f.read().replace("name = vm1", "name = " + "n" * 60).replace(
            "args = ", "args = -object secret,id=s,data=x,format=%s " % secret)
    with open(vm.file, "w") as f:
        f.write(text)
    p = vm.run("a", "--role", "primary", "--once")
    assert p.wait(60) != 0
    assert secret in p.output(), p.output()
    path = b.dir + "/x.tar.gz"
    vm.ctl("bundle", "a", "-o", path)
    with tarfile.open(path) as tar:
        contents = {m.name: tar.extractfile(m).read().decode() for m in tar.getmembers()}
    assert len(contents) > 10 and len({n.split("/")[0] for n in contents}) == 1, list(contents)
    for name, text in contents.items():
        assert secret not in text and other not in text, "%s: %s" % (name, text)
    said = [text for name, text in contents.items() if name.endswith("state/log")][0]
    assert "left out" in said, said


if __name__ == "__main__":
    sys.exit(main())
