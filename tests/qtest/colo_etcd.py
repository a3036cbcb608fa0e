# A witness for tests: etcd, one member, on 127.0.0.1.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import shutil
import subprocess
import time

from colo_qtest import Skip, free_port


class Etcd:
    """@tls: a folder with ca-cert.pem, server-cert.pem, client-cert.pem and their keys."""

    def __init__(self, b, name="etcd", tls=None, more=()):
        if not shutil.which("etcd"):
            raise Skip("etcd is not installed")
        self.url = "http%s://127.0.0.1:%d" % ("s" if tls else "", free_port())
        self.auth = ["--cacert", tls + "/ca-cert.pem", "--cert", tls + "/client-cert.pem", "--key",
                     tls + "/client-key.pem"] if tls else []
        peer = "http://127.0.0.1:%d" % free_port()
        self.command = [
            "etcd", "--name", "w", "--data-dir", "%s/%s" % (b.dir, name), "--log-level", "error",
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", "w=" + peer, "--initial-cluster-token", name, *more]
        if tls:
            self.command += ["--cert-file", tls + "/server-cert.pem", "--key-file",
                             tls + "/server-key.pem", "--trusted-ca-file", tls + "/ca-cert.pem",
                             "--client-cert-auth"]
        self.start()

    def start(self):
        self.popen = subprocess.Popen(self.command, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL)
        for _ in range(100):
            if self.ctl("endpoint", "health", check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError("etcd does not start")

    def ctl(self, *words, check=True):
        done = subprocess.run(["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", self.url,
                               *self.auth, *words], capture_output=True, text=True, timeout=20)
        assert not check or done.returncode == 0, done.stderr
        return done

    def __enter__(self):
        return self

    def stop(self):
        self.popen.kill()
        self.popen.wait()

    def __exit__(self, *exc):
        self.stop()
