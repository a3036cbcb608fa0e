# yank: out of band, at once, as stock QEMU answers it.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import shutil

from colo_qtest import *
from e2e_proc import QMP, Process


class Oob:
    """A session with out-of-band execution."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(path)
        self.file = self.sock.makefile("rw")
        self.file.readline()
        self.run(execute="qmp_capabilities", arguments={"enable": ["oob"]})

    def run(self, **command):
        self.file.write(json.dumps(command) + "\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "event" not in answer:
                return answer

    def close(self):
        self.sock.close()


def yank(*instances):
    return {"exec-oob": "yank", "arguments": {"instances": list(instances)}, "id": 1}


COMMANDS = [yank({"type": "chardev", "id": "nope"}), yank({"type": "chardev"}),
            yank({"type": "pope", "id": "x"}), yank({"type": "migration"}),
            yank({"type": "block-node", "node-name": "n"}),
            yank({"type": "chardev", "id": "c0"}, {"type": "chardev", "id": "nope"}),
            yank(), {"exec-oob": "yank", "id": 2}, yank({"type": "chardev", "id": "c0"}),
            {"execute": "query-yank"}]


@case
def answers_as_stock(b):
    """The same words, classes and list; a connection is really broken."""
    answers = []
    stock = shutil.which("qemu-system-x86_64")
    if not stock:
        raise Skip("no stock QEMU")
    for program, more in ((stock, []), (b.program, ["-netdev", "socket,id=n,listen=127.0.0.1:%d" % free_port(),
                                                    "-object", "filter-mirror,id=m,netdev=n,"
                                                    "outdev=c0"])):
        port = free_port()
        path = "%s/%d.qmp" % (b.dir, port)
        p = Process("q", [program, *MACHINE, "-qmp", "unix:%s,server=on,wait=off" % path,
                          "-chardev", "socket,id=c0,host=127.0.0.1,port=%d,server=on,wait=off"
                          % port, *(more if program == b.program else [])],
                    "%s/%d.log" % (b.dir, port))
        b.closers.append(type("C", (), {"close": staticmethod(p.stop)}))
        QMP(path, p).close()
        oob = Oob(path)
        b.closers.append(oob)
        with socket.create_connection(("127.0.0.1", port), 10) as peer:
            time.sleep(0.3)
            got = [oob.run(**c) for c in COMMANDS]
            peer.settimeout(10)
            assert peer.recv(1) == b"", "the connection is still there"
        got[-1]["return"] = [i for i in got[-1]["return"]
                             if not i.get("id", "").startswith("compat_monitor")]
        answers.append(got)
    for command, stock_says, ours in zip(COMMANDS, *answers):
        assert stock_says == ours, (command, stock_says, ours)


@case
def at_once_while_the_peer_hangs(b):
    """SIGSTOP to the secondary in protection: its connections are yanked at once; then
    the primary is lost, and serves after the word."""
    path = b.dir + "/oob.qmp"
    slow = ("-colo", "peer-timeout=60000", *b.rom)
    primary = b.primary("-qmp", "unix:%s,server=on,wait=off" % path, *slow)
    secondary = b.secondary(*slow)
    b.protect(primary, secondary)
    oob = Oob(path)
    b.closers.append(oob)
    secondary.process.freeze()
    primary.cmd("xen-colo-do-checkpoint")
    time.sleep(0.5)
    before = time.monotonic()
    listed = oob.run(execute="query-yank")
    assert {"type": "migration"} in listed["return"], listed
    answer = oob.run(**yank({"type": "migration"}))
    took = time.monotonic() - before
    assert answer == {"return": {}, "id": 1}, answer
    in_time(took, 2, "query-yank and yank")  # 100 ms on a machine with nothing else to do
    primary.wait_state("lost", 30)
    primary.cmd("x-colo-lost-heartbeat")
    primary.wait_state("alone", 30)
    primary.wait("guest counts", primary.runs)
    return "%.1f ms" % (took * 1e3)


if __name__ == "__main__":
    sys.exit(main())
