#!/usr/bin/env python3
# The resource agent, action by action, as Pacemaker calls it; tests/e2e/test_cluster.py has a
# cluster that does.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import re
import xml.etree.ElementTree as xml

from colo_conf import *
from colo_qtest import *
from e2e_proc import QMP

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
AGENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "contrib", "ocf",
                     "qemu-colo")
SUCCESS, GENERIC, UNIMPLEMENTED, INSTALLED, CONFIGURED, NOT_RUNNING, PROMOTED = 0, 1, 3, 5, 6, 7, 8


class Agent:
    """One node's instance, of a VM without disks; host b of the file never comes."""

    def __init__(self, b, folder=None, **env):
        if not os.path.exists("/usr/lib/ocf/lib/heartbeat/ocf-shellfuncs"):
            raise Skip("no resource-agents here")
        self.b = b
        vm = Vm(b, disk=False, arbiter="pacemaker")
        with open(vm.file) as f:
            text = f.read().replace("a = 127.0.0.1\nb = 127.0.0.2",
                                    "a = 127.0.0.1\nb = 192.0.2.1")
        self.dir = os.path.join(b.dir, folder or "ra")
        os.makedirs(self.dir)
        self.file = self.dir + "/vm.conf"
        with open(self.file, "w") as f:
            f.write(text)
        self.env = dict(
            os.environ, OCF_ROOT="/usr/lib/ocf", OCF_RESOURCE_INSTANCE="vm:0", HA_RSCTMP=self.dir,
            OCF_RESOURCE_TYPE="qemu-colo", OCF_RA_VERSION_MAJOR="1", OCF_RA_VERSION_MINOR="1",
            HA_logfile=self.dir + "/ha.log", OCF_RESKEY_config=self.file,
            OCF_RESKEY_coloctl=os.path.abspath(tool(b)), OCF_RESKEY_shutdown_timeout="1",
            OCF_RESKEY_CRM_meta_timeout="60000")
        self.env.update(env)
        b.closers.append(self)

    def __call__(self, action, expect, *words, timeout=120, **env):
        done = subprocess.run([AGENT, action], env=dict(self.env, **env), capture_output=True,
                              text=True, stdin=subprocess.DEVNULL, timeout=timeout)
        assert done.returncode == expect, "%s: %d, expected %d: %s%s" % (
            action, done.returncode, expect, done.stdout, done.stderr)
        has_words(done.stderr, *words)
        return done.stdout

    def pid(self):
        with open(self.dir + "/qemu-colo-vm.pid") as f:
            return int(f.read())

    def family(self):
        """coloctl run, qemu-colo and the emulator."""
        todo, out = [self.pid()], []
        while todo:
            pid = todo.pop()
            out.append(pid)
            for task in os.listdir("/proc/%d/task" % pid):
                with open("/proc/%d/task/%s/children" % (pid, task)) as f:
                    todo += [int(n) for n in f.read().split()]
        assert len(out) >= 3, out
        return out

    def close(self):
        try:
            pids = self.family()
        except (OSError, AssertionError):
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def ended(pids):
    left = [p for p in pids if is_running(p)]
    assert not left, "still there: %s" % left


@case
def life(b):
    """Each action twice, in any order that Pacemaker may choose."""
    ra = Agent(b)
    ra("validate-all", SUCCESS)
    ra("monitor", NOT_RUNNING)
    ra("stop", SUCCESS)
    ra("demote", NOT_RUNNING)
    ra("start", SUCCESS)
    ra("start", SUCCESS)
    first = ra.pid()
    ra("monitor", SUCCESS)
    ra("notify", SUCCESS)
    # Of what is to come: answered at once, without a look at anything.
    ra("notify", SUCCESS, OCF_RESKEY_CRM_meta_notify_type="pre", OCF_ROOT="/nonexistent")
    ra("demote", SUCCESS)
    assert ra.pid() == first, "a demote of an unpromoted instance started it anew"
    ra("promote", SUCCESS)
    ra("promote", SUCCESS)
    ra("monitor", PROMOTED)
    ra("start", SUCCESS)
    ra("monitor", PROMOTED)
    ra("demote", SUCCESS)
    ra("monitor", SUCCESS)
    ra("demote", SUCCESS)
    ra("promote", SUCCESS)
    pids = ra.family()
    ra("stop", SUCCESS)
    ended(pids)
    ra("stop", SUCCESS)
    ra("monitor", NOT_RUNNING)


@case
def one_that_hangs_is_not_stopped(b):
    """Whichever of the processes hangs: monitor and demote fail, stop kills and says so in time."""
    ra = Agent(b)
    ra("start", SUCCESS)
    ra("promote", SUCCESS)
    pids = ra.family()
    os.kill(pids[1], signal.SIGSTOP)
    ra("monitor", GENERIC, "does not answer")
    ra("demote", GENERIC, "does not answer")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    begin = time.monotonic()
    ra("stop", SUCCESS, OCF_RESKEY_CRM_meta_timeout="20000")
    ended(pids)
    assert time.monotonic() - begin < 90
    ra("monitor", NOT_RUNNING)


