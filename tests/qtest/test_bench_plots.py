#!/usr/bin/env python3
# What ./run bench draws of what it measured: every mode, in every plot, and the machine.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
import os
import sys
import xml.etree.ElementTree as ET

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE + "/../../bench", HERE + "/../e2e"]

import bench  # noqa: E402
import bench_modes  # noqa: E402
from bench_svg import distribution  # noqa: E402
from colo_qtest import case, main  # noqa: E402

FACTS = {"cores": 2, "cpu": "Some <CPU> & Co", "kernel": "6.1", "qemu": "QEMU 7.2"}


def texts(svg):
    return [t.text for t in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def dots(svg):
    """(x, y) of each dot by its colour, in order of the drawing."""
    return [(g.get("fill"), [(float(c.get("cx")), float(c.get("cy"))) for c in g
                             if c.tag.endswith("circle")])
            for g in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}g")]


def modes():
    """Results as bench_modes.measure() gives them: the third mode's pauses are the longest."""
    return [{"mode": mode, "interval_ms": n, "http8_per_s": 100 + 10 * i,
             "bulk_out_mb_s": 10 + i,
             "pauses": [(0.1 * k, 1 + 0.1 * k + i % 3) for k in range(20)]}
            for i, (mode, n) in enumerate(bench_modes.LEVELS)]


@case
def each_mode_is_in_each_plot(b):
    svg = bench.draw({"modes": modes()}, FACTS)["modes"]
    found = texts(svg)
    for what in ("HTTP answers a second", "bulk out, MB/s",
                 "guest pause of each checkpoint, ms", "per cent of checkpoints"):
        assert found.count(what) == 1, (what, found)
    for mode, n in bench_modes.LEVELS:
        name = bench_modes.label(mode, n)
        # Over time and the distribution; those without an epoch's length also by throughput.
        assert found.count("\u25cf " + name) == (2 if mode == "buffered" else 4), name
    assert found.count("\u25cf buffered") == 2
    # Four lengths of buffered epochs, and both others over all of them.
    drawn = dots(svg)
    assert [len(d) for _, d in drawn[:6]] == [4, 2, 2] * 2, drawn
    assert [len(d) for _, d in drawn[6:]] == [20] * 12, drawn
    assert len({colour for colour, _ in drawn[6:12]}) == 6, "modes of one colour"


@case
def what_is_more_is_drawn_higher(b):
    drawn = dots(bench.draw({"modes": modes()}, FACTS)["modes"])
    http = [y for _, y in drawn[0][1]]
    assert http == sorted(http, reverse=True) and len(set(http)) == 4, http
    over_time = drawn[6][1]
    assert over_time == sorted(over_time, key=lambda p: (p[0], -p[1])), over_time
    assert distribution([3.0, 1.0, 2.0, 2.0]) == [(1.0, 25), (2.0, 50), (2.0, 75), (3.0, 100)]


@case
def the_machine_is_named(b):
    level = {"points": [(0.5, 1.5), (1.0, 2.5)]}
    plots = bench.draw({"pause": {"idle": level, "20 MB/s": level}, "modes": modes(),
                        "growth-ram": [{"mem": m, "asked_mb_s": r,
                                        "pause": {"median": 1, "p99": 2}}
                                       for m in (512, 2048) for r in (0, 20)]}, FACTS)
    assert sorted(plots) == ["growth", "modes", "pause"], plots.keys()
    for name, svg in plots.items():
        said = " ".join(t or "" for t in texts(svg))
        for fact in FACTS.values():
            assert str(fact) in said, (name, fact)
    assert texts(plots["pause"]).count("\u25cf 20 MB/s") == 2


if __name__ == "__main__":
    sys.exit(main())
