# QMP, run states and protection of a guest, seen from the outside.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import shutil

from colo_qtest import *
from e2e_proc import QMP, Process


def raw(host, *texts):
    """Lines that the server says to these on a connection of its own."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    s.connect(host.path)
    f = s.makefile("rb")
    said = [json.loads(f.readline())]
    for text in texts:
        s.sendall(text if isinstance(text, bytes) else text.encode() + b"\n")
        said.append(json.loads(f.readline()))
        while "event" in said[-1]:
            said[-1] = json.loads(f.readline())
    s.close()
    return said


@case
def ids_come_back(b):
    """Ours and the emulator's own commands alike."""
    host = b.primary()
    host.qmp.close()
    for ident in ('"x"', "5", "null", '{"a":[1,{"b":"c"}]}', "12345678901234567890"):
        for name in ("query-colo-status", "query-version", "query-status", "no-such"):
            said = raw(host, '{"execute":"qmp_capabilities"}',
                       '{"execute":"%s","id":%s}' % (name, ident))[-1]
            assert said["id"] == json.loads(ident), said
            assert ("error" in said) == (name == "no-such"), said


@case
def commands_of_ours_complain(b):
    host = b.primary()
    has_words(host.error("x-colo-lost-heartbeat"), "'colo' is not enabled")
    has_words(host.error("xen-colo-do-checkpoint"), "not a COLO primary")
    has_words(host.error("migrate", {"url": "tcp:x"}), "url|uri")
    has_words(host.error("migrate-set-parameters", {"x-checkpoint-delay": "soon"}),
              "x-checkpoint-delay")
    has_words(host.error("migrate-set-parameters", {"x-checkpoint-delay": 0}),
              "x-checkpoint-delay")
    has_words(host.error("object-add", {"qom-type": "filter-mirror", "id": "m",
                                        "netdev": "none", "outdev": "none",
                                        "queue": "tx"}), "netdev")
    has_words(host.error("object-del", {"id": "none"}), "none")
    has_words(host.error("chardev-remove", {"id": "none"}), "none")
    has_words(host.error("nbd-server-add", {"device": "none"}), "nbd|none")
    has_words(host.error("x-blockdev-change", {"parent": "none", "node": "n"}), "none")
    host.x_colo()
    has_words(host.error("migrate", {"uri": "exec:cat"}), "tcp:host:port")
    has_words(host.error("migrate", {"uri": "nonsense"}), "tcp:host:port")
    assert host.run_state() == "running"


@case
def parameters_and_capabilities_are_kept(b):
    host = b.primary()
    for state in (True, False):
        host.x_colo(state)
        caps = {c["capability"]: c["state"]
                for c in host.cmd("query-migrate-capabilities")}
        assert caps["x-colo"] is state, caps
    assert len(caps) > 5, "the emulator's own are missing: %s" % caps
    assert host.cmd("query-migrate-parameters")["x-checkpoint-delay"] == 20000
    host.cmd("migrate-set-parameters", {"x-checkpoint-delay": 777, "max-bandwidth": 123456})
    got = host.cmd("query-migrate-parameters")
    assert got["x-checkpoint-delay"] == 777 and got["max-bandwidth"] == 123456, got
    assert got["x-colo-mode"] == "colo" and got["x-buffered-interval"] == 40, got
    for wrong in ({"x-colo-mode": "fast"}, {"x-colo-mode": 1}, {"x-buffered-interval": 9},
                  {"x-buffered-interval": 101}, {"x-max-pause": 10001}, {"x-max-pause": -1},
                  {"x-colo-mode": "buffered", "x-buffered-interval": 1000}):
        has_words(host.error("migrate-set-parameters", wrong), list(wrong)[-1])
    assert host.cmd("query-migrate-parameters") == got
    host.cmd("migrate-set-parameters", {"x-colo-mode": "adaptive", "x-buffered-interval": 10})
    got = host.cmd("query-migrate-parameters")
    assert got["x-colo-mode"] == "adaptive" and got["x-buffered-interval"] == 10, got
    assert got["x-checkpoint-delay"] == 777, got
    status = host.cmd("query-colo-status")
    assert status["protect-mode"] == "adaptive" and status["active-mode"] == "colo", status


