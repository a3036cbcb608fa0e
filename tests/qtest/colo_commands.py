# Each line of the command table, against the built program and against stock QEMU: tools.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
docs/system/command-table.rst lists QEMU's COLO interface; every line of it has a case here,
or table_is_complete fails. Most ask two emulators with the same machine, netdev, filters and
disk the same questions, one of them under qemu-colo, and compare the answers: an error must
have the same class and text, a success the members that stock's has, of the same JSON types
(more of them are no difference). What differs on purpose stands in DIFFERENCES.
"""

import atexit
import fnmatch

import colo_qtest
from colo_qtest import *

TABLE = os.path.join(colo_qtest.HERE, "../../docs/system/command-table.rst")
SCHEMA = os.path.join(colo_qtest.HERE, "../../qapi")

# (line of the table, what of it, why). "what" is a pattern for "command: difference".
DIFFERENCES = [
    ("migrate-set-parameters", "*x-checkpoint-delay*0'*",
     "0 would leave the guest no time to run between two checkpoints"),
    ("xen-colo-do-checkpoint", "*not a COLO primary*",
     "a checkpoint that nobody takes is no success"),
    ("nbd-server-add, nbd-server-remove, nbd-server-stop", "nbd-server-add*{}*",
     "a disk that the guest uses may be exported, as to a mirror"),
    ("nbd-server-add, nbd-server-remove, nbd-server-stop", "nbd-server-remove: {}*",
     "so there is an export to be removed"),
    ("netdev_add, netdev_del", "netdev_add: *exactly one of 'fd', 'listen', 'connect'*",
     "mcast and udp are not ours, and the message has the name"),
    ("query-named-block-nodes, query-block", "*.actual-size is missing",
     "of a quorum stock adds its children up"),
    ("query-named-block-nodes, query-block", "*.dirty-flag is missing",
     "qcow2 is the storage daemon's"),
    ("query-named-block-nodes, query-block", "query-named-block-nodes: *is a list of*",
     "an image's file is a part of its node here"),
    ("human-monitor-command", "*Unknown driver*",
     "the reason is the block room's"),
    ("yank, query-yank", "query-yank: *is a list of 2, not 3",
     "a monitor's connection is not yanked: nothing of ours waits for it"),
]

stock_program = shutil.which("qemu-system-x86_64")


class Twins:
    """Stock QEMU and ours with one configuration."""

    def __init__(self):
        self.bed = colo_qtest.Bed(colo_qtest.find_program(), "twins", "0")
        self.used = set()
        self.line = None
        self.hosts = {}
        for name, program in (("ours", None), ("stock", stock_program)):
            self.hosts[name] = self.bed.host(name, *self.options(name), program=program)
        self.ours, self.stock = self.hosts["ours"], self.hosts["stock"]

    def options(self, name):
        d = self.bed.dir
        image = self.bed.image("disk-" + name, 4, "qcow2")
        return ["-name", "vm",
                "-netdev", "socket,id=hn0,listen=127.0.0.1:%d" % free_port(),
                "-device", "rtl8139,id=e0,netdev=hn0,mac=52:54:00:12:34:56",
                "-chardev", "socket,id=mirror0,path=%s/m-%s,server=on,wait=off" % (d, name),
                "-chardev", "socket,id=c0,path=%s/c-%s,server=on,wait=off" % (d, name),
                "-object", "filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0",
                "-object", "filter-redirector,netdev=hn0,id=redire0,queue=rx,outdev=c0",
                "-object", "iothread,id=iothread1",
                "-drive", "if=none,id=d0,driver=quorum,read-pattern=fifo,vote-threshold=1,"
                "children.0.file.filename=%s,children.0.driver=qcow2" % image,
                "-device", "virtio-blk-pci,drive=d0,id=vb0"]

    @staticmethod
    def ask(host, command, arguments):
        try:
            return True, host.cmd(command, arguments)
        except QMPError as e:
            return False, (e.cls, str(e))

    def allowed(self, text):
        for i, (line, what, _) in enumerate(DIFFERENCES):
            if line == self.line and fnmatch.fnmatch(text, what):
                self.used.add(i)
                return True
        return False

    def same(self, command, arguments=None):
        """Ask both; the answers, ours second."""
        stock = self.ask(self.stock, command, arguments)
        ours = self.ask(self.ours, command, arguments)
        if stock[0] and ours[0]:
            found = list(shape_differs(stock[1], ours[1], ""))
        else:
            found = [] if stock == ours else ["%s, not %s" % (ours[1], stock[1])]
        found = ["%s: %s" % (command, f) for f in found]
        found = [f for f in found if not self.allowed(f)]
        assert not found, "%s %s: %s" % (command, arguments or "", "; ".join(found))
        return stock[1], ours[1]

    def equal(self, command, arguments=None):
        """The same value, too."""
        stock, ours = self.same(command, arguments)
        assert stock == ours or self.allowed("%s: %r, not %r" % (command, ours, stock)), \
            (command, arguments, stock, ours)
        return ours


def kind(value):
    return {bool: "boolean", int: "number", float: "number", str: "string", list: "list",
            dict: "object", type(None): "null"}[type(value)]


def shape_differs(stock, ours, path):
    """What @ours lacks of @stock's members and types."""
    if kind(stock) != kind(ours):
        yield "%s is %s, not %s" % (path, kind(ours), kind(stock))
    elif isinstance(stock, dict):
        for key, value in stock.items():
            if key not in ours:
                yield "%s.%s is missing" % (path, key)
            else:
                yield from shape_differs(value, ours[key], "%s.%s" % (path, key))
    elif isinstance(stock, list) and stock and isinstance(stock[0], dict):
        if not ours:
            yield "%s is empty" % path
            return
        # What all of stock's elements have, each of ours must have.
        common = {k: v for k, v in stock[0].items() if all(k in e for e in stock)}
        for i, element in enumerate(ours):
            yield from shape_differs(common, element, "%s[%d]" % (path, i))
        if len(stock) > len(ours):
            yield "%s is a list of %d, not %d" % (path, len(ours), len(stock))


