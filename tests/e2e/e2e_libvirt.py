# libvirt for the end-to-end tests: a daemon of its own a host, and virsh.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Each host has a libvirtd in the host's network namespace and in a mount namespace of its
own, in which libvirt's directories (/etc, /run, /var/lib, /var/cache, /var/log) are
folders of the test. Nothing of the machine's libvirt is seen or touched, and the daemon
dies with the test. virsh reaches it through the socket in the host's folder.
"""

import os
import shutil
import signal
import subprocess
import time

from e2e_proc import Process, QMPError

DAEMON = "/usr/sbin/libvirtd"
DRIVER = "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so"
EMULATOR_USER = 64055  # as Debian's libvirt-qemu; nobody of that name is needed
PROGRAMS = ("/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-storage-daemon",
            "/usr/sbin/tc")
PLACES = ("etc/libvirt", "run/libvirt", "var/lib/libvirt", "var/cache/libvirt",
          "var/log/libvirt")

QEMU_CONF = """\
user = "libvirt-qemu"
group = "libvirt-qemu"
dynamic_ownership = 1
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = [ ]
"""

LIBVIRTD_CONF = """\
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
auth_unix_rw = "none"
auth_unix_ro = "none"
log_level = 3%(filters)s
log_outputs = "3:stderr%(debug)s"
"""


def missing():
    """Why libvirt cannot be tried here, or None."""
    for path, package in ((DAEMON, "libvirt-daemon"), (DRIVER, "libvirt-daemon-driver-qemu"),
                          (shutil.which("virsh"), "libvirt-clients")):
        if not path or not os.path.exists(path):
            return "no libvirt: apt-get install " + package
    return None


class Libvirt:
    """A running libvirtd on host @who of @network, with its state below @folder."""

    def __init__(self, network, who, folder, uid=EMULATOR_USER):
        self.root = os.path.join(folder, "libvirt-" + who)
        self.uid = uid
        # No other driver, and no other emulator: probing one takes seconds.
        for folder, files in (("drivers", [DRIVER]), ("bin", PROGRAMS)):
            os.makedirs("%s/%s" % (self.root, folder))
            for path in files:
                os.symlink(path, "%s/%s/%s" % (self.root, folder, os.path.basename(path)))
        # /run and the rest belong to the machine: new ones, seen by the daemon alone.
        script = ["mount --make-rprivate /"]
        script += ["mount -t tmpfs -o mode=755 tmpfs " + place
                   for place in ("/run", "/var/lib", "/var/cache", "/var/log")]
        for place in PLACES:
            os.makedirs("%s/%s" % (self.root, place))
            script += ["mkdir -p /" + place, "mount --bind '%s/%s' /%s" % (
                self.root, place, place)]
        # The daemon insists on its default user, whatever its configuration says.
        for name, line in (("passwd", "libvirt-qemu:x:%d:%d::/:/bin/false\n"),
                           ("group", "libvirt-qemu:x:%d:\n")):
            with open("/etc/" + name) as f:
                kept = [x for x in f if not x.startswith("libvirt-qemu:")]
            self._write(name, "".join(kept) + line % ((uid,) * line.count("%d")))
            script.append("mount --bind '%s/%s' /etc/%s" % (self.root, name, name))
        debug = ' 1:file:%s/debug.log' % self.root if os.environ.get("COLO_E2E_KEEP") else ""
        self._write("etc/libvirt/qemu.conf", QEMU_CONF)
        self._write("etc/libvirt/libvirtd.conf", LIBVIRTD_CONF % {"debug": debug, "filters":
            '\nlog_filters = "1:qemu 1:command"' if debug else ""})
        # TCG is tried here, in a /dev without KVM: one that root may use and the emulator's
        # user may not would make libvirt probe again and again.
        os.mkdir(self.root + "/dev")
        script += ["cd '%s'" % self.root, "mount -t tmpfs -o mode=755 tmpfs dev",
                   "cd dev; mkdir net pts shm mapper",
                   "cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty .",
                   "cp -a /dev/ptmx .; cp -a /dev/net/tun net/",
                   "mount --rbind /dev/pts pts; mount --rbind /dev/shm shm",
                   "cd ..; umount -Rl /dev || true; mount --move dev /dev; cd /",
                   "export LIBVIRT_DRIVER_DIR='%s/drivers' PATH='%s/bin'" % (
                       self.root, self.root),
                   "exec %s --config /etc/libvirt/libvirtd.conf" % DAEMON]
        self.process = Process("libvirtd " + who, network.wrap(
            who, ["unshare", "--mount", "/bin/sh", "-ec", "\n".join(script)]),
            self.root + "/libvirtd.log")
        self.socket = self.root + "/run/libvirt/libvirt-sock"

    def wait_ready(self):
        end = time.monotonic() + 60
        while self.virsh("version", check=False).returncode:
            if not self.process.alive() or time.monotonic() > end:
                raise QMPError("libvirtd: " + self.process.output()[-2000:])
            time.sleep(0.1)

    def _write(self, path, text):
        with open(os.path.join(self.root, path), "w") as f:
            f.write(text)

    def virsh(self, *words, check=True, timeout=60):
        uri = "qemu+unix:///system?socket=" + self.socket
        done = subprocess.run(["virsh", "-q", "-c", uri, *words], capture_output=True,
                              text=True, timeout=timeout)
        if check and done.returncode:
            raise QMPError("virsh %s: %s" % (" ".join(words), done.stderr.strip()))
        return done.stdout.strip() if check else done

    def pid(self, name):
        """Of the domain's emulator: qemu-colo, where the domain uses COLO; 0: none."""
        try:
            with open("%s/run/libvirt/qemu/%s.pid" % (self.root, name)) as f:
                return int(f.read())
        except (FileNotFoundError, ValueError):
            return 0

    def log(self, name):
        try:
            with open("%s/var/log/libvirt/qemu/%s.log" % (self.root, name)) as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def close(self):
        """The daemon first, and then the domains, which would outlive it."""
        self.process.stop()
        folder = self.root + "/run/libvirt/qemu"
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            if name.endswith(".pid") and self.pid(name[:-4]):
                try:
                    os.kill(self.pid(name[:-4]), signal.SIGTERM)
                except ProcessLookupError:
                    pass