@case
def states_before_and_after(b):
    primary, secondary = b.primary(), b.secondary()
    assert primary.status()["mode"] == "none" and primary.status()["state"] == "alone"
    assert primary.run_state() == "running"
    assert "status" not in primary.cmd("query-migrate")
    assert secondary.status()["state"] == "waiting"
    assert secondary.run_state() == "inmigrate"
    has_words(secondary.error("cont"), "secondary")
    has_words(secondary.error("x-colo-lost-heartbeat"), "nothing here could take over")
    b.protect(primary, secondary)
    assert primary.status()["mode"] == "primary"
    assert secondary.status()["mode"] == "secondary"
    for host in (primary, secondary):
        assert host.cmd("query-migrate")["status"] == "colo"
        assert host.run_state() == "running"
    has_words(primary.error("migrate", {"uri": "tcp:127.0.0.1:1"}), "in progress")
    has_words(secondary.error("stop"), "secondary")
    has_words(primary.error("migrate-set-capabilities", {"capabilities": [
        {"capability": "x-colo", "state": False}]}), "in progress")


@case
def takeover_by_command(b):
    """The secondary is told to take over; the primary falls silent for good."""
    primary, secondary = b.pair()
    secondary.cmd("x-colo-lost-heartbeat")
    secondary.wait_state("alone")
    assert secondary.status()["last-mode"] == "secondary"
    assert secondary.status()["reason"] == "request"
    _, event = secondary.qmp.wait_event("COLO_EXIT")
    assert event["data"] == {"mode": "secondary", "reason": "request"}, event
    secondary.wait("guest runs", secondary.runs)
    primary.wait_state("fenced")
    has_words(primary.error("x-colo-lost-heartbeat"), "took over")
    has_words(primary.error("cont"), "took over")


@case
def primary_goes_on_alone(b):
    primary, secondary = b.pair()
    secondary.process.kill()
    _, event = primary.qmp.wait_event("COLO_EXIT")
    assert event["data"] == {"mode": "primary", "reason": "error"}, event
    assert primary.status()["state"] == "lost"
    primary.cmd("x-colo-lost-heartbeat")
    primary.wait_state("alone")
    assert primary.runs()
    has_words(primary.error("x-colo-lost-heartbeat"), "'colo' is not enabled")
    again = b.secondary(*b.rom)
    b.protect(primary, again)
    primary.cmd("x-colo-lost-heartbeat")
    primary.wait_state("alone")
    assert primary.status()["reason"] == "request"


@case
def checkpoint_delay_is_honoured(b):
    primary, _ = b.pair()

    def checkpoints(seconds):
        before = primary.status()["checkpoints"]
        time.sleep(seconds)
        return primary.status()["checkpoints"] - before
    assert checkpoints(1) == 0
    primary.cmd("migrate-set-parameters", {"x-checkpoint-delay": 200})
    begin = time.monotonic()
    n = checkpoints(3)
    took = time.monotonic() - begin
    assert n <= took / 0.2 + 2, "%d checkpoints in %.1f s of 200 ms" % (n, took)
    in_time(3 / max(n, 0.1), 0.6, "an epoch of 200 ms")
    primary.cmd("migrate-set-parameters", {"x-checkpoint-delay": 60000})
    end = time.monotonic() + 20
    while checkpoints(1) != 0:  # one that had begun may end now
        within(end, "checkpoints although the delay is long")
    before = primary.status()
    primary.cmd("xen-colo-do-checkpoint")
    primary.wait("checkpoint", lambda: primary.status()["checkpoints"] ==
                 before["checkpoints"] + 1)
    assert primary.status()["triggers"]["request"] == before["triggers"]["request"] + 1
    return "%d in 3 s" % n


@case
def a_pause_over_its_budget_is_told(b):
    """A budget that no pause exceeds says nothing; one that none can keep does, once in 10 s."""
    primary, secondary = b.primary(*b.rom), b.secondary(*b.rom)
    b.protect(primary, secondary)

    def checkpoints(n):
        for _ in range(n):
            want = primary.status()["checkpoints"] + 1
            primary.cmd("xen-colo-do-checkpoint")
            primary.wait("checkpoint", lambda: primary.status()["checkpoints"] >= want)
    primary.cmd("migrate-set-parameters", {"x-max-pause": 10000})
    checkpoints(3)
    assert primary.status()["pauses-over-budget"] == 0
    freeze(primary.process.emulator_pid())  # before stop can be answered
    try:
        primary.cmd("migrate-set-parameters", {"x-max-pause": 1})
        primary.cmd("xen-colo-do-checkpoint")
        time.sleep(0.3)
    finally:
        os.kill(primary.process.emulator_pid(), signal.SIGCONT)
    event = primary.qmp.wait_event("COLO_PAUSE_OVER_BUDGET", 20)[1]["data"]
    assert event["pause-us"] > event["budget-us"] == 1000, event
    assert primary.status()["pauses-over-budget"] == event["pauses-over-budget"] == 1, event
    checkpoints(3)
    assert len(primary.events("COLO_PAUSE_OVER_BUDGET")) == 1
    assert primary.cmd("query-migrate-parameters")["x-max-pause"] == 1


