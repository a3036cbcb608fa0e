# The witness on a bad day, and behind TLS.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

from colo_conf import credentials
from colo_etcd import Etcd
from colo_qtest import *


def words(url, more=""):
    return ("-colo", "arbiter=witness,witness=%s,witness-lease=2,witness-key=k%s" % (url, more))


def record(etcd):
    text = etcd.ctl("get", "k", "--print-value-only").stdout
    return json.loads(text) if text.strip() else None


def refused(b, url, more, *want):
    done = subprocess.run([b.program, *MACHINE, "-S", *words(url, more)], capture_output=True,
                          text=True, timeout=100, stdin=subprocess.DEVNULL)
    assert done.returncode == 1, done
    has_words(done.stderr, "witness", *want)


@case
def spoken_to_over_tls(b):
    """Both prove who they are; a witness of another CA decides nothing, nor does one for a side
    without a certificate."""
    credentials(b, "tls_www_client\n")  # etcd's gateway is a client of itself
    good = b.dir + "/pki"
    os.rename(good, b.dir + "/good")
    good = b.dir + "/good"
    credentials(b)
    other = b.dir + "/pki"
    ca, mine = ",witness-cacert=%s/ca-cert.pem", \
        ",witness-cert=%s/client-cert.pem,witness-cert-key=%s/client-key.pem"
    with Etcd(b, tls=good) as etcd:
        refused(b, etcd.url, ca % other + mine % (good, good), "certificate")
        refused(b, etcd.url, ca % good, "start")
        refused(b, etcd.url, ca % good + ",witness-cert=%s/client-cert.pem" % good, "together")
        refused(b, etcd.url.replace("https", "http"), "", "start")
        assert record(etcd) is None
        line = words(etcd.url, ca % good + mine % (good, good))
        primary, secondary = b.pair(*line)
        assert record(etcd)["state"] == "protected"
        primary.process.kill()
        secondary.wait_state("alone")
        assert record(etcd)["state"] == "alone"


@case
def without_room_it_decides_nothing(b):
    """Its disk is full: nobody serves, the status says why, and it decides when there is room.
    Who serves alone by then goes on, as a lease is renewed without writing."""
    with Etcd(b, more=("--quota-backend-bytes", "2000000")) as etcd:
        primary, secondary = b.pair(*words(etcd.url))

        def fill():
            for i in range(100):
                if etcd.ctl("put", "junk", "x" * 120000, check=False).returncode:
                    return
            raise AssertionError("it does not get full")

        def make_room():
            etcd.ctl("del", "junk", "--prefix", check=False)
            head = json.loads(etcd.ctl("get", "k", "-w", "json").stdout)["header"]["revision"]
            etcd.ctl("compact", str(head), check=False)
            etcd.ctl("defrag")
            etcd.ctl("alarm", "disarm")
        fill()
        assert primary.status()["state"] == secondary.status()["state"] == "protected"
        primary.process.kill()
        secondary.wait_state("lost")
        secondary.wait("the reason", lambda: "space exceeded" in
                       secondary.status()["arbiter"].get("error", ""))
        assert secondary.status()["state"] == "lost"
        make_room()
        secondary.wait_state("alone")
        fill()
        time.sleep(3)  # longer than a lease
        secondary.wait("its voice", lambda: secondary.status()["arbiter"]["lease-left"] > 0)
        assert secondary.status()["state"] == "alone"


@case
def two_clusters_in_one_list(b):
    """An answer of another etcd than the one before is none: each would have an owner of its own."""
    with Etcd(b) as one, Etcd(b, "two") as two:
        host = b.primary(*words(one.url + ";" + two.url), *b.rom)
        assert record(one)["state"] == "alone"
        one.stop()
        host.wait("its silence", lambda: host.status()["arbiter"]["lease-left"] == 0)
        time.sleep(3)
        a = host.status()["arbiter"]
        assert record(two) is None, "it owns the guest there as well"
        assert not a["reachable"] and a["lease-left"] == 0, a
        one.start()
        host.wait("its voice", lambda: host.status()["arbiter"]["lease-left"] > 0)
        assert record(one)["state"] == "alone" and record(two) is None
        # Made anew at its address it is another cluster, but so is then every one of its list.
        host.cmd("quit")
        one.stop()
        two.stop()
    with Etcd(b, "old") as old:
        host = b.host("again", *words(old.url), *b.rom)
        old.stop()
        old.command = [x.replace("/old", "/new") for x in old.command]
        old.command[old.command.index("--initial-cluster-token") + 1] = "new"
        old.start()
        host.wait("the key", lambda: record(old))
        host.wait("its voice", lambda: host.status()["arbiter"]["lease-left"] > 0)


if __name__ == "__main__":
    sys.exit(main())
