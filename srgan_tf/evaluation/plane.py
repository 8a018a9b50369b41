"""The perception-distortion plane (Blau and Michaeli, CVPR 2018) as inline SVG."""

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# In SVG units, which are about CSS pixels on a phone, so that text is readable there.
_WIDTH, _HEIGHT = 360, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 10, 10, 42
_FONT, _CHARACTER = 12, 6.6  # height of a line, and about the width of a character
_LONGEST_LABEL = 24


class Point(NamedTuple):
    """A method in the plane: mean PSNR in dB and mean LPIPS."""

    psnr: float
    lpips: float


def draw(points: Mapping[str, Point], dials: Sequence[Sequence[tuple[str, str]]] = ()) -> str:
    """Draws mean PSNR (x axis) against mean LPIPS (y axis), with a labeled point for each method.

    Args:
        points: By method name; all values must be finite.
        dials: The (method, label) pairs that a line connects, in order.

    Returns:
        An <svg> element. Its colors are the page's CSS variables.
    """
    x_ticks = _ticks([point.psnr for point in points.values()])
    y_ticks = _ticks([point.lpips for point in points.values()], room=0.3)

    def x(psnr):
        share = (psnr - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(lpips):
        share = (lpips - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    places = {name: (x(point.psnr), y(point.lpips)) for name, point in points.items()}
    parts = []
    for tick in x_ticks:
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(_text(x(tick), _HEIGHT - _BOTTOM + 15, f"{tick:g}", "middle", "tick"))
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 5, y(tick) + 4, f"{tick:g}", "end", "tick"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_text(middle, _HEIGHT - 6, "PSNR in dB, higher is better", "middle", "tick"))
    parts.append(
        f'<g transform="translate(10 {(_HEIGHT - _BOTTOM + _TOP) / 2}) rotate(-90)">'
        + _text(0, 0, "LPIPS, lower is better", "middle", "tick")
        + "</g>"
    )
    for dial in dials:
        line = " ".join("{:.1f},{:.1f}".format(*places[name]) for name, _ in dial)
        parts.append(f'<polyline class="dial" points="{line}"/>')
    on_dial = {name: label for dial in dials for name, label in dial}
    for name, (cx, cy) in places.items():
        title = html.escape(f"{name}: {points[name].psnr:.2f} dB, LPIPS {points[name].lpips:.4f}")
        kind = "position" if on_dial.get(name, name) != name else "method"
        circle = f'<circle class="{kind}" cx="{cx:.1f}" cy="{cy:.1f}" r="5">'
        parts.append(f"{circle}<title>{title}</title></circle>")
    labels = {name: on_dial.get(name, name) for name in points}
    parts += _labels(labels, places, [[name for name, _ in dial] for dial in dials])
    summary = html.escape(
        "; ".join(f"{n}: PSNR {p.psnr:.2f} dB, LPIPS {p.lpips:.4f}" for n, p in points.items())
    )
    return (
        f'<svg class="plane" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{summary}">'
        + "".join(parts)
        + "</svg>"
    )


def _ticks(values: Sequence[float], room: float = 0.0) -> list[float]:
    """Returns round numbers at equal steps around the values, with `room` steps at both ends."""
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= spread / 5)
    first, last = math.floor(low / step - room), math.ceil(high / step + room)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _labels(
    labels: Mapping[str, str],
    places: Mapping[str, tuple[float, float]],
    lines: Sequence[Sequence[str]],
) -> list[str]:
    """Puts each label beside its point so that it covers no point, line or label, if possible."""
    spots = list(places.values())
    for line in lines:
        for a, b in itertools.pairwise(places[name] for name in line):
            spots += [[p + (q - p) * part / 20 for p, q in zip(a, b, strict=True)]
                      for part in range(4, 17)]  # fmt: skip
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    parts = []
    for name, label in labels.items():
        label = label if len(label) <= _LONGEST_LABEL else f"…{label[1 - _LONGEST_LABEL :]}"
        (x, y), width = places[name], len(label) * _CHARACTER
        # Right, left, below, above, and the corners: where the text is anchored.
        candidates = [
            ("start", x + 9, y + 4), ("end", x - 9, y + 4), ("middle", x, y + 18),
            ("middle", x, y - 9), ("start", x + 6, y + 15), ("end", x - 6, y - 7),
            ("start", x + 6, y - 7), ("end", x - 6, y + 15),
        ]  # fmt: skip
        boxes = {}
        for candidate in candidates:
            anchor, start, base = candidate
            left = start - {"start": 0, "middle": width / 2, "end": width}[anchor]
            box = (left, base - _FONT + 2, left + width, base + 2)
            if left >= _LEFT and box[2] <= _WIDTH and box[1] >= 0 and box[3] <= _HEIGHT - _BOTTOM:
                boxes[candidate] = box
        free = [c for c, box in boxes.items() if not any(_overlap(box, t) for t in taken)]
        anchor, start, base = (*free, *boxes, candidates[0])[0]
        taken.append(boxes.get((anchor, start, base), (start, base, start, base)))
        parts.append(_text(start, base, label, anchor, "label"))
    return parts


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )
