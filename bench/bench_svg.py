# Plots, as SVG by hand: no plotting library is needed.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import dataclasses
import math
from xml.sax.saxutils import escape

W, H, LEFT, RIGHT, TOP, BOTTOM = 760, 320, 52, 30, 34, 40
FOOT = 40
COLOURS = ("#2a7ab8", "#c8741a", "#8a3f9a", "#3d8b40", "#b03030", "#555555")
# Of the machine, below each picture.
FACTS = ("cores", "cpu", "memory_mib", "kernel", "accel", "qemu", "load_at_start", "when")


@dataclasses.dataclass
class Plot:
    """@series: {name: [(x, y)]}."""

    xlabel: str
    ylabel: str
    series: dict
    log: bool = True     # x by its logarithm, what is below 1 stands at 1; a tick a value
    line: bool = True    # else dots alone


def nice(value):
    """The next of 1, 2, 5 times a power of ten: the step of an axis."""
    step = 1e-3
    while True:
        for k in (1, 2, 5):
            if step * k >= value:
                return step * k
        step *= 10


def distribution(values):
    """The share of @values, in per cent, that is at most so large: points of the CDF."""
    s = sorted(values)
    return [(v, 100 * (i + 1) / len(s)) for i, v in enumerate(s)]


def scale(plot):
    """(function from x to pixels, ticks)."""
    xs = sorted({x for s in plot.series.values() for x, _ in s}) or [0, 1]
    wide = W - LEFT - RIGHT
    if plot.log:
        low, high = math.log10(max(xs[0], 1)), math.log10(max(xs[-1], 10))
        return lambda v: LEFT + (math.log10(max(v, 1)) - low) / ((high - low) or 1) * wide, xs
    high = max(xs[-1], 1e-3) * 1.02
    step = nice(high / 8)
    return lambda v: LEFT + v / high * wide, [i * step for i in range(int(high / step) + 1)]


def axes(plot, top, px, py, ticks, ymax):
    out = []
    step = nice(ymax / 6)
    for i in range(int(ymax / step) + 1):
        out.append('<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" '
                   'text-anchor="end">%g</text>' % (LEFT, py(i * step), W - 16, LEFT - 6,
                                                    py(i * step) + 4, i * step))
    for v in ticks:
        out.append('<text x="%.1f" y="%d" text-anchor="middle">%g</text>' % (
            px(v), top + H - BOTTOM + 16, v))
    out.append('<text x="%d" y="%d" text-anchor="middle">%s</text>' % (
        W // 2, top + H - 8, escape(plot.xlabel)))
    out.append('<text x="8" y="%d">%s</text>' % (top + 18, escape(plot.ylabel)))
    return out


def curves(plot, top, px, py):
    """Lines, dots, and what they are."""
    out = []
    many = len(plot.series) > 4
    first, wide = (210, 91) if many else (262, 122)
    for n, (name, s) in enumerate(plot.series.items()):
        colour = COLOURS[n % len(COLOURS)]
        if plot.line:
            out.append('<polyline points="%s" fill="none" stroke="%s"/>' % (
                " ".join("%.1f,%.1f" % (px(a), py(v)) for a, v in s), colour))
        dots = "".join('<circle cx="%.1f" cy="%.1f" r="2.4"/>' % (px(a), py(v)) for a, v in s)
        out.append('<g fill="%s">%s<text x="%d" y="%d" font-size="%d">&#9679; %s</text></g>' % (
            colour, dots, first + wide * n, top + 18, 10 if many else 12, escape(name)))
    return out


def draw_plot(plot, top):
    ymax = max([y for s in plot.series.values() for _, y in s], default=1) * 1.1 or 1
    px, ticks = scale(plot)

    def py(v):
        return top + H - BOTTOM - v / ymax * (H - TOP - BOTTOM)
    return axes(plot, top, px, py, ticks, ymax) + curves(plot, top, px, py)


def svg(plots, facts=None):
    """@plots one below the other, and the machine's @facts."""
    high = H * len(plots) + (FOOT if facts else 0)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" '
           'font-family="sans-serif" font-size="12">' % (W, high),
           '<rect width="%d" height="%d" fill="white"/>' % (W, high)]
    for number, plot in enumerate(plots):
        out += draw_plot(plot, H * number)
    known = ["%s %s" % (k, facts[k]) for k in FACTS if k in (facts or {})]
    for n, part in enumerate((known[:4], known[4:])):
        if part:
            out.append('<text x="8" y="%d" font-size="11" fill="#555">%s</text>' % (
                H * len(plots) + 14 + 16 * n, escape(", ".join(part))))
    return "\n".join(out + ["</svg>\n"])


def pause_plots(points):
    """Pauses over time, and their distribution; @points: {name: [(seconds, ms)]}."""
    return [Plot("seconds", "guest pause of each checkpoint, ms", points,
                 log=False, line=False),
            Plot("guest pause up to, ms", "per cent of checkpoints",
                 {name: distribution([ms for _, ms in p]) for name, p in points.items()},
                 log=False)]
