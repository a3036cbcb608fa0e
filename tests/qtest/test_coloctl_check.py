#!/usr/bin/env python3
# coloctl check finds what is wrong, with a remedy; coloctl bundle tells no secret.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

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
    assert json.loads(contents["qmp/query-colo-status.json"])["state"] == "alone"
    has_words(contents["vm.conf"], "name = vm1", r"args = \(left out\)")
    has_words(contents["state/log"], "starts as primary", "-machine pc")
    has_words(vm.ctl("bundle", "a", "-o", path, expect=FAILED), "exists")
    # Without a monitor, too.
    vm.kill_tree("a")
    vm.ctl("bundle", "a", "-o", b.dir + "/y.tar.gz")


if __name__ == "__main__":
    sys.exit(main())
