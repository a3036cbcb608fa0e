# The command table: events, capabilities and parameters.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

from colo_commands import *
from colo_qtest import *


# --- Events ---

def events(cell):
    return line("Events", cell)


@events("COLO_EXIT")
def _(b):
    """Stock's COLO deadlocks under TCG; its schema tells the members."""
    primary, secondary = b.pair()
    secondary.cmd("x-colo-lost-heartbeat")
    for host in (primary, secondary):
        _, event = host.qmp.wait_event("COLO_EXIT")
        assert set(event["data"]) == {"mode", "reason"} and event["data"]["mode"] == host.name
    schema = {e["name"]: e for e in primary.cmd("query-qmp-schema")}
    members = {m["name"]: m["type"] for m in schema[schema["COLO_EXIT"]["arg-type"]]["members"]}
    assert set(members) == {"mode", "reason"}, members
    assert event["data"]["reason"] in schema[members["reason"]]["values"]


@events("COLO_DECISION")
def _(t):
    in_schema(t, "COLO_DECISION")  # sent: test_ownership.py


@events("COLO_LOAD_FAILED")
def _(t):
    in_schema(t, "COLO_LOAD_FAILED")  # sent: test_progress.py


@events("COLO_DISK_STALLED")
def _(t):
    in_schema(t, "COLO_DISK_STALLED")  # sent: test_disk_stall.py


@events("COLO_DISK_MERGE")
def _(t):
    in_schema(t, "COLO_DISK_MERGE")  # sent: unit/replication-behaviour


@events("COLO_HEARTBEAT_LOST, COLO_HEARTBEAT_RESTORED")
def _(t):
    in_schema(t, "COLO_HEARTBEAT_LOST", "COLO_HEARTBEAT_RESTORED")


@events("COLO_PAUSE_OVER_BUDGET")
def _(t):
    in_schema(t, "COLO_PAUSE_OVER_BUDGET")  # sent: qtest/qmp


@events("COLO_MODE")
def _(t):
    in_schema(t, "COLO_MODE")  # sent: e2e/modes


@events("COLO_PAIR")
def _(t):
    in_schema(t, "COLO_PAIR")  # sent: test_pair.py


@events("STOP, RESUME")
def _(t):
    begin = time.monotonic()
    t.equal("stop")
    t.equal("cont")
    for host in t.hosts.values():
        for name in ("STOP", "RESUME"):
            _, event = host.qmp.wait_event(name, after=begin)
            assert set(event) == {"timestamp", "event"}, event
            assert set(event["timestamp"]) == {"seconds", "microseconds"}


@events("SHUTDOWN, GUEST_PANICKED")
def _(b):
    """The guest's own end, on both programs; on an SVM: test_qmp.py."""
    said = []
    for program in (None, stock_program):
        host = b.host("h%s" % (program or "")[-3:], *(() if program else ("-colo", "peer-timeout=6000")),
                      *b.rom, program=program)
        host.wait("guest counts", host.runs)
        host.key("s")
        said.append(host.qmp.wait_event("SHUTDOWN")[1]["data"])
        assert host.ended() == 0
    assert said[0] == said[1], said


@events("RESET")
def _(t):
    begin = time.monotonic()
    t.equal("system_reset")
    said = [h.qmp.wait_event("RESET", after=begin)[1]["data"] for h in t.hosts.values()]
    assert said[0] == said[1], said


@events("MIGRATION")
def _(b):
    """A plain one, ours to stock: the same statuses as stock to stock, on both sides."""
    said = []
    for program in (None, stock_program):
        to = b.host("to%s" % bool(program), "-incoming", "unix:%s/mig" % b.dir,
                    program=stock_program)
        source = b.host("from%s" % bool(program),
                        *(() if program else ("-colo", "peer-timeout=6000")), program=program)
        for host in (to, source):
            host.cmd("migrate-set-capabilities", caps(("events", True)))
        if not program:
            said.append(None)
            source.x_colo()
            said[-1] = source.error("migrate", {"uri": "exec:cat"})
            source.x_colo(False)
        source.close()
        to.close()
    has_words(said[0], "tcp:host:port")