def conforms(schema, type_name, value, path):
    """Whether @value is of that type, no member more and none less."""
    t = schema[type_name]
    if t["meta-type"] == "object":
        members = {m["name"]: m for m in t["members"]}
        assert not set(value) - set(members), "%s: %s" % (path, set(value) - set(members))
        for name, m in members.items():
            assert name in value or "default" in m, "%s.%s is missing" % (path, name)
            if name in value:
                conforms(schema, m["type"], value[name], path + "." + name)
    elif t["meta-type"] == "array":
        for n, item in enumerate(value):
            conforms(schema, t["element-type"], item, "%s[%d]" % (path, n))
    elif t["meta-type"] == "enum":
        names = t.get("values") or [m["name"] for m in t["members"]]
        assert value in names, "%s: %s" % (path, value)
    else:
        want = {"int": int, "string": str, "boolean": bool}[t["json-type"]]
        assert type(value) is want, "%s: %r" % (path, value)


@case
def statistics_are_as_described(b):
    primary, secondary = b.primary(*b.rom), b.secondary(*b.rom)
    schema = {e["name"]: e for e in primary.cmd("query-qmp-schema")}
    answer = schema["query-colo-stats"]["ret-type"]
    for host in (primary, secondary):
        conforms(schema, answer, host.cmd("query-colo-stats"), "before")
    b.protect(primary, secondary)
    for mode in ("colo", "buffered"):
        primary.cmd("migrate-set-parameters", {"x-checkpoint-delay": 20, "x-colo-mode": mode,
                                               "x-buffered-interval": 10})
        want = primary.status()["checkpoints"] + 80
        primary.wait("checkpoints", lambda: primary.status()["checkpoints"] >= want, 60)
    event = primary.qmp.wait_event("COLO_MODE", 5)[1]["data"]
    assert event["mode"] == "buffered" and event["reason"] == "set by the user", event
    primary.cmd("migrate-set-parameters", {"x-checkpoint-delay": 60000,
                                           "x-colo-mode": "colo"})
    primary.wait("colo", lambda: primary.status()["active-mode"] == "colo")
    for host in (primary, secondary):
        got = host.cmd("query-colo-stats")
        conforms(schema, answer, got, host.name)
        assert len(got["recent"]) == 128, len(got["recent"])
        epochs = [c["epoch"] for c in got["recent"]]
        assert epochs == list(range(epochs[0], epochs[0] + 128)), epochs
        assert {c["mode"] for c in got["recent"]} == {"colo", "buffered"}
        for name in ("pause-us", "commit-us", "lag-us", "dirty-pages"):
            series = got[name]
            known = host is primary or name in ("lag-us", "dirty-pages")
            assert (series["count"] >= 160) == known, (name, series)
            assert sum(x["count"] for x in series["histogram"]) == series["count"], series
            assert not known or series["sum"] >= series["max"] >= series["median"], series
        assert (got["memory"]["cache"] > 0) == (host is secondary), got["memory"]
        assert got["memory"]["guest-ram"] > 0 and got["memory"]["staging"] > 0
    last = primary.cmd("query-colo-stats")["recent"][-1]
    parts = sum(last[k] for k in ("stop-us", "save-us", "cut-us", "cont-us"))
    assert parts == last["pause-us"] and last["bytes"] > 0 and last["bytes-sent"] > 0, last


def pauses(b, option):
    primary, secondary = b.primary(*b.rom, "-colo", option), b.secondary(*b.rom)
    b.protect(primary, secondary)
    time.sleep(0.2)
    before = [len(primary.events(n)) for n in ("STOP", "RESUME")]
    for n in range(3):
        want = primary.status()["checkpoints"] + 1
        primary.cmd("xen-colo-do-checkpoint")
        primary.wait("checkpoint", lambda: primary.status()["checkpoints"] >= want)
    time.sleep(0.2)
    return primary, [len(primary.events(n)) - m for n, m in zip(("STOP", "RESUME"), before)]


@case
def checkpoints_show_stop_and_resume(b):
    _, seen = pauses(b, "checkpoint-events=on")
    assert seen == [3, 3], seen


