# The NBD exports of a secondary, by the clients that people have.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

from colo_qtest import *


def tool(*command, fails=False):
    if not any(os.access(d + "/" + command[0], os.X_OK) for d in ("/usr/bin", "/bin")):
        raise Skip("%s is not installed" % command[0])
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode != 0) == fails, done
    return done.stdout + done.stderr


def export(b, writable, mib=2):
    image = b.image("d.raw", mib)
    host = b.host("host", "-colo", "checkpoint-events=on", "-drive",
                  "if=none,id=disk0,driver=raw,file.filename=" + image)
    host.cmd("nbd-server-start", {"addr": {"type": "inet", "data": {
        "host": "127.0.0.1", "port": str(b.port)}}})
    host.cmd("nbd-server-add", {"device": "disk0", "writable": writable})
    return host, image, "nbd://127.0.0.1:%d/disk0" % b.port


@case
def info_and_copy(b):
    host, image, uri = export(b, True)
    info = json.loads(tool("nbdinfo", "--json", uri))["exports"][0]
    assert info["export-size"] == 2 << 20 and not info["is_read_only"], info
    assert json.loads(tool("nbdinfo", "--json", "--list", uri))["exports"][0][
        "export-name"] == "disk0"
    data = os.urandom(2 << 20)
    with open(b.dir + "/in", "wb") as f:
        f.write(data)
    tool("nbdcopy", "--flush", b.dir + "/in", uri)
    tool("nbdcopy", uri, b.dir + "/out")
    with open(b.dir + "/out", "rb") as f:
        assert f.read() == data, "what was written is not what is read"
    with open(image, "rb") as f:
        assert f.read() == data, "the image does not hold what was written and flushed"


@case
def qemu_io_patterns(b):
    _, _, uri = export(b, True)
    text = tool("qemu-io", "-f", "raw", "-c", "write -P 7 4k 64k", "-c", "write -z 8k 4k",
                "-c", "discard 16k 4k", "-c", "flush", "-c", "read -P 7 4k 4k",
                "-c", "read -P 0 8k 4k", "-c", "read -P 7 20k 48k", uri)
    assert "failed" not in text, text
    text = tool("qemu-io", "-f", "raw", "-c", "read -P 9 4k 4k", uri, fails=True)
    assert "verification failed" in text, text


@case
def read_only_unless_writable(b):
    _, image, uri = export(b, False)
    assert json.loads(tool("nbdinfo", "--json", uri))["exports"][0]["is_read_only"]
    tool("qemu-io", "-f", "raw", "-c", "write -P 7 0 4k", uri, fails=True)
    with open(image, "rb") as f:
        assert not any(f.read(4096)), "a read-only export was written to"


@case
def wrong_names_and_nonsense(b):
    host, _, uri = export(b, True)
    has_words(tool("nbdinfo", uri + "x", fails=True), "disk0x|export|no such")
    has_words(host.error("nbd-server-start", {"addr": {"type": "inet", "data": {
        "host": "127.0.0.1", "port": "0"}}}), "already")
    has_words(host.error("nbd-server-add", {"device": "disk0"}), "disk0")
    has_words(host.error("nbd-server-add", {"device": "none"}), "none")
    for data in (b"\0" * 64, b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 5000):
        s = b.dial()
        s.settimeout(5)
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            while s.recv(4096):
                pass
        except OSError:
            pass
    tool("nbdinfo", uri)
    host.cmd("nbd-server-stop")
    tool("nbdinfo", uri, fails=True)
    has_words(host.error("nbd-server-stop"), "not running")


def answer(host, name, arguments=None):
    """What a command says, in a form that two programs' answers can be compared in."""
    try:
        return json.dumps(host.cmd(name, arguments), sort_keys=True)
    except QMPError as e:
        return "error: %s" % e


@case
def exports_answer_as_stock(b):
    """The same commands to us and to the emulator alone: the same answers, the same events."""
    image = b.image("d.raw", 2)
    hosts = {}
    for name, extra in (("stock", []), ("ours", ["-colo", "checkpoint-events=on"])):
        hosts[name] = b.host(name, *extra, "-blockdev",
                             "driver=raw,node-name=disk0,read-only=on,file.driver=file,"
                             "file.filename=" + image)
    nbd = {"type": "nbd", "node-name": "disk0"}
    script = [
        ("query-block-exports", None),
        ("nbd-server-stop", None),
        ("nbd-server-add", {"device": "disk0"}),
        ("block-export-add", dict(nbd, id="e")),
        ("START", None),
        ("START", None),
        ("block-export-add", dict(nbd, id="e")),
        ("block-export-add", dict(nbd, id="e")),
        ("block-export-add", dict(nbd, id="f")),
        ("block-export-add", dict(nbd, id="f", name="second", description="a disk")),
        ("block-export-add", dict(nbd, id="g", name="third", writable=True)),
        ("block-export-add", {"type": "nbd", "id": "h", "node-name": "none"}),
        ("block-export-add", {"type": "nbd", "id": "h"}),
        ("block-export-add", dict(nbd, id="h", name="x" * 5000)),
        ("nbd-server-add", {"device": "disk0", "name": "second"}),
        ("nbd-server-add", {"device": "none"}),
        ("nbd-server-add", {"device": "disk0", "name": "fourth"}),
        ("query-block-exports", None),
        ("block-export-del", {"id": "none"}),
        ("nbd-server-remove", {"name": "none"}),
        ("CONNECT", "second"),
        ("block-export-del", {"id": "f"}),
        ("nbd-server-remove", {"name": "f", "mode": "safe"}),
        ("block-export-del", {"id": "f", "mode": "hard"}),
        ("block-export-del", {"id": "f", "mode": "nonsense"}),
        ("nbd-server-remove", {"name": "fourth"}),
        ("nbd-server-stop", None),
        ("query-block-exports", None),
    ]
    got = {}
    for name, host in hosts.items():
        port, clients, said = free_port(), [], []
        for command, arguments in script:
            if command == "START":
                command, arguments = "nbd-server-start", {"addr": {"type": "inet", "data": {
                    "host": "127.0.0.1", "port": str(port)}}}
            if command == "CONNECT":
                s = b.dial(port)
                s.sendall(struct_go(arguments))
                clients.append(s)
                wait_reply(s)
                continue
            text = "%s %s: %s" % (command, arguments, answer(host, command, arguments))
            said.append(text.replace(str(port), "PORT").replace("x" * 5000, "XX"))
        deleted = sorted(e["data"]["id"] for e in host.events("BLOCK_EXPORT_DELETED"))
        got[name] = said + ["events %s" % deleted]
    different = [(s, o) for s, o in zip(got["stock"], got["ours"]) if s != o]
    assert not different, "\n".join("stock %s\nours  %s" % d for d in different)


def struct_go(name):
    data = len(name).to_bytes(4, "big") + name.encode() + b"\0\0"
    return b"\0\0\0\3IHAVEOPT" + (7).to_bytes(4, "big") + len(data).to_bytes(4, "big") + data


def wait_reply(s):
    """Until the server's ACK to an option."""
    data = b""
    s.settimeout(5)
    while (1).to_bytes(4, "big") + b"\0\0\0\0" not in data[18:]:
        more = s.recv(4096)
        assert more, "the server hung up: %r" % data
        data += more


@case
def tls(b):
    """Credentials by object-add; clients with and without them; in use they stay."""
    pki = b.dir + "/pki"
    os.mkdir(pki)
    with open(pki + "/ca.tmpl", "w") as f:
        f.write("cn = test CA\nca\ncert_signing_key\nexpiration_days = 9\n")
    tool("certtool", "--generate-privkey", "--key-type=ecdsa", "--outfile", pki + "/ca-key.pem")
    tool("certtool", "--generate-self-signed", "--load-privkey", pki + "/ca-key.pem",
         "--template", pki + "/ca.tmpl", "--outfile", pki + "/ca-cert.pem")
    for role in "server", "client":
        with open(pki + "/cert.tmpl", "w") as f:
            f.write("cn = %s\ndns_name = localhost\ntls_www_%s\nsigning_key\n"
                    "expiration_days = 9\n" % (role, role))
        tool("certtool", "--generate-privkey", "--key-type=ecdsa", "--outfile",
             "%s/%s-key.pem" % (pki, role))
        tool("certtool", "--generate-certificate", "--load-ca-certificate", pki + "/ca-cert.pem",
             "--load-ca-privkey", pki + "/ca-key.pem", "--load-privkey",
             "%s/%s-key.pem" % (pki, role), "--template", pki + "/cert.tmpl", "--outfile",
             "%s/%s-cert.pem" % (pki, role))
    image = b.image("d.raw", 2)
    addr = {"type": "inet", "data": {"host": "127.0.0.1", "port": str(b.port)}}
    host = b.host("host", "-colo", "checkpoint-events=on", "-object",
                  "tls-creds-x509,id=tls0,endpoint=server,dir=" + pki, "-drive",
                  "if=none,id=disk0,driver=raw,file.filename=" + image)
    has_words(host.error("nbd-server-start", {"addr": addr, "tls-creds": "none"}), "none")
    has_words(host.error("nbd-server-start", {"addr": addr, "tls-creds": "tls0",
                                              "tls-authz": "who"}), "tls-authz")
    host.cmd("nbd-server-start", {"addr": addr, "tls-creds": "tls0"})
    host.cmd("nbd-server-add", {"device": "disk0"})
    tool("nbdinfo", "nbd://localhost:%d/disk0" % b.port, fails=True)
    tool("nbdinfo", "nbds://localhost:%d/disk0?tls-certificates=%s" % (b.port, pki))
    has_words(host.error("object-del", {"id": "tls0"}), "in use")
    # Another one is a client, with credentials made at run time.
    client = b.host("client", "-colo", "checkpoint-events=on")
    node = {"driver": "nbd", "node-name": "n", "export": "disk0", "read-only": True,
            "server": {"type": "inet", "host": "localhost", "port": str(b.port)}}
    client.error("blockdev-add", node)
    has_words(client.error("blockdev-add", dict(node, **{"tls-creds": "tls1"})), "tls1")
    has_words(client.error("object-add", {"qom-type": "tls-creds-x509", "id": "tls1",
                                          "endpoint": "client", "dir": b.dir}), "ca-cert.pem")
    client.cmd("object-add", {"qom-type": "tls-creds-x509", "id": "tls1", "endpoint": "client",
                              "dir": pki})
    client.cmd("blockdev-add", dict(node, **{"tls-creds": "tls1"}))
    has_words(client.error("object-del", {"id": "tls1"}), "in use")
    client.cmd("blockdev-del", {"node-name": "n"})
    client.cmd("object-del", {"id": "tls1"})
    host.cmd("nbd-server-stop")
    host.cmd("object-del", {"id": "tls0"})
    has_words(host.error("object-del", {"id": "tls0"}), "not found")


if __name__ == "__main__":
    sys.exit(main())
