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


if __name__ == "__main__":
    sys.exit(main())
