# A bench of rows: arguments, each row by itself, a table, JSON.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import json
import subprocess
import time

import colo_e2e
from e2e_net import NetError
from e2e_proc import QMPError

FAILURES = (AssertionError, QMPError, NetError, OSError, ValueError,
            subprocess.SubprocessError)


def arguments(rows, rounds):
    parser = colo_e2e.arguments()
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--only", action="append", choices=list(rows))
    parser.add_argument("--json", metavar="FILE")
    return parser


def parse(parser):
    options = parser.parse_args()
    options.emulator = colo_e2e.find_program("qemu-colo", options.emulator)
    options.client = colo_e2e.find_program("colo-client", options.client)
    return options


def run(rows, options, tell, show):
    """Run @rows (name: function of the options); @tell makes one row's result a line, @show
    prints the table. A row that fails is told, and the others go on. The exit status."""
    results = {}
    for name in options.only or rows:
        begin = time.monotonic()
        try:
            results[name] = rows[name](options)
            print("%-12s %s  (%.0f s)" % (name, tell(results[name]), time.monotonic() - begin),
                  flush=True)
        except FAILURES as e:
            print("FAILED: %s: %s" % (name, e), flush=True)
    show(results)
    if options.json:
        with open(options.json, "w") as f:
            json.dump(results, f, indent=1)
    return 0 if set(options.only or rows) == set(results) else 1
