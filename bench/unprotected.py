#!/usr/bin/env python3
# Figures of the guest without COLO, alone or beside an equal one (--twin).
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "tests", "e2e"))

import colo_e2e  # noqa: E402


def measure(bed, hosts, seconds, mode, *args):
    """The first host's figures while all @hosts bear the same load."""
    runs = [bed.client(mode, seconds, *args, host=host) for host in hosts]
    for run in runs:
        assert run.wait() == 0, "%s: %s" % (mode, run.why())
    return runs[0].mode(mode)


def figures(bed, hosts, seconds):
    lines = measure(bed, hosts, seconds, "lines")
    yield "echo 64 B each 1 ms, rtt p50 / p99 ms", "%.2f / %.2f" % (
        lines["lat_ms"]["p50"], lines["lat_ms"]["p99"])
    for n in (1, 8):
        http = measure(bed, hosts, seconds, "http", "--concurrency", n, "--interval-us", 0)
        yield "HTTP 1 KiB, new connections x%d, /s" % n, "%.0f (p50 %.1f ms)" % (
            http["ops_per_s"], http["lat_ms"]["p50"])
    http = measure(bed, hosts, seconds, "http", "--keepalive", "--interval-us", 0)
    yield "HTTP 1 KiB, one connection, /s", "%.0f" % http["ops_per_s"]
    for mode in ("download", "upload"):
        bulk = measure(bed, hosts, seconds, mode, "--bytes", 16 << 20)
        yield "bulk %s, MB/s" % mode, "%.0f" % bulk["mb_per_s"]
    udp = measure(bed, hosts, seconds, "udp", "--udp-rate", 1000)
    yield "UDP echo 1000/s, p50 / p99 ms (lost)", "%.2f / %.2f (%d)" % (
        udp["lat_ms"]["p50"], udp["lat_ms"]["p99"], udp["lost"])
    stream = measure(bed, hosts, seconds, "stream")
    yield "stream of 1 ms, longest gap ms", "%.1f" % stream["max_gap_ms"]
    if bed.cfg.disk != "none" and len(hosts) == 1:
        disk = measure(bed, hosts, seconds, "disk", "--disk-rate", 0)
        yield "disk 4 KiB write + fdatasync by request, /s", "%.0f" % disk["ops_per_s"]


def main():
    parser = colo_e2e.arguments()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--twin", action="store_true")
    parser.add_argument("--nic", default="virtio-net-pci")
    parser.add_argument("--machine", default="pc")
    parser.add_argument("--mem", type=int, default=512)
    options = parser.parse_args()
    options.emulator = options.emulator or "qemu-system-x86_64"
    options.client = colo_e2e.find_program("colo-client", options.client)
    t = colo_e2e.Test(options, "unprotected", 0)
    with colo_e2e.Single(t, twin=options.twin, nic=options.nic, machine=options.machine,
                         mem=options.mem, dirty=0, check=0, diskrate=0) as bed:
        bed.start()
        print("%-48s %.1f s" % ("boot to ready", bed.boot_s))
        hosts = [colo_e2e.GUEST_IP, colo_e2e.TWIN_IP][:2 if options.twin else 1]
        for name, value in figures(bed, hosts, options.seconds):
            print("%-48s %s" % (name, value), flush=True)


if __name__ == "__main__":
    main()