@case
def checkpoint_events_can_be_hidden(b):
    """Those of checkpoints: the user's own pause is told, once, before its answer."""
    primary, seen = pauses(b, "checkpoint-events=off")
    assert seen == [0, 0], seen
    primary.cmd("migrate-set-parameters", {"x-checkpoint-delay": 30})
    before = [len(primary.events(n)) for n in ("STOP", "RESUME")]
    for n in range(1, 6):
        primary.cmd("stop")
        assert len(primary.events("STOP")) == before[0] + n
        time.sleep(b.rng.random() * 0.1)
        assert len(primary.events("RESUME")) == before[1] + n - 1
        primary.cmd("cont")
        assert len(primary.events("RESUME")) == before[1] + n
        time.sleep(b.rng.random() * 0.1)
    assert len(primary.events("STOP")) == before[0] + 5


@case
def migration_events_need_the_capability(b):
    """As in QEMU: one a status, on a side whose capability "events" is on."""
    primary, secondary = b.primary(*b.rom), b.secondary(*b.rom)
    events = {"capabilities": [{"capability": "events", "state": True}]}
    has_words(primary.error("migrate-set-capabilities", {"capabilities": [
        {"capability": "events"}]}), "state")
    primary.cmd("migrate-set-capabilities", events)
    b.protect(primary, secondary)
    primary.cmd("x-colo-lost-heartbeat")
    primary.wait_state("alone")

    def said(host):
        return [e["data"]["status"] for e in host.events("MIGRATION")]
    primary.wait("events", lambda: "completed" in said(primary), 5)
    assert said(primary) == ["setup", "active", "colo", "completed"], said(primary)
    assert said(secondary) == [], said(secondary)
    secondary.close()
    again = b.secondary(*b.rom)
    again.cmd("migrate-set-capabilities", events)
    b.protect(primary, again)
    again.wait("events", lambda: "colo" in said(again), 5)
    assert said(again) == ["setup", "active", "colo"], said(again)
    assert primary.run_state() == again.run_state() == "running"


@case
def user_pause_holds_on_both_sides(b):
    primary, secondary = b.pair()
    primary.cmd("migrate-set-parameters", {"x-checkpoint-delay": 150})
    assert primary.runs() and secondary.runs()
    for _ in range(3):
        primary.cmd("stop")
        assert primary.run_state() == "paused"
        epoch = primary.status()["epoch"]
        secondary.wait("the pause", lambda: secondary.status()["epoch"] >= epoch and
                       secondary.run_state() == "paused")
        a, c = primary.count(), secondary.count()
        time.sleep(0.6)  # checkpoints go on meanwhile
        assert primary.count() == a, "the primary's guest runs though paused"
        assert secondary.count() == c == a, "the secondary's guest runs though paused"
        primary.cmd("cont")
        assert primary.run_state() == "running"
        primary.wait("guest runs", primary.runs)
        secondary.wait("guest runs", secondary.runs)


@case
def pause_survives_a_takeover(b):
    primary, secondary = b.pair()
    primary.cmd("stop")
    epoch = primary.status()["epoch"]
    secondary.wait("the pause", lambda: secondary.status()["epoch"] >= epoch)
    primary.process.kill()
    secondary.qmp.wait_event("COLO_EXIT")
    secondary.cmd("x-colo-lost-heartbeat")
    secondary.wait_state("alone")
    assert not secondary.runs() and secondary.run_state() == "paused"
    secondary.cmd("cont")
    secondary.wait("guest runs", secondary.runs)


def takeover_of_a_stopped_guest(primary, secondary):
    """It stays as it was in the last checkpoint."""
    primary.process.kill()
    secondary.qmp.wait_event("COLO_EXIT")
    secondary.cmd("x-colo-lost-heartbeat")
    secondary.wait_state("alone")
    assert not secondary.runs(), "the takeover resurrected the guest"


def rolled_back(primary, secondary, key):
    """What the secondary's guest alone does, when told so by @key, ends with a checkpoint."""
    before = primary.status()["checkpoints"]
    secondary.key(key)
    primary.wait("checkpoint", lambda: primary.status()["checkpoints"] > before)
    secondary.wait("guest runs", secondary.runs)


@case
def guest_shutdown_ends_both(b):
    primary, secondary = b.pair()
    primary.key("s")
    primary.qmp.wait_event("SHUTDOWN")
    assert primary.ended() == 0, primary.output()
    assert secondary.ended() == 0, secondary.output()


