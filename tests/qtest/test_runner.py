#!/usr/bin/env python3
# The runner of all tests (tests/run-tests.py) against programs that pass, fail and are late.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
import os
import shutil
import subprocess
import sys
import textwrap

from colo_qtest import case, main

HERE = os.path.dirname(os.path.abspath(__file__))

# How often it was started is what is in the file "tries".
SCRIPT = """
import os, sys, time
sys.path.insert(0, %r)
from colo_qtest import *
from e2e_proc import LateQMP
again = os.path.exists(__file__ + ".tries")
open(__file__ + ".tries", "w").close()

@case
def good(b):
    pass

@case
def other(b):
    pass
%s
sys.exit(main())
"""


def run(b, unit=(), qtest=(), more=()):
    """The last lines of a run over programs of shell (@unit) and cases (@qtest)."""
    top = b.dir + "/tests"
    shutil.rmtree(top, ignore_errors=True)
    for folder in ("build/tests/unit", "build/system", "qtest"):
        os.makedirs("%s/%s" % (top, folder))
    os.symlink("/bin/true", top + "/build/system/qemu-colo")  # nothing here runs it
    open(top + "/build/build.ninja", "w").close()
    for name, text in unit:
        path = "%s/build/tests/unit/test-%s" % (top, name)
        with open(path, "w") as f:
            f.write("#!/bin/sh\ncd %s\n%s\n" % (top, textwrap.dedent(text)))
        os.chmod(path, 0o755)
    for name, text in qtest:
        with open("%s/qtest/test_%s.py" % (top, name), "w") as f:
            f.write(SCRIPT % (HERE, textwrap.dedent(text)))
    done = subprocess.run([sys.executable, HERE + "/../run-tests.py", "--build", top + "/build",
                           "--tests", top, *more], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    failed = int(lines[-1].split()[2]) > 0
    assert done.returncode == failed, done
    return lines[-1], done.stdout


def late_case(first, second="pass"):
    return """
        @case
        def third(b):
            if again:
                %s
            else:
                %s
        """ % (second, first)


@case
def all_good(b):
    last, text = run(b, [("a", "echo 'ok 1 /x'; echo 'ok 2 /y'; echo 1..2")], [("q", "")])
    assert last == "4 passed, 0 failed, 0 skipped", text
    assert "late" not in text.lower(), text


@case
def late_and_then_good(b):
    """Each limit of the libraries: passed at the second try, counted once, and named."""
    for first in ("raise Late('x')", "in_time(2, 1, 'it')", "raise LateQMP('x')",
                  "import subprocess; subprocess.run(['sleep', '9'], timeout=0.1)"):
        last, text = run(b, qtest=[("q", late_case(first))])
        assert last == "3 passed, 0 failed, 0 skipped", text
        assert "late once, passed alone: qtest/q/third\n" in text, text


@case
def late_twice_or_wrong_at_last_is_a_failure(b):
    for second in ("raise Late('x')", "assert 1 == 2"):
        last, text = run(b, qtest=[("q", late_case("raise Late('x')", second))])
        assert last == "2 passed, 1 failed, 0 skipped", text
        assert "passed alone" not in text and "failed: qtest/q/third\n" in text, text


@case
def wrong_is_never_forgiven(b):
    """Of data or of who spoke, or a program that dies while it is waited for."""
    crash = """import subprocess
                from e2e_proc import Process
                p = Process('it', ['sh', '-c', 'kill -ABRT $$'], b.dir + '/log'); p.wait()
                raise Late('x')"""
    for first in ("assert 1 == 2, 'two voices'", "raise QMPError('a byte is wrong')", crash):
        last, text = run(b, qtest=[("q", late_case(first))])
        assert last == "2 passed, 1 failed, 0 skipped", text
        assert "passed alone" not in text, text


@case
def failed_and_then_good_is_named(b):
    """What may be the machine's doing has to pass three times, alone; a few of these at most."""
    once = late_case("assert 1 == 2")
    last, text = run(b, qtest=[("q", once)])
    assert last == "3 passed, 0 failed, 0 skipped", text
    assert "UNSTEADY, failed once and passed alone 3 times: qtest/q/third\n" in text, text
    twice = late_case("assert 1 == 2", """if os.path.exists('%s/n'):
                    assert 1 == 3
                open('%s/n', 'w').close()""" % (b.dir, b.dir))
    last, text = run(b, qtest=[("q", twice)])
    assert last == "2 passed, 1 failed, 0 skipped" and "UNSTEADY" not in text, text
    cases = "\n".join("@case\ndef odd%d(b):\n    assert again\n" % n for n in range(4))
    last, text = run(b, qtest=[("q", cases)])
    assert last == "2 passed, 4 failed, 0 skipped", text


@case
def unit_program_that_was_late(b):
    once = "if [ -e tried ]; then %s; else touch tried; %s; fi"
    good = "echo 'ok 1 /x'; echo 1..1"
    late = "echo 'ok 1 /x'; echo '# LATE'; exit 75"
    last, text = run(b, [("a", once % (good, late))])
    assert last == "1 passed, 0 failed, 0 skipped" and "passed alone: unit/a\n" in text, text
    last, text = run(b, [("a", late)])
    assert last == "0 passed, 1 failed, 0 skipped", text
    wrong = "echo 'not ok 1 /x'; echo 1..1; exit 75"
    last, text = run(b, [("a", once % (good, wrong))])
    assert last == "0 passed, 1 failed, 0 skipped", text
    last, text = run(b, [("a", once % (good, "kill -SEGV $$"))])
    assert last == "0 passed, 1 failed, 0 skipped" and "signal 11" in text, text


@case
def program_that_does_not_end(b):
    """Killed by its limit: once more; what it had passed is not counted twice."""
    stuck = late_case("time.sleep(60)")
    last, text = run(b, qtest=[("q", stuck)], more=["--limit", "4"])
    assert last == "4 passed, 0 failed, 0 skipped", text
    assert "late once, passed alone: qtest/q\n" in text, text
    last, text = run(b, [("a", "sleep 60")], more=["--limit", "1"])
    assert last == "0 passed, 1 failed, 0 skipped" and "not done in" in text, text


@case
def many_that_are_late_are_a_failure(b):
    cases = "\n".join("@case\ndef late%d(b):\n    raise Late('x')\n" % n for n in range(21))
    last, text = run(b, qtest=[("q", cases)])
    assert last == "2 passed, 21 failed, 0 skipped" and "too many" in text, text


@case
def two_at_a_time_and_none_of_one_file(b):
    """Files run beside each other, and what is left behind is the right one's."""
    stay = "import time\nopen(__file__ + str(time.time()), 'w')\ntime.sleep(1.5)\n" \
           "import subprocess\nif 'x' in os.path.basename(__file__)[4:]:\n" \
           "    subprocess.Popen(['sleep', '50'], start_new_session=True," \
           " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
    last, text = run(b, qtest=[("x", stay), ("y", stay)], more=["--jobs", "2"])
    assert last == "4 passed, 1 failed, 0 skipped", text
    assert "qtest/x (left behind)" in text and "sleep" in text, text


if __name__ == "__main__":
    sys.exit(main())
