# The documents: they can be built, and they name what the program knows.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import fnmatch
import functools
import glob
import re

from colo_qtest import *

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
# Members that are for the emulator alone, are refused where ours would need them, or mean
# nothing to QEMU itself (detach).
UNREAD = ("cpu-index", "allocation-depth", "fixed-iothread", "detach")
OURS = ("block", "chardev", "migration", "monitor", "net", "system")


def read(*paths):
    text = {}
    for pattern in paths:
        for path in sorted(glob.glob(os.path.join(ROOT, pattern), recursive=True)):
            with open(path) as f:
                text[os.path.relpath(path, ROOT)] = f.read()
    assert text, paths
    return text


def named(word, text):
    return word in text and re.search(r"(?<![\w-])%s(?![\w-])" % re.escape(word), text)


def known_options(b, *words):
    """What the program says that it knows, when it is given what it does not."""
    done = subprocess.run([b.program, *words], capture_output=True, text=True, timeout=60,
                          stdin=subprocess.DEVNULL)
    found = re.search(r"Invalid parameter 'zzz' \(known: (.*)\)", done.stderr)
    assert done.returncode != 0 and found, done.stderr
    return found.group(1).split(", ")


@case
def every_page_builds(b):
    try:
        from docutils.core import publish_string
    except ImportError:
        raise Skip("no python3-docutils")
    pages = read("docs/*/*.rst")
    for path, text in pages.items():
        publish_string(text, source_path=os.path.join(ROOT, path), writer_name="html",
                       settings_overrides={"halt_level": 2, "report_level": 5})
    return "%d pages" % len(pages)


@case
def every_link_leads_somewhere(b):
    """Pages that pages name, and paths of the tree in any document."""
    tops = "|".join(OURS + ("bench", "contrib", "docs", "include", "qapi", "tests", "tools", "util"))
    for path, text in read("docs/*/*.rst", "*.md").items():
        here = os.path.dirname(os.path.join(ROOT, path))
        for page in re.findall(r"<([\w./-]+\.rst)>`_", text) + re.findall(r"\]\(([\w./-]+)\)", text):
            assert os.path.exists(os.path.join(here, page)), "%s: no %s" % (path, page)
        for name in re.findall(r"(?<![\w/.-])((?:%s)/[\w/-]+\.(?:[ch]|py|rst|json|sh|conf|pml))\b"
                               % tops, text):
            assert os.path.exists(os.path.join(ROOT, name)), "%s: no %s" % (path, name)


@case
def options_are_written_up(b):
    """All that the program takes is in the manual, and the other way round."""
    manual = read("docs/system/*.rst")["docs/system/qemu-colo.rst"]
    known = known_options(b, "-colo", "zzz=1")
    assert len(known) > 30, known
    heartbeat = known_options(b, "-object", "colo-heartbeat,id=h,zzz=1", "-colo", "mode=colo")
    missing = [k for k in known + heartbeat if k not in ("qom-type", "id") and not named(k, manual)]
    assert not missing, "not in the manual: %s" % missing
    for page, text in read("docs/system/*.rst", "docs/man/*.rst", "README.md").items():
        for line in re.findall(r"(?<!\w)-colo ([a-z-]+=\S*)", text):
            for key in re.findall(r"(?:^|,)([a-z-]+)=", line):
                assert key in known or key == "key", "%s: -colo has no %s" % (page, key)
    table = manual.split("\nOptions of qemu-colo itself\n", 1)[1].split("\n``-trace", 1)[0]
    for key in re.findall(r"^``([a-z-]+)=", table, re.M):
        assert key in known, "the manual's -colo %s does not exist" % key


@case
def schema_and_code_agree(b):
    """Each command and event of the schema is made or answered, and documented there; each
    member of a structure is written somewhere."""
    schema = "\n".join(read("qapi/*.json").values())
    code = "\n".join(read(*("%s/**/*.[ch]" % room for room in OURS)).values())
    commands = re.findall(r"'command': '([\w-]+)'", schema)
    events = re.findall(r"'event': '([\w-]+)'", schema)
    assert len(commands) > 40 and len(events) > 10
    for name in commands:
        words = re.sub(r"\W", "_", name)
        assert "qmp_" + words in code or "(%s," % words in code, "nobody answers " + name
    for name in events:
        assert '"%s"' % name in code, "nobody sends " + name
    for name in commands + events:
        assert "@" + name in schema, name + " is not described"
    for name in re.findall(r"'\*?([a-z][a-z0-9-]+)': *\[?'", re.sub(
            r"'(struct|enum|command|event|returns|union|base|discriminator)': *\[?'", "", schema)):
        assert '"%s"' % name in code or name in UNREAD, "the schema's member %s is unknown to the code" % name


def unit_tests(b):
    """Every path of the unit tests, as the programs tell."""
    paths = set()
    for program in glob.glob(os.path.join(os.path.dirname(b.program), "../tests/unit/test-*")):
        if os.path.isfile(program) and os.access(program, os.X_OK):
            said = subprocess.run([program, "-l"], capture_output=True, text=True, timeout=60)
            paths.update(x for x in said.stdout.splitlines() if x.startswith("/"))
    if len(paths) < 300:
        raise Skip("the unit tests are not built")
    return paths