@case
def guest_shutdown_unprotected(b):
    host = b.primary(*b.rom)
    host.wait("guest counts", host.runs)
    host.key("s")
    assert host.ended() == 0


@case
def guest_shutdown_with_no_shutdown(b):
    """The machines stay, off on both sides; a takeover does not resurrect the guest."""
    primary, secondary = b.pair("-no-shutdown")
    primary.key("s")
    primary.qmp.wait_event("SHUTDOWN")
    primary.wait("is off", lambda: primary.run_state() == "shutdown")
    time.sleep(1)
    assert primary.process.alive() and secondary.process.alive()
    assert not secondary.runs(), "the secondary's guest runs on"
    takeover_of_a_stopped_guest(primary, secondary)


@case
def guest_shutdown_on_the_secondary_alone(b):
    """A mismatch: it is rolled back and goes on."""
    primary, secondary = b.pair()
    rolled_back(primary, secondary, "s")
    assert primary.runs() and not secondary.events("SHUTDOWN")


@case
def guest_panics(b):
    """Its last words leave with a checkpoint of the crashed machine; nobody resurrects it."""
    primary, secondary = b.pair("-device", "pvpanic")
    primary.key("p")
    primary.qmp.wait_event("GUEST_PANICKED")
    primary.wait("has crashed", lambda: primary.run_state() == "guest-panicked")
    epoch = primary.status()["epoch"]
    secondary.wait("the end", lambda: secondary.status()["epoch"] > epoch)
    assert primary.process.alive() and not secondary.runs(), "the secondary's guest runs on"
    takeover_of_a_stopped_guest(primary, secondary)
    # A reset is how both go on, here as in QEMU.
    secondary.cmd("system_reset")
    secondary.cmd("cont")
    secondary.wait("guest runs", secondary.runs)


@case
def guest_panics_on_the_secondary_alone(b):
    """A mismatch: it is rolled back and goes on."""
    primary, secondary = b.pair("-device", "pvpanic")
    rolled_back(primary, secondary, "p")
    assert primary.runs() and not secondary.events("GUEST_PANICKED")


@case
def guest_sleeps_on_the_secondary_alone(b):
    """It is woken, and rolled back."""
    primary, secondary = b.pair()
    rolled_back(primary, secondary, "z")
    assert primary.runs() and not primary.events("SUSPEND")
    assert primary.status()["state"] == "protected"


@case
def guest_reset_while_protected(b):
    primary, secondary = b.pair()
    primary.cmd("system_reset")
    primary.qmp.wait_event("RESET")
    time.sleep(0.5)
    before = primary.status()["checkpoints"]
    primary.cmd("xen-colo-do-checkpoint")
    primary.wait("checkpoint", lambda: primary.status()["checkpoints"] > before)
    primary.wait("guest runs", primary.runs)
    secondary.wait("guest runs", secondary.runs)
    assert primary.status()["state"] == "protected"


def unread(host):
    """Bytes in the receive queues of its unix sockets, the fullest first."""
    done = subprocess.run(["ss", "-xnpH"], capture_output=True, text=True, check=True)
    mine = [line.split() for line in done.stdout.splitlines()
            if "pid=%d," % host.process.pid in line]
    assert len(mine) >= 4, done.stdout
    return sorted((int(words[2]) for words in mine), reverse=True)


def settles(host):
    host.wait("events are read", lambda: unread(host)[0] < 2000, 20)


