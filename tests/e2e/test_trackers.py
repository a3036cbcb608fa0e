# The trackers on another kernel: Debian's, inside a guest.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The unit test of the trackers becomes the /init of a small guest with Debian's kernel, which
keeps soft-dirty bits and may lack what is newer.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

from colo_e2e import case, find_program, main
from e2e_guest import build_guest

INIT = """#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
/bin/test-tracker --tap -p /tracker/auto -p /tracker/soft-dirty -p /tracker/uffd
echo TRACKERS-DONE $?
/bin/busybox poweroff -f
"""


def make_initrd(folder, program):
    """An initramfs with @program, the libraries that it names, and busybox."""
    root = folder + "/root"
    for d in ("bin", "proc", "dev", "tmp"):
        os.makedirs("%s/%s" % (root, d))
    shutil.copy("/bin/busybox", root + "/bin/busybox")
    os.symlink("busybox", root + "/bin/sh")
    shutil.copy(program, root + "/bin/test-tracker")
    libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=True)
    for path in set(re.findall(r"(/\S+) \(0x", libraries.stdout)):
        os.makedirs(root + os.path.dirname(path), exist_ok=True)
        shutil.copy(path, root + path)
    with open(root + "/init", "w") as f:
        f.write(INIT)
    os.chmod(root + "/init", 0o755)
    subprocess.run("find . | cpio -o -H newc --quiet -R 0:0 >../initrd", shell=True, cwd=root,
                   check=True)
    return folder + "/initrd"


@case()
def debian_kernel(t):
    program = find_program("test-tracker", None)
    kernel, _ = build_guest()
    folder = tempfile.mkdtemp(prefix="colo-e2e-", dir=os.environ.get("COLO_E2E_DIR"))
    try:
        done = subprocess.run(
            ["qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-smp", "2", "-nodefaults",
             "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", kernel,
             "-initrd", make_initrd(folder, program), "-append",
             "console=ttyS0 quiet mitigations=off tsc=reliable no_timer_check"],
            capture_output=True, text=True, timeout=240, errors="replace")
    finally:
        shutil.rmtree(folder)
    text = done.stdout
    assert "TRACKERS-DONE 0" in text, text[-3000:]
    assert "not ok" not in text, text[-3000:]
    ok = re.findall(r"^ok \d+ (\S+)\r?$", text, re.M)
    assert len([name for name in ok if "soft-dirty" in name]) == 3, text[-3000:]
    chosen = re.search(r"^# (soft-dirty|uffd-wp|compare) \(", text, re.M)
    assert chosen, text[-3000:]
    return "auto takes %s; %d tests" % (chosen.group(1), len(ok))


if __name__ == "__main__":
    sys.exit(main())
