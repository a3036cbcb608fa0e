#!/usr/bin/env python3
# What vm.conf says is what runs: several network cards, channels, encryption.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import re

from colo_conf import *
from colo_qtest import *
from e2e_proc import QMP

CARDS = "[net.lan]\nuser = \nmac = 52:54:00:00:00:01\n" \
        "[net.dmz]\nuser = restrict=on\nmac = 52:54:00:00:00:02\n"


def monitor(b, who):
    return QMP("%s/%s/run/qmp.sock" % (b.dir, who))


def objects(q):
    return {o["name"] for o in q.cmd("qom-list", {"path": "/objects"})
            if o["type"].startswith("child<")}


def kill_primary(vm, dead, other):
    vm.kill_tree(dead)
    vm.wait(other, "lost")
    vm.ctl("failover", other)
    vm.run(dead)
    vm.wait(other, "protected", 60, role="primary")
    vm.wait(dead, "protected", 60, role="secondary")


@case
def two_cards(b):
    """Each has comparison and filters of its own, also after a takeover and on the way back."""
    vm = Vm(b)
    with open(vm.file, "a") as f:
        f.write(CARDS)
    vm.run("a")
    vm.run("b")
    primary, secondary = "a", "b"
    for turn in range(2):
        s = vm.wait(primary, "protected", 90, role="primary")
        vm.wait(secondary, "protected", 90, role="secondary")
        compares = [p["id"] for p in s["proxy"] if p["type"] == "colo-compare"]
        assert sorted(compares) == ["comp0", "comp0-1"], s["proxy"]
        q = monitor(b, primary)
        names = objects(q)
        for card in ("", "-1"):
            assert {n + card for n in ("m0", "redire0", "redire1", "comp0")} <= names, names
        there = {c["label"]: c["filename"] for c in q.cmd("query-chardev")}
        for port, name in ((3, "mirror0"), (4, "compare1"), (13, "mirror0-1"),
                           (14, "compare1-1")):
            # Its twin is connected to the port of this card.
            assert re.search(r":%d\b" % (vm.base + port), there[name]) and \
                not there[name].startswith("disconnected"), (name, there)
        q.close()
        q = monitor(b, secondary)
        names = objects(q)
        assert turn or {"f1", "f2", "rew0", "f1-1", "f2-1", "rew0-1"} <= names, names
        q.close()
        vm.ctl("checkpoint", primary)
        if turn == 0:
            kill_primary(vm, primary, secondary)
            primary, secondary = secondary, primary


@case
def settings_are_given(b):
    """Before each protection, to either side; what coloctl is not told it does not touch."""
    vm = Vm(b, channels=3, compression="zstd", xbzrle="on", max_bandwidth="200M", max_pause=50,
            checkpoint_delay=700, mode="adaptive", buffered_interval=25)
    vm.run("a")
    vm.run("b")
    primary, secondary = "a", "b"
    for turn in range(2):
        s = vm.wait(primary, "protected", 90, role="primary")["colo"]
        t = s["transfer"]
        assert t["channels"] == 3 and t["compression"] == "zstd" and not t["tls"], t
        assert s["protect-mode"] == "adaptive" and s["buffered-interval"] == 25, s
        q = monitor(b, primary)
        got = q.cmd("query-migrate-parameters")
        want = {"x-checkpoint-delay": 700, "x-max-pause": 50, "max-bandwidth": 200 << 20,
                "multifd-channels": 3, "multifd-compression": "zstd"}
        assert {k: got[k] for k in want} == want, got
        assert {"capability": "xbzrle", "state": True} in q.cmd("query-migrate-capabilities")
        q.close()
        if turn == 0:
            kill_primary(vm, primary, secondary)
            primary, secondary = secondary, primary


@case
def encrypted_with_two_lines(b):
    """tls-dir: memory, disks and both streams of each card, before and after a takeover; a side
    with another CA gets nothing."""
    credentials(b)
    pki = b.dir + "/pki"
    # The certificate of both hosts is one here, for both addresses.
    with open(pki + "/server.info", "a") as f:
        f.write("ip_address=127.0.0.2\n")
    subprocess.run(["certtool", "--generate-certificate", "--template", pki + "/server.info",
                    "--load-privkey", pki + "/server-key.pem", "--load-ca-certificate",
                    pki + "/ca-cert.pem", "--load-ca-privkey", pki + "/ca-key.pem", "--outfile",
                    pki + "/server-cert.pem"], check=True, capture_output=True)
    for who in "ab":
        shutil.copytree(pki, "%s/pki-%s" % (b.dir, who))
    shutil.rmtree(pki)
    vm = Vm(b, tls_dir=b.dir + "/pki-%h", channels=2, compression="zstd",
            auto_sync="full")
    with open(vm.file, "a") as f:
        f.write(CARDS)
    vm.run("a")
    vm.run("b")
    s = vm.wait("a", "protected", 90, role="primary")
    vm.wait("b", "protected", 90, role="secondary")
    assert s["colo"]["transfer"]["tls"] is True, s["colo"]["transfer"]
    # The disk's server tells nothing to one who does not start TLS.
    done = subprocess.run(["nbdinfo", "nbd://127.0.0.2:%d/parent0" % (vm.base + 999)],
                          capture_output=True, text=True, timeout=30)
    assert done.returncode != 0 and "without TLS" in done.stdout, done
    # So do the streams.
    kill_primary(vm, "a", "b")
    s = vm.wait("b", "protected", 90, role="primary")
    assert s["colo"]["transfer"]["tls"] is True, s["colo"]["transfer"]
    assert s["colo"]["pair"]["resync-total"] >= 4 << 20, s["colo"]["pair"]
    q = monitor(b, "b")
    nodes = [n["node-name"] for n in q.cmd("query-named-block-nodes")]
    assert not any(n.endswith("-target") for n in nodes), nodes
    q.close()
    # Certificates of somebody else's.
    vm.kill_tree("a")
    vm.wait("b", "lost")
    vm.ctl("failover", "b")
    shutil.rmtree(b.dir + "/pki-a")
    credentials(b)
    os.rename(pki, b.dir + "/pki-a")
    vm.run("a")
    end = time.monotonic() + 60
    while True:
        s = vm.wait("b", "alone")
        if s["colo"]["pair"]["error"]:
            break
        within(end, lambda: s)
        time.sleep(0.2)
    assert s["serves"], s
    has_words(s["colo"]["pair"]["error"], "TLS|certificate")


if __name__ == "__main__":
    sys.exit(main())