@case
def events_do_not_pile_up(b):
    """Thousands of them while nobody makes checkpoints: alone, with the output held, and alone
    again. All of the emulator's monitors get each; what is unread would fill its memory."""
    def stir(host, n):
        for _ in range(n // 100):
            for posted in [host.qmp.post(name) for _ in range(50) for name in ("stop", "cont")]:
                host.qmp.result(posted)
        settles(host)
    primary, secondary = b.primary(*b.rom), b.secondary(*b.rom)
    stir(primary, 3000)
    b.protect(primary, secondary)
    secondary.process.kill()
    primary.wait_state("lost")
    for n in range(1, 41):
        before = len(primary.events("RESET"))
        primary.cmd("system_reset")
        primary.wait("reset %d" % n, lambda: len(primary.events("RESET")) > before)
    settles(primary)
    primary.cmd("x-colo-lost-heartbeat")
    primary.wait_state("alone")
    stir(primary, 1000)
    # And protection finds its answers among the rest.
    b.port = free_port()
    b.protect(primary, b.secondary(*b.rom))


def ends_cleanly(host, sig=signal.SIGTERM):
    os.kill(host.process.pid, sig)
    status = host.ended(8)
    assert status == 0, "%s: exit status %s: %s" % (host.name, status, host.output())
    assert not os.path.exists(host.path), "socket left behind"


@case
def sigterm_alone(b):
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        ends_cleanly(b.primary(), sig)


@case
def sigterm_while_waiting(b):
    ends_cleanly(b.secondary())


@case
def sigterm_while_a_client_is_silent(b):
    secondary = b.secondary()
    secondary.x_colo()
    s = b.dial()
    secondary.wait_state("setup")
    begin = time.monotonic()
    ends_cleanly(secondary)
    s.close()
    in_time(time.monotonic() - begin, 3, "the end, with a client that does not read,")


@case
def sigterm_protected(b):
    """The one that is left says so, and can go on."""
    for first in (0, 1):
        pair = b.pair()
        ends_cleanly(pair[first])
        other = pair[1 - first]
        other.qmp.wait_event("COLO_EXIT")
        other.cmd("x-colo-lost-heartbeat")
        other.wait_state("alone")
        assert other.runs()
        ends_cleanly(other)


@case
def quit_protected(b):
    primary, secondary = b.pair()
    primary.cmd("quit")
    assert primary.ended() == 0
    secondary.qmp.wait_event("COLO_EXIT")
    secondary.cmd("quit")
    assert secondary.ended() == 0


@case
def emulator_death_ends_us(b):
    host = b.primary()
    os.kill(host.process.emulator_pid(), signal.SIGKILL)
    assert host.ended() == 1
    has_words(host.output(), "emulator died", "signal 9")


@case
def our_death_ends_the_emulator(b):
    host = b.primary()
    pid = host.process.emulator_pid()
    assert pid != host.process.pid
    host.process.kill()
    wait_gone([pid], "the emulator lives on")


def run(b, *args):
    return subprocess.run([b.program, *args], capture_output=True, text=True, timeout=20,
                          input="")


@case
def without_colo_we_are_the_emulator(b):
    stock = subprocess.run(["qemu-system-x86_64", "-version"], capture_output=True, text=True)
    assert run(b, "-version").stdout == stock.stdout
    assert "-netdev" in run(b, "-help").stdout
    said = subprocess.run([b.program, "-machine", "none", "-nodefaults", "-display", "none",
                           "-qmp", "stdio", "-object", "iothread,id=i"], text=True,
                          input='{"execute":"qmp_capabilities"}{"execute":"query-commands"}'
                                '{"execute":"quit"}', capture_output=True, timeout=20).stdout
    assert "query-qmp-schema" in said and "SHUTDOWN" in said, said
    done = run(b, "-machine", "nonsense")
    assert done.returncode == 1 and "unsupported machine type" in done.stderr, done


@case
def schema_of_both(b):
    """query-qmp-schema: all of the emulator's, ours beside, no type that is not there."""
    stock = shutil.which("qemu-system-x86_64")
    host = b.host("h", "-colo", "checkpoint-events=on")
    ours = {e["name"]: e for e in host.cmd("query-qmp-schema")}
    for e in ours.values():
        used = [e[k] for k in ("arg-type", "ret-type", "element-type") if k in e]
        used += [m["type"] for m in e.get("members", []) + e.get("variants", [])
                 if "type" in m]
        for name in used:
            assert name in ours, "%s has type %s, which is missing" % (e["name"], name)
    args = ours[ours["x-colo-lost-heartbeat"]["arg-type"]]
    assert [m["name"] for m in args["members"]] == ["fenced"], args
    assert ours["x-colo-lost-heartbeat"]["allow-oob"]
    for name in ("query-colo-proxy", "COLO_DECISION", "query-colo-status", "blockdev-mirror"):
        assert name in ours, name
    for command in host.cmd("query-commands"):
        assert ours.get(command["name"], {}).get("meta-type") == "command", command
    if stock:
        path = b.dir + "/stock.qmp"
        p = Process("stock", [stock, *MACHINE, "-qmp", "unix:%s,server=on,wait=off" % path],
                    b.dir + "/stock.log")
        b.closers.append(type("C", (), {"close": staticmethod(p.stop)}))
        q = QMP(path, p)
        missing = [e["name"] for e in q.cmd("query-qmp-schema") if e["name"] not in ours]
        q.close()
        assert not missing, missing


if __name__ == "__main__":
    sys.exit(main())
