# A plot of pauses over time, as SVG by hand: no plotting library is needed.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

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
