# Plots, as SVG by hand: no plotting library is needed.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import math

W, H, LEFT, TOP, BOTTOM = 760, 320, 52, 34, 40
COLOURS = ("#2a7ab8", "#c8741a", "#8a3f9a", "#3d8b40")


def nice(value):
    """The next of 1, 2, 5 times a power of ten: the step of an axis."""
    step = 1e-3
    while True:
        for k in (1, 2, 5):
            if step * k >= value:
                return step * k
        step *= 10


def pauses_svg(levels):
    """@levels: name -> {"points": [(seconds, ms)]}; one colour each."""
    points = [p for r in levels.values() for p in r["points"]]
    xmax = max([p[0] for p in points], default=1) * 1.02
    ymax = max([p[1] for p in points], default=1) * 1.1

    def x(v):
        return LEFT + v / xmax * (W - LEFT - 16)

    def y(v):
        return H - BOTTOM - v / ymax * (H - TOP - BOTTOM)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" '
           'font-family="sans-serif" font-size="12">' % (W, H),
           '<rect width="%d" height="%d" fill="white"/>' % (W, H)]
    step = nice(ymax / 6)
    for i in range(int(ymax / step) + 1):
        out.append('<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" '
                   'text-anchor="end">%g</text>' % (LEFT, y(i * step), W - 16, LEFT - 6,
                                                    y(i * step) + 4, i * step))
    step = nice(xmax / 8)
    for i in range(int(xmax / step) + 1):
        out.append('<text x="%.1f" y="%d" text-anchor="middle">%g</text>' % (
            x(i * step), H - BOTTOM + 16, i * step))
    out.append('<text x="%d" y="%d" text-anchor="middle">seconds</text>' % (W // 2, H - 8))
    out.append('<text x="8" y="18">guest pause of each checkpoint, ms</text>')
    for n, (name, r) in enumerate(levels.items()):
        colour = COLOURS[n % len(COLOURS)]
        dots = "".join('<circle cx="%.1f" cy="%.1f" r="2.4"/>' % (x(a), y(v))
                       for a, v in r["points"])
        out.append('<g fill="%s">%s<text x="%d" y="18">&#9679; %s</text></g>' % (
            colour, dots, 300 + 120 * n, name))
    return "\n".join(out + ["</svg>\n"])


def lines_svg(plots):
    """@plots: [(x label, y label, {name: [(x, y)]})], one below the other; x by its log."""
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" '
           'font-family="sans-serif" font-size="12">' % (W, H * len(plots)),
           '<rect width="%d" height="%d" fill="white"/>' % (W, H * len(plots))]
    for number, (xlabel, ylabel, series) in enumerate(plots):
        xs = sorted({x for s in series.values() for x, _ in s})
        top, ymax = H * number, max([y for s in series.values() for _, y in s],
                                    default=1) * 1.1
        low, high = math.log10(max(xs[0], 1)), math.log10(max(xs[-1], 10))

        def px(v):
            return LEFT + (math.log10(max(v, 1)) - low) / (high - low) * (W - LEFT - 30)

        def py(v):
            return top + H - BOTTOM - v / ymax * (H - TOP - BOTTOM)
        step = nice(ymax / 6)
        for i in range(int(ymax / step) + 1):
            out.append('<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" '
                       'text-anchor="end">%g</text>' % (LEFT, py(i * step), W - 16, LEFT - 6,
                                                        py(i * step) + 4, i * step))
        for v in xs:
            out.append('<text x="%.1f" y="%d" text-anchor="middle">%g</text>' % (
                px(v), top + H - BOTTOM + 16, v))
        out.append('<text x="%d" y="%d" text-anchor="middle">%s</text>' % (
            W // 2, top + H - 8, xlabel))
        out.append('<text x="8" y="%d">%s</text>' % (top + 18, ylabel))
        for n, (name, s) in enumerate(series.items()):
            colour = COLOURS[n % len(COLOURS)]
            line = " ".join("%.1f,%.1f" % (px(a), py(v)) for a, v in s)
            dots = "".join('<circle cx="%.1f" cy="%.1f" r="3"/>' % (px(a), py(v))
                           for a, v in s)
            out.append('<polyline points="%s" fill="none" stroke="%s"/><g fill="%s">%s'
                       '<text x="%d" y="%d">&#9679; %s</text></g>' % (
                           line, colour, colour, dots, 300 + 120 * n, top + 18, name))
    return "\n".join(out + ["</svg>\n"])
