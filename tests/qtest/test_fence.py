# A fence agent that does what agents do on a bad day: nothing but success is a proof.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import re

from colo_qtest import *

# What it is to do stands in a file; what it was told goes into another.
AGENT = """#!/bin/bash
cd "$(dirname "$0")"
case $(cat mode) in
stderr) cat >/dev/null; echo "Unable to connect to the fencing device" >&2; exit 3 ;;
signal) kill -9 $$ ;;
garbage) head -c 300000 /dev/urandom; printf '\\033[2Jgarbage\\0 end'; exit 1 ;;
deaf) exec <&-; echo deaf; exit 4 ;;
hang) echo "$$" >hangs; sleep 1000 & echo "$!" >>hangs; wait ;;
good) cat >told; exec sleep 0.2 ;;
esac
"""
CONTROL = re.compile(r"[^ -~\n]")


@case
def nothing_but_success_is_a_proof(b):
    """It fails, is killed, prints rubbish, reads nothing, hangs with a child of its own: nobody
    serves, the operator reads why, and it is tried again until it has done it."""
    agent, mode, options = b.dir + "/agent", b.dir + "/mode", b.dir + "/options"
    with open(agent, "w") as f:
        f.write(AGENT)
    os.chmod(agent, 0o755)

    def do(what):
        with open(mode + ".new", "w") as f:
            f.write(what)
        os.rename(mode + ".new", mode)
    do("stderr")
    with open(os.open(options, os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
        f.write("ip=192.0.2.9\npassword=geheim")
    primary, secondary = b.pair("-colo", "arbiter=fence,fence-agent=%s,fence-plug=host-a,"
                                "fence-options=%s,fence-timeout=1500" % (agent, options))
    primary.process.kill()
    secondary.wait_state("lost")
    for what, *words in (("stderr", "status 3", "Unable to connect to the fencing device"),
                         ("signal", "signal 9"), ("garbage", "status 1"), ("deaf", "status 4"),
                         ("hang", "not done within 1500 ms")):
        do(what)
        # The log has some reasons only, lest rubbish fills it; the status has the latest.
        secondary.wait(what, lambda: all(
            w in secondary.status()["arbiter"].get("error", "") for w in words))
        assert secondary.status()["state"] == "lost"
    do("good")
    secondary.wait_state("alone")
    with open(b.dir + "/told") as f:
        assert f.read() == "action=off\nplug=host-a\nip=192.0.2.9\npassword=geheim\n"
    arbiter = secondary.status()["arbiter"]
    assert arbiter["attempts"] >= 6 and "error" not in arbiter, arbiter
    with open(b.dir + "/hangs") as f:
        for pid in f.read().split():
            assert not is_running(int(pid)), "a part of the agent is left"
    assert "Unable to connect to the fencing device" in secondary.output()
    # What it prints goes to a log that people read on terminals.
    assert not CONTROL.search(secondary.output()), secondary.output()
    assert "geheim" not in secondary.output() + str(secondary.status())


if __name__ == "__main__":
    sys.exit(main())
