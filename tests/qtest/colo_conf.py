# coloctl in the tests: the tool, a VM of two hosts with its vm.conf, findings, certificates.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

from colo_qtest import *
from e2e_proc import Process  # after the path that colo_qtest has set

OK, FAILED, USAGE, UNPROTECTED, LOST, UNREACHABLE = range(6)


def tool(b):
    path = os.path.join(os.path.dirname(b.program), "..", "tools", "coloctl")
    return path if os.path.exists(path) else shutil.which("coloctl")


def ctl(b, *words, expect=OK, timeout=60, **kw):
    """Its standard output; standard error must be empty at success, and speak otherwise."""
    done = subprocess.run([tool(b), *words], stdin=subprocess.DEVNULL, text=True, errors="replace",
                          capture_output=True, timeout=timeout, **kw)
    assert done.returncode == expect, "%s: status %d: %s%s" % (words, done.returncode,
                                                              done.stdout, done.stderr)
    assert "\033" not in done.stdout + done.stderr, "colours without a terminal"
    if expect in (FAILED, USAGE, UNREACHABLE):
        lines = done.stderr.strip().splitlines()
        assert lines and all(x.startswith("coloctl: ") for x in lines), done.stderr
        return lines[-1]
    assert "coloctl: " not in done.stderr, "a complaint, and status %d: %s" % (expect, done.stderr)
    return done.stdout


def port_base(b):
    """A thousand ports of this program's, free on both hosts."""
    while True:
        base = FIRST_PORT + b.rng.randrange(0, PORTS - 1000, 10)
        try:
            for address in ("127.0.0.1", "127.0.0.2"):
                for port in (1, 3, 4, 5, 995, 996, 997, 998, 999):
                    with socket.socket() as s:
                        s.bind((address, base + port))
            return base
        except OSError:
            pass


class Vm:
    """A vm.conf for two hosts, 127.0.0.1 and 127.0.0.2, on this machine."""

    def __init__(self, b, disk=True, **more):
        self.b = b
        self.file = b.dir + "/vm.conf"
        self.runs = {}
        base = self.base = port_base(b)
        pair = "".join("%s = %s\n" % (k.replace("_", "-"), v) for k, v in more.items())
        with open(self.file, "w") as f:
            f.write("""[vm]
name = vm1
accel = tcg
memory = 32
args = -option-rom %s/guest.rom
[hosts]
a = 127.0.0.1
b = 127.0.0.2
[pair]
port-base = %d
%s[run]
qemu-colo = %s
state-dir = %s/%%h/state
run-dir = %s/%%h/run
""" % (b.dir, base, pair, os.path.abspath(b.program), b.dir, b.dir))
            if disk:
                f.write("[disk.root]\nimage = %s/%%h.raw\n" % b.dir)
        for who in "ab" if disk else "":
            b.image(who + ".raw", 4)

    def run(self, who, *words):
        """Start "coloctl run"."""
        p = Process("run " + who, [tool(self.b), "run", self.file, "--host", who, *words],
                    "%s/%s.log" % (self.b.dir, who))
        p.close = p.stop
        p.name = "run " + who
        self.runs[who] = p
        self.b.hosts.append(p)
        return p

    def words(self, command, who, *more):
        return [command, *more, self.file, "--host", who]

    def ctl(self, command, who, *more, **kw):
        return ctl(self.b, *self.words(command, who, *more), **kw)

    def wait(self, who, state, timeout=30, **want):
        end = time.monotonic() + timeout
        while True:
            done = subprocess.run([tool(self.b), *self.words("status", who, "--json")],
                                  capture_output=True, text=True, timeout=60)
            s = json.loads(done.stdout) if done.stdout else {"state": None}
            if s["state"] == state and all(s[k] == v for k, v in want.items()):
                return s
            within(end, lambda: "%s: %s %s" % (who, s.get("state"), done.stderr))
            time.sleep(0.1)

    def role(self, who, role=None, timeout=10):
        """What it has written down."""
        end = time.monotonic() + timeout
        while True:
            try:
                with open("%s/%s/state/role" % (self.b.dir, who)) as f:
                    got = f.read().strip()
            except FileNotFoundError:
                got = None
            if got == role or role is None:
                return got
            within(end, lambda: "role %s, expected %s" % (got, role))
            time.sleep(0.05)

    def said(self, who, words, timeout=10):
        end = time.monotonic() + timeout
        while words not in self.runs[who].output():
            within(end, lambda: "no '%s' in: %s" % (words, self.runs[who].output()))
            time.sleep(0.05)

    def kill_tree(self, who):
        p = self.runs[who]
        pids = p.children()
        for pid in [p.pid] + pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        p.wait(20)


def findings(text):
    """{what: (level, found)} of coloctl check."""
    got = {}
    for line in text.splitlines():
        level, _, rest = line.partition("  ")
        if level in ("ok", "warn", "FAIL"):
            what, _, found = rest.strip().partition(": ")
            if len(what) == 1:
                peer, (what, _, found) = what, found.partition(": ")
                what = peer + ": " + what
            got[what] = (level, found)
    return got


def serving(b, vm, who):
    """A "coloctl check --serve" that listens."""
    p = Process("serve", [tool(b), *vm.words("check", who, "--serve")], b.dir + "/serve.log")
    p.close = p.stop
    b.hosts.append(p)
    end = time.monotonic() + 20
    while "waiting for" not in p.output():
        assert p.alive(), p.output()
        within(end, lambda: p.output())
        time.sleep(0.05)
    return p


def check(b, vm, who, expect):
    done = subprocess.run([tool(b), *vm.words("check", who)], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == expect, done.stdout + done.stderr
    return findings(done.stdout), done.stdout


def credentials(b, more=""):
    """A CA and the certificates of both endpoints, in QEMU's names. @more: of the server's."""
    def tool(*args):
        subprocess.run(["certtool", *args], check=True, capture_output=True)
    d = b.dir + "/pki"
    os.mkdir(d)
    for name, lines in (("ca", "ca\ncert_signing_key\n"),
                        ("server", "dns_name=there\nip_address=127.0.0.1\ntls_www_server\n%s"
                         "encryption_key\nsigning_key\n"),
                        ("client", "tls_www_client\nencryption_key\nsigning_key\n")):
        with open("%s/%s.info" % (d, name), "w") as f:
            f.write("cn=%s\nexpiration_days=10\n%s" % (
                name, lines % more if "%s" in lines else lines))
        key = "%s/%s-key.pem" % (d, name)
        tool("--generate-privkey", "--ecc", "--outfile", key)
        if name == "ca":
            tool("--generate-self-signed", "--template", "%s/ca.info" % d, "--load-privkey",
                 key, "--outfile", d + "/ca-cert.pem")
        else:
            tool("--generate-certificate", "--template", "%s/%s.info" % (d, name),
                 "--load-privkey", key, "--load-ca-certificate", d + "/ca-cert.pem",
                 "--load-ca-privkey", d + "/ca-key.pem", "--outfile",
                 "%s/%s-cert.pem" % (d, name))
    return [["-object", "tls-creds-x509,id=tls0,dir=%s,endpoint=%s" % (d, e)]
            for e in ("client", "server")]
