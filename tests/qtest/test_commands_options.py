# The command table: objects, options of netdevs, chardevs and block drivers.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

from colo_commands import *
from colo_qtest import *


# --- Objects ---

def object_line(name):
    def check(t):
        wanted = members_of(schema_of(t), "object-add", "qom-type", name)
        words = note_words("Objects and their properties", name)
        if not name.endswith(("dump", "replay")):
            assert wanted <= words, "the table lacks %s" % sorted(wanted - words)
        sample = {"filter-mirror": {"outdev": "null9"}, "filter-redirector": {"indev": "null9"},
                  "filter-buffer": {"interval": 5}, "filter-rewriter": {},
                  "iothread": {"poll-max-ns": 3},
                  "filter-dump": {"file": t.bed.dir + "/dump"}}.get(name)
        if sample is None:
            return
        for who, host in t.hosts.items():
            host.cmd("chardev-add", {"id": "null9", "backend": socket_chardev(
                "%s/%s-%s" % (t.bed.dir, name, who), server=True, wait=False)})
        net = {} if name == "iothread" else {"netdev": "hn0"}
        t.equal("object-add", {"qom-type": name, "id": "o9", **net, **sample})
        for p in sorted(wanted | {"type", "nope"}):
            if name != "filter-dump":
                t.equal("qom-get", {"path": "/objects/o9", "property": p})
        t.equal("object-del", {"id": "o9"})
        t.equal("chardev-remove", {"id": "null9"})
    return check


for object_name in ("filter-mirror", "filter-redirector", "filter-rewriter", "filter-buffer",
                    "iothread", "filter-dump", "filter-replay"):
    line("Objects and their properties", object_name)(object_line(object_name))


@line("Objects and their properties", "colo-compare")
def _(t):
    """Stock 7.2 wants it on its command line, where it is asked for the same things."""
    wanted = members_of(schema_of(t), "object-add", "qom-type", "colo-compare")
    words = note_words("Objects and their properties", "colo-compare")
    assert wanted <= words, wanted - words
    got = {}
    for name, program in (("co", None), ("cs", stock_program)):
        d = t.bed.dir
        host = t.bed.host(name, *[x for i in "abc" for x in (
            "-chardev", "socket,id=%s,path=%s/%s-%s,server=on,wait=off" % (i, d, i, name))],
            "-object", "iothread,id=io", "-object", "colo-compare,id=c,primary_in=a,"
            "secondary_in=b,outdev=c,iothread=io,compare_timeout=1234,max_queue_size=77,"
            "expired_scan_cycle=555", program=program)
        got[name] = [Twins.ask(host, "qom-get", {"path": "/objects/c", "property": p})
                     for p in sorted(wanted - {"iothread"}) + ["nope"]]
        got[name].append(pairs(host.cmd("qom-list", {"path": "/objects/c"})))
        host.close()
    assert got["co"] == got["cs"], got


# --- Options ---

SAMPLES = {"fd": "0", "hostfwd": [{"str": "tcp:127.0.0.1:0-:22"}], "guestfwd": [{"str": "x"}],
           "dnssearch": [{"str": "x"}], "restrict": True, "ipv4": True, "ipv6": False,
           "net": "10.0.2.0/24", "host": "10.0.2.2", "dhcpstart": "10.0.2.15",
           "dns": "10.0.2.3", "sndbuf": 0, "vhost": False, "vhostforce": False, "queues": 2,
           "poll-us": 5, "vnet_hdr": False, "ipv6-prefixlen": 64, "script": "no",
           "downscript": "no"}


def options_line(what):
    family, name = what.split()

    def done(t):
        """Every option that stock has is on a line; none on this one is unknown to us."""
        schema = schema_of(t)
        if family == "chardev":
            arguments = schema[schema["chardev-add"]["arg-type"]]["members"]
            backend = next(m["type"] for m in arguments if m["name"] == "backend")
            wrapper = next(v["type"] for v in schema[backend]["variants"] if v["case"] == name)
            wanted = {m["name"] for m in
                      schema[schema[wrapper]["members"][0]["type"]]["members"]}
        else:
            command, tag = {"netdev": ("netdev_add", "type"),
                            "block": ("blockdev-add", "driver")}[family]
            wanted = members_of(schema, command, tag, name)
        words = note_words("Options of netdevs, chardevs and block drivers", what)
        assert wanted <= words, "the table lacks %s" % sorted(wanted - words)
        rows = {c: note for c, _, note in table()["Options of netdevs, chardevs and block drivers"]}
        mine = set(rows[what].replace(",", " ").replace(";", " ").split()) & wanted
        for option in sorted(mine):
            error = try_option(t.ours, family, name, option)
            for bad in ("unexpected", "Invalid parameter '%s'" % option, "cannot be replicated",
                        "not supported"):
                assert bad not in error, (option, error)

    def refused(t):
        rows = {c: note for c, _, note in table()["Options of netdevs, chardevs and block drivers"]}
        for option in rows[what + " (2)"].replace(",", " ").split():
            error = try_option(t.ours, family, name, option)
            assert option in error, "%s %s: %s" % (what, option, error or "was taken")
    return done, refused


def try_option(host, family, name, option):
    """The error of ours when @option is given, or ""."""
    value = SAMPLES.get(option, "x")
    if family == "netdev":
        command, arguments = "netdev_add", {"type": name, "id": "try", option: value}
    elif family == "block":
        value = True if option == "rewrite-corrupted" else value
        base = {"server": {"type": "unix", "path": "/nonexistent/x"}} if name == "nbd" else {}
        command, arguments = "blockdev-add", {"driver": name, "node-name": "try", **base,
                                              option: value}
    else:
        value = True if option in ("telnet", "tn3270", "websocket", "logappend", "wait",
                                   "server", "nodelay") else value
        data = {"addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}},
                "server": True, "wait": False}
        if option != "addr":
            data[option] = value
        command, arguments = "chardev-add", {"id": "try", "backend": {"type": name,
                                                                      "data": data}}
    ok, said = Twins.ask(host, command, arguments)
    undo = {"netdev_add": ("netdev_del", "id"), "blockdev-add": ("blockdev-del", "node-name"),
            "chardev-add": ("chardev-remove", "id")}[command]
    if ok:
        host.cmd(undo[0], {undo[1]: "try"})
    return "" if ok else said[1]


for options_what in ("netdev tap", "netdev bridge", "netdev user", "netdev socket",
                     "netdev stream", "chardev socket", "block quorum", "block replication",
                     "block nbd"):
    for check, cell in zip(options_line(options_what), (options_what, options_what + " (2)")):
        if cell.endswith("2)") and not [c for c, _, _ in table()[
                "Options of netdevs, chardevs and block drivers"] if c == cell]:
            continue
        line("Options of netdevs, chardevs and block drivers", cell)(check)


@line("Options of netdevs, chardevs and block drivers", "netdev, other types")
def _(b):
    for kind_of in ("l2tpv3,src=::1,id=n", "vde,id=n", "hubport,hubid=0,id=n"):
        has_words(refuses(b, "-netdev", kind_of), kind_of.split(",")[0], "cannot be replicated")


@case
def differences_are_seen(b):
    differences_are_needed()


if __name__ == "__main__":
    sys.exit(main())