twins_made = []
lines_run = set()


def twins():
    """One pair for all lines; a new one after an accident."""
    if twins_made and not all(h.process.alive() for h in twins_made[-1].hosts.values()):
        twins_made.pop().bed.close()
    if not twins_made:
        twins_made.append(Twins())
    return twins_made[-1]


atexit.register(lambda: [t.bed.close() for t in twins_made])


# --- The table ---

def table():
    """{section: [(first cell, status, note)]}"""
    out, rows, title = {}, None, ""
    lines = open(TABLE).read().split("\n")
    for i, text in enumerate(lines):
        if i + 1 < len(lines) and text and set(lines[i + 1]) in ({"-"}, {"="}) and \
                len(lines[i + 1]) >= len(text):
            title = text
        if text.startswith("==================================  "):
            rules = 0 if rows is None else rules + 1
            if rows is None:
                rows = out.setdefault(title, [])
            elif rules == 2:
                rows = None
        elif rows is not None and rules == 1:
            cells = (text[:36].strip(), text[36:47].strip(), text[47:].strip())
            if cells[1]:
                rows.append(list(cells))
            else:
                for k in (0, 2):
                    rows[-1][k] = (rows[-1][k] + " " + cells[k]).strip()
    return out


LINES = {}


def line(section, cell):
    """A case of this line."""
    def add(fn):
        def run(b):
            t = twins() if fn.__code__.co_varnames[:1] == ("t",) else b
            if t is not b:
                t.line = cell
            lines_run.add(cell)
            return fn(t)
        run.__name__ = "%s: %s" % (section.split()[0].lower(), cell)
        run.__name__ = run.__name__.replace(" ", "_")
        assert (section, cell) not in LINES, cell
        LINES[section, cell] = run
        if not stock_program and fn.__code__.co_varnames[:1] == ("t",):
            def run_not(b):
                raise Skip("no stock QEMU")
            run_not.__name__ = run.__name__
            case(run_not)
        else:
            case(run)
        return fn
    return add


def ours_alone(section):
    """Names of the lines whose status is "ours"."""
    return {n for cell, status, _ in table()[section] if status == "ours" for n in names(cell)}


def names(cell):
    return [n for n in cell.replace(",", " ").split() if n]


def commands(cell):
    return line("Commands", cell)


def caps(*pairs):
    return {"capabilities": [{"capability": n, "state": s} for n, s in pairs]}


def pairs(properties):
    return {(p["name"], p["type"]) for p in properties}


def socket_chardev(path, **more):
    return {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": path}}, **more}}


def in_schema(t, *wanted):
    schema = {e["name"]: e for e in t.ours.cmd("query-qmp-schema")}
    for name in wanted:
        assert schema[name]["meta-type"] == "event", name


def schema_of(t):
    return {e["name"]: e for e in t.stock.cmd("query-qmp-schema")}


def members_of(schema, command, tag, value):
    """Members that stock's schema gives the variant @value of a command's arguments."""
    top = schema[schema[command]["arg-type"]]
    return {m["name"] for v in top["variants"] if v["case"] == value
            for m in schema[v["type"]]["members"]}


def note_words(section, start):
    """Words of the notes of the lines that begin with @start."""
    text = " ".join(note for cell, _, note in table()[section]
                    if cell == start or cell.startswith(start + " ("))
    return set(text.replace(",", " ").replace(":", " ").replace(";", " ").replace("`", " ")
               .replace(".", " ").split())


def refuses(b, *args):
    """What ours says to a command line that it does not take."""
    done = subprocess.run([b.program, *MACHINE, "-colo", "peer-timeout=6000", *args],
                          capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.returncode == 1, (args, done)
    return done.stderr


def starts(b, *args, **kw):
    host = b.host("h%d" % len(b.hosts), "-colo", "peer-timeout=6000", *args, **kw)
    return host


def differences_are_needed():
    """Each of DIFFERENCES of the lines that ran was seen."""
    unused = [d for i, d in enumerate(DIFFERENCES)
              if d[0] in lines_run and not any(i in t.used for t in twins_made)]
    assert not unused, unused


__all__ = ["DIFFERENCES", "LINES", "SCHEMA", "Twins", "caps", "commands", "differences_are_needed",
           "fnmatch", "in_schema", "line", "members_of", "names", "note_words", "ours_alone", "pairs",
           "refuses", "schema_of", "shape_differs", "socket_chardev", "starts",
           "stock_program", "table", "twins"]