@case
def what_hangs_dies_with_its_keeper(b):
    """Nothing that could serve once it wakes is left by a coloctl that was killed: so it is a
    stopped one, and stop has nothing to end."""
    ra = Agent(b)
    ra("start", SUCCESS)
    pids = ra.family()
    try:
        for pid in pids[1:]:
            os.kill(pid, signal.SIGSTOP)
        os.kill(pids[0], signal.SIGKILL)
        wait_gone(pids, "runs without coloctl run")
        ra("monitor", NOT_RUNNING)
        ra("stop", SUCCESS)
    finally:
        for pid in pids[1:]:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)


@case
def stop_needs_neither_file_nor_sense(b):
    """The file is gone, then coloctl: what runs is ended all the same."""
    ra = Agent(b)
    ra("start", SUCCESS)
    pids = ra.family()
    os.rename(ra.file, ra.file + ".away")
    ra("monitor", GENERIC, "does not answer")
    ra("stop", SUCCESS, OCF_RESKEY_shutdown_timeout="soon", OCF_RESKEY_CRM_meta_timeout="20000")
    ended(pids)
    ra("start", INSTALLED, "cannot read")
    os.rename(ra.file + ".away", ra.file)
    ra("start", SUCCESS)
    pids = ra.family()
    none = {"OCF_RESKEY_coloctl": b.dir + "/no-such-coloctl"}
    ra("monitor", GENERIC, **none)
    ra("stop", SUCCESS, **none)
    ended(pids)
    ra("monitor", NOT_RUNNING, **none)
    ra("stop", SUCCESS, **none)
    ra("start", INSTALLED, **none)
    ra("meta-data", SUCCESS, **none)


@case
def what_a_crash_leaves(b):
    """Sockets, mark and number of dead processes; the number is another process' by now."""
    ra = Agent(b)
    ra("start", SUCCESS)
    ra("promote", SUCCESS)
    for pid in ra.family():
        os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 20
    while os.path.exists("/proc/%d/exe" % ra.pid()) and time.monotonic() < end:
        time.sleep(0.05)
    assert os.path.exists(ra.dir + "/qemu-colo-vm.promoted")
    stranger = subprocess.Popen(["sleep", "300"])
    try:
        with open(ra.dir + "/qemu-colo-vm.pid", "w") as f:
            f.write("%d\n" % stranger.pid)
        ra("monitor", NOT_RUNNING)
        assert not os.path.exists(ra.dir + "/qemu-colo-vm.promoted")
        ra("stop", SUCCESS)
        assert stranger.poll() is None, "somebody else's process was killed"
        for text in ("", "x; touch %s/oops\n" % b.dir, "-1\n", "0\n"):
            with open(ra.dir + "/qemu-colo-vm.pid", "w") as f:
                f.write(text)
            ra("stop", SUCCESS)
        assert not os.path.exists(b.dir + "/oops")
    finally:
        stranger.kill()
        stranger.wait()
    ra("start", SUCCESS)
    ra("monitor", SUCCESS)
    ra("stop", SUCCESS)


@case
def hostile_parameters(b):
    """Spaces, quotes, dollars and stars are characters; what is no number is refused."""
    folder = "it's a \"$(touch %s)\" * `touch %s` ;" % ("oops", "oops")
    ra = Agent(b, folder)
    ra("start", SUCCESS)
    ra("monitor", SUCCESS)
    ra("promote", SUCCESS)
    pids = ra.family()
    ra("stop", SUCCESS)
    ended(pids)
    assert not os.path.exists("oops")
    for value, word in (("vm.conf", "absolute"), ("-x", "absolute"), ("", "needed")):
        ra("validate-all", CONFIGURED, word, OCF_RESKEY_config=value)
    for value in ("", "soon", "-1", "1.5", "1 2", "99999999"):
        if value:
            ra("validate-all", CONFIGURED, "seconds", OCF_RESKEY_shutdown_timeout=value)
    with open(ra.file, "a") as f:
        f.write("[vm]\n")
    ra("validate-all", CONFIGURED, "twice")


@case
def two_arbiters_are_refused(b):
    ra = Agent(b)
    with open(ra.file) as f:
        text = f.read()
    for words in ("", "arbiter = manual\n"):
        with open(ra.file, "w") as f:
            f.write(text.replace("arbiter = pacemaker\n", words))
        ra("start", CONFIGURED, "pacemaker")
    ra("monitor", NOT_RUNNING)