@events("QUORUM_FAILURE, QUORUM_REPORT_BAD")
def _(t):
    in_schema(t, "QUORUM_FAILURE", "QUORUM_REPORT_BAD")  # sent as stock's: unit/quorum-faults


@events("BLOCK_JOB_*, JOB_STATUS_CHANGE")
def _(t):
    begin = time.monotonic()
    said = []
    for name, host in t.hosts.items():
        host.cmd("drive-mirror", {"device": "d0", "job-id": "j1", "sync": "full",
                                  "target": "%s/copy1-%s" % (t.bed.dir, name), "format": "raw"})
        host.qmp.wait_event("BLOCK_JOB_READY", after=begin)
        host.cmd("block-job-cancel", {"device": "j1"})
        host.qmp.wait_event("BLOCK_JOB_COMPLETED", after=begin)
        time.sleep(0.2)
        said.append([(e["event"], e["data"].get("status"), sorted(e["data"]))
                     for at, e in list(host.qmp.events) if at > begin and
                     ("JOB" in e["event"])])
    assert said[0] == said[1], said


@events("BLOCK_EXPORT_DELETED")
def _(t):
    for host in t.hosts.values():
        host.cmd("nbd-server-start", {"addr": {"type": "inet", "data": {"host": "127.0.0.1",
                                                                        "port": "0"}}})
        host.cmd("nbd-server-add", {"device": "d0"})
        host.cmd("nbd-server-stop")
        data = host.qmp.wait_event("BLOCK_EXPORT_DELETED")[1]["data"]
        assert set(data) == {"id"}, data


@events("BLOCK_IO_ERROR")
def _(t):
    in_schema(t, "BLOCK_IO_ERROR")  # sent: test_block_errors.py


@events("everything else")
def _(t):
    begin = time.monotonic()
    t.equal("system_powerdown")
    for host in t.hosts.values():
        assert "data" not in host.qmp.wait_event("POWERDOWN", after=begin)[1]
        assert not [e for _, e in list(host.qmp.events) if "qemu-colo-" in json.dumps(e)]


# --- Capabilities and parameters ---

def parameters(cell):
    return line("Capabilities and parameters of migration", cell)


def capability(name):
    def check(t):
        for state in (True, False):
            t.equal("migrate-set-capabilities", caps((name, state)))
            got = t.equal("query-migrate-capabilities")
            assert {"capability": name, "state": state} in got, got
    return check


for capability_name in ("x-colo", "events", "return-path"):
    parameters(capability_name)(capability(capability_name))


@parameters("x-colo-mode, x-buffered-interval")
def _(b):
    host = b.primary()
    for mode in ("buffered", "adaptive", "colo"):
        host.cmd("migrate-set-parameters", {"x-colo-mode": mode, "x-buffered-interval": 40})
        got = host.cmd("query-migrate-parameters")
        assert (got["x-colo-mode"], got["x-buffered-interval"]) == (mode, 40), got
    has_words(host.error("migrate-set-parameters", {"x-colo-mode": "best"}),
              "x-colo-mode.*does not accept|does not accept.*best")
    has_words(host.error("migrate-set-parameters", {"x-buffered-interval": 0}),
              "x-buffered-interval")


@parameters("x-max-pause")
def _(b):
    host = b.primary()
    assert "x-max-pause" in host.cmd("query-migrate-parameters")
    host.cmd("migrate-set-parameters", {"x-max-pause": 5})
    assert host.cmd("query-migrate-parameters")["x-max-pause"] == 5
    has_words(host.error("migrate-set-parameters", {"x-max-pause": "long"}), "x-max-pause")


@parameters("x-checkpoint-delay")
def _(b):
    stock = b.host("s", program=stock_program).cmd("query-migrate-parameters") \
        if stock_program else {"x-checkpoint-delay": 20000}
    ours = b.primary().cmd("query-migrate-parameters")
    assert ours["x-checkpoint-delay"] == stock["x-checkpoint-delay"] == 20000, (ours, stock)


@case
def differences_are_seen(b):
    differences_are_needed()


if __name__ == "__main__":
    sys.exit(main())