@functools.cache
def cases():
    """{(e2e or qtest, file): {case: whether ./run test runs it}}."""
    found = {}
    for path in sorted(glob.glob(os.path.join(ROOT, "tests/qtest/test_*.py"))):
        with open(path) as f:
            names = re.findall(r"^@case\ndef (\w+)", f.read(), re.M)
        found["qtest", os.path.basename(path)[5:-3]] = dict.fromkeys(names, True)
    for path in sorted(glob.glob(os.path.join(ROOT, "tests/e2e/test_*.py"))):
        with open(path) as f:
            # A case that no list shows is run by its name alone.
            names = dict.fromkeys(re.findall(r"^@\w+\(.*\)\ndef (\w+)\(t\)", f.read(), re.M), False)
        said = subprocess.run([sys.executable, path, "--list"], capture_output=True, text=True,
                              timeout=120)
        names.update((n, int(x) > 0) for n, x in re.findall(r"^(\S+) +x(\d+)$", said.stdout, re.M))
        found["e2e", os.path.basename(path)[5:-3]] = names
    return found


def matching(known, kind, name, pattern):
    """The cases that "file: pattern" means; None if there is no such file."""
    names = known.get((kind, name))
    return names if names is None else {
        n: run for n, run in names.items() if fnmatch.fnmatch(n, pattern.replace("...", "*"))}


@case
def tests_that_documents_name_exist(b):
    """What a page says of a test can be run, and is run by ./run test unless it says otherwise."""
    unit, known = unit_tests(b), cases()
    assert len(known) > 40 and known["e2e", "failover"]["link_cut_secondary_chosen"]
    files, checked = {name for _, name in known}, 0
    for path, text in read("docs/devel/*.rst", "docs/interop/*.rst", "docs/system/*.rst").items():
        for word in re.findall(r"``([^`]+)``", text):
            word = re.sub(r"\s+", " ", word)
            if re.fullmatch(r"/[a-z0-9-]+(/[\w*-]+)+", word) and \
                    word.split("/")[1] in {u.split("/")[1] for u in unit}:
                assert fnmatch.filter(unit, word), "%s: no test %s" % (path, word)
                checked += 1
            m = re.fullmatch(r"(qtest/|test_|)(\w+)(?:\.py)?: ([\w*]+(?:\.\.\.)?)", word)
            if not m or m[2] not in files:
                assert not m or m[1] == "", "%s: no such file of tests: %s" % (path, word)
                continue
            kind = {"qtest/": "qtest", "test_": "e2e", "": "qtest"}[m[1]]
            got = matching(known, kind, m[2], m[3])
            if got is None and m[1] == "test_":
                got = matching(known, "qtest", m[2], m[3])
            assert got, "%s: no case %s" % (path, word)
            at = re.sub(r"\s+", " ", text)
            by_name = re.search(re.escape("``%s``" % word) + r"[^.;]{0,30}by name", at)
            assert any(got.values()) or by_name, "%s: ./run test does not run %s" % (path, word)
            checked += 1
    assert checked > 100, checked
    return "%d names" % checked


@case
def each_expected_outcome_has_its_test(b):
    """Every row of the tables of who may speak names a case, which ./run test runs."""
    known, rows = cases(), 0
    page = read("docs/devel/ownership.rst")["docs/devel/ownership.rst"]
    page = page.split("\nExpected outcomes\n", 1)[1]
    default, border, column, got = None, 0, 0, None
    for line in page.splitlines():
        if re.fullmatch(r"=+  =+  =+", line):
            border, column = (border + 1) % 3, line.rindex("  ") + 2
            continue
        file = re.search(r"``test_(\w+)\.py``", line)
        if border < 2:
            if file or "``tests/qtest``" in line:
                default = ("e2e", file[1]) if file else ("qtest", None)
            continue
        if line.startswith(" ") or "  " not in line.strip():
            continue  # goes on with the row above
        last = line[column:].strip()
        for word in re.findall(r"``([^`]+)``", last):
            m = re.fullmatch(r"(qtest/)?(?:(\w+): )?([\w*]+(?:\.\.\.)?)", word)
            assert m, "no case: " + word
            kind, name = ("qtest", m[2]) if m[1] or not default[1] else default
            got = matching(known, kind, name, m[3])
            if not got and not m[1]:  # of another file
                got = next((v for k, v in ((k, matching(known, *k, m[3])) for k in known) if v), None)
            assert got and all(got.values()), "%s: %s" % (line, got)
        assert got and (last.startswith("the same") or "``" in last), "no case for: " + line
        rows += 1
    assert rows >= 40, rows
    return "%d rows" % rows


@case
def documents_name_real_things(b):
    """An event, a command or a member of the status in a document exists."""
    code = "\n".join(read("**/*.[ch]", "qapi/*.json").values())
    stock = ("BLOCK_", "MIGRATION_")
    for path, text in read("docs/*/*.rst", "*.md").items():
        for name in set(re.findall(r"``(COLO_[A-Z_]+[A-Z]|x-colo-[a-z-]+[a-z]|query-colo-[a-z]+)``", text)):
            if not name.startswith(stock):
                assert named(name, code), "%s: there is no %s" % (path, name)


@case
def status_is_written_up(b):
    """Every member of query-colo-status, on both sides of a pair, is in the manual or the schema."""
    text = "\n".join(read("docs/system/*.rst", "qapi/*.json").values())

    def walk(value, where):
        for key, inner in (value.items() if isinstance(value, dict) else ()):
            known = "``%s``" % key in text or "@%s:" % key in text
            assert known, "%s%s is not written up" % (where, key)
            walk(inner[0] if isinstance(inner, list) and inner else inner, where + key + ".")
    p, s = b.pair()
    for host in (p, s):
        walk(host.status(), "")


if __name__ == "__main__":
    sys.exit(main())