@case
def half_a_copy_is_not_promoted(b):
    """A secondary that is being brought up to date; once it has all, it is."""
    ra = Agent(b)
    vm = Vm(b, disk=False, arbiter="pacemaker", max_bandwidth=20000)
    # Both hosts are this machine, so coloctl has to be told which it is.
    wrapper = b.dir + "/coloctl-b"
    with open(os.open(wrapper, os.O_CREAT | os.O_WRONLY, 0o755), "w") as f:
        f.write("#!/bin/sh\nexec %s \"$@\" --host b\n" % os.path.abspath(tool(b)))
    second = {"OCF_RESKEY_config": vm.file, "OCF_RESKEY_coloctl": wrapper}
    vm.run("a", "--role", "primary")
    vm.wait("a", "alone")
    ra("start", SUCCESS, **second)
    vm.wait("b", "sync", 60)
    ra("promote", GENERIC, "not got all", **second)
    ra("monitor", SUCCESS, **second)
    q = QMP("%s/a/run/qmp.sock" % b.dir)
    q.cmd("migrate-set-parameters", {"max-bandwidth": 1 << 40})
    q.close()
    vm.wait("b", "protected", 60)
    vm.kill_tree("a")
    vm.wait("b", "lost")
    ra("promote", SUCCESS, **second)
    ra("monitor", PROMOTED, **second)
    assert vm.wait("b", "alone")["serves"]
    ra("stop", SUCCESS, **second)


@case
def cluster_that_does_not_answer(b):
    """In a cluster nobody is promoted on the strength of an answer that did not come."""
    ra = Agent(b)
    clone = {"OCF_RESKEY_CRM_meta_clone": "0"}
    ra("start", SUCCESS)
    programs = b.dir + "/bin"
    os.mkdir(programs)
    for name in ("crm_attribute", "crm_mon", "crm_node", "crm_master"):
        with open(os.open("%s/%s" % (programs, name), os.O_CREAT | os.O_WRONLY, 0o755), "w") as f:
            f.write("#!/bin/sh\nexit 102\n")  # as without a cluster
    path = {"PATH": programs + ":" + os.environ["PATH"]}
    ra("promote", GENERIC, "served last", **clone, **path)
    ra("monitor", SUCCESS)
    ra("stop", SUCCESS)


@case
def meta_data_tells_what_there_is(b):
    """Each action and parameter that the agent handles, and no other."""
    ra = Agent(b)
    root = xml.fromstring(ra("meta-data", SUCCESS))
    with open(AGENT) as f:
        text = f.read()
    assert root.get("name") == "qemu-colo" and root.find("version").text == "1.1"
    actions = {a.get("name") for a in root.iter("action")}
    assert actions == {"start", "stop", "promote", "demote", "notify", "monitor", "validate-all",
                       "meta-data"}, actions
    assert {a.get("role") for a in root.iter("action") if a.get("name") == "monitor"} == \
        {"Promoted", "Unpromoted"}
    intervals = [a.get("interval") for a in root.iter("action") if a.get("name") == "monitor"]
    assert len(set(intervals)) == 2, "Pacemaker takes two monitors of one interval for one"
    parameters = {p.get("name") for p in root.iter("parameter")}
    assert parameters == set(re.findall(r"OCF_RESKEY_([a-z_]+)", text)), parameters
    for p in root.iter("parameter"):
        assert p.find("longdesc").text and p.find("shortdesc").text, p.get("name")
        if p.get("required") != "1":
            default = p.find("content").get("default")
            assert ': "${OCF_RESKEY_%s=%s}"' % (p.get("name"), default) in text, p.get("name")
    ra("frobnicate", UNIMPLEMENTED)


def passes(*words):
    """A checker, if there is one here, has nothing to say."""
    if shutil.which(words[0]):
        done = subprocess.run(words, capture_output=True, text=True, timeout=120,
                              stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stdout + done.stderr
        return words[0]
    return "no " + words[0]


@case
def checkers_have_nothing_to_say(b):
    """Of the agent and its meta-data, the completion, and the unit of systemd."""
    dtd = "/usr/share/resource-agents/ra-api-1.dtd"
    with open(b.dir + "/meta.xml", "w") as f:
        f.write(re.sub("<!DOCTYPE.*>", "", Agent(b)("meta-data", SUCCESS)))
    with open(os.path.join(ROOT, "contrib/systemd/qemu-colo@.service")) as f:
        text = f.read()
    unit = b.dir + "/qemu-colo@vm.service"
    with open(unit, "w") as f:
        f.write(text.replace("/usr/bin/coloctl", os.path.abspath(tool(b))))
    assert text.count("/usr/bin/coloctl") == 2
    return ", ".join((
        passes("shellcheck", AGENT),
        passes("shellcheck", "-s", "bash", os.path.join(ROOT, "contrib/completion/coloctl")),
        passes("xmllint", "--noout", *(["--dtdvalid", dtd] if os.path.exists(dtd) else []),
               b.dir + "/meta.xml"),
        passes("systemd-analyze", "--man=no", "verify", unit)))


if __name__ == "__main__":
    sys.exit(main())
