"""Charts as SVG that takes its colours from the page, so that one drawing suits light, dark and paper."""

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup, escape

from rlhfkit.wording import number, percent

__all__ = [
    "DOTTED",
    "STAND_INS",
    "WIDE",
    "Bar",
    "Chart",
    "Colour",
    "Level",
    "Series",
    "Stripe",
    "bar_chart",
    "distance_chart",
    "label_axes",
    "line_chart",
    "path_chart",
    "printable",
    "reliability_chart",
    "render",
    "timeline_chart",
    "wrapped",
]


Colour = Literal["after", "before", "judge", "muted", "rank-1", "rank-2", "rank-3", "rank-4", "rank-5"]
"""Of the style sheet; rank-1 to rank-5 are a scale, from low to high."""

# Stand-ins that matplotlib draws with; each becomes a variable of the page's style sheet.
STAND_INS = {
    "ink": "#000001",
    "muted": "#000002",
    "grid": "#000003",
    "after": "#000004",
    "before": "#000005",
    "judge": "#000006",
    **{f"rank-{step}": f"#00001{step}" for step in range(1, 6)},
}
# In SVG units, of which a phone shows one per pixel: text stays legible there and grows on a desktop.
_WIDTH, _HEIGHT, _FONT_SIZE = 320, 190, 11
WIDE = 720
_MOST_POINTS = 240
DOTTED = (0, (1.5, 2))
_SETTINGS: dict[Any, object] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": _FONT_SIZE,
    "axes.titlesize": _FONT_SIZE,
    "axes.labelsize": _FONT_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": STAND_INS["muted"],
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": STAND_INS["grid"],
    "grid.linewidth": 0.8,
    "text.color": STAND_INS["ink"],
    "axes.titlecolor": STAND_INS["muted"],
    "axes.labelcolor": STAND_INS["muted"],
    "xtick.color": STAND_INS["muted"],
    "ytick.color": STAND_INS["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with what a reader needs to understand it."""

    title: str
    caption: str
    """How to read it."""
    svg: Markup
    legend: tuple[tuple[Colour, str], ...] = ()
    """Colour and name of each series, where there are several."""


@dataclass(frozen=True, slots=True)
class Series:
    """A curve."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: Colour = "after"
    spread: Sequence[float] | None = None
    """Half the height of a band around the curve."""
    smooth: bool = False
    """Draw the values pale, for they are noisy, and their trend over them."""


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line to compare with."""

    value: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its name, and its interval if it has one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: Colour = "muted"


@dataclass(frozen=True, slots=True)
class Stripe:
    """What somebody did from `start` to `end`."""

    start: float
    end: float
    what: str
    """One of `STRIPES`."""


STRIPES: dict[str, tuple[Colour, float]] = {
    "training": ("before", 0.7),
    "waiting": ("muted", 0.16),
    "sampling": ("after", 0.7),
    "scoring": ("judge", 0.7),
    "lost": ("muted", 0.7),
}
"""What is done → colour and height of a stripe; what is lost is hatched."""


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    caption: str,
    levels: Sequence[Level] = (),
    limits: tuple[float | None, float | None] = (None, None),
) -> Chart:
    """Curves over the course of the training.

    A long curve is thinned to the means of equal stretches, so that the page stays small.
    """

    def draw(axes: Any) -> None:
        for index, curve in enumerate(series):
            colour, style = STAND_INS[curve.colour], "-" if index == 0 else (0, (4, 2))
            xs, ys = _thin(curve.xs), _thin(curve.ys)
            if curve.spread is not None:
                spread = _thin(curve.spread)
                lower = [y - half for y, half in zip(ys, spread, strict=True)]
                upper = [y + half for y, half in zip(ys, spread, strict=True)]
                axes.fill_between(xs, lower, upper, color=colour, alpha=0.14, linewidth=0)
            if curve.smooth and len(xs) >= 24:
                axes.plot(xs, ys, color=colour, alpha=0.35, linewidth=0.9)
                ys = _trend(ys)
            axes.plot(xs, ys, color=colour, linestyle=style, marker="o" if len(xs) < 12 else None, markersize=3.5)
        for level in levels:
            axes.axhline(level.value, color=STAND_INS["ink"], linewidth=0.9, linestyle=DOTTED)
            place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points"}
            axes.annotate(level.label, (1, level.value), ha="right", va="bottom", zorder=4, **place)
        axes.margins(x=0.02)
        bottom, top = limits
        if bottom is not None and top is None:
            top = bottom + 1.06 * (axes.get_ylim()[1] - bottom)
        axes.set_ylim(bottom, top)
        label_axes(axes, x_label, y_label, whole_x=True)

    summary = "; ".join(f"{c.label} goes from {number(c.ys[0])} to {number(c.ys[-1])}" for c in series)
    legend = tuple((c.colour, c.label) for c in series) if len(series) > 1 else ()
    return Chart(title, caption, render(draw, title, f"{title} ({y_label}) over {x_label}: {summary}."), legend)


def path_chart(
    xs: Sequence[float], ys: Sequence[float], *, title: str, x_label: str, y_label: str, caption: str
) -> Chart:
    """How two values moved together: one point per iteration, paler the earlier."""

    def draw(axes: Any) -> None:
        points = list(zip(_thin(xs), _thin(ys), strict=True))
        alphas = [min(1.0, 0.2 + 0.8 * index / max(1, len(points) - 1)) for index in range(len(points))]
        path = list(zip(_trend([x for x, _ in points]), _trend([y for _, y in points]), strict=True))
        axes.plot(*zip(*path, strict=True), color=STAND_INS["muted"], linewidth=1.0)
        colour = STAND_INS["after"]
        axes.scatter(*zip(*points, strict=True), s=13, c=[colour] * len(points), alpha=alphas, linewidths=0, zorder=3)
        for label, place in (("start", path[0]), ("end", path[-1])):
            axes.annotate(label, place, xytext=(0, 12), textcoords="offset points", ha="center", zorder=4)
        axes.margins(0.09, 0.16)
        axes.grid(True, axis="both")
        label_axes(axes, x_label, y_label)

    start, end = (f"{number(xs[at])} {x_label} and {number(ys[at])} {y_label}" for at in (0, -1))
    alt = f"{title}: from {start} to {end}."
    return Chart(title, caption, render(draw, title, alt))


def distance_chart(
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    errors: Sequence[float],
    curve: Callable[[float], float] | None,
    best: tuple[float, float, float] | None,
    title: str,
    x_label: str,
    y_label: str,
    caption: str,
) -> Chart:
    """Points with half their intervals, the `curve` through them, and its `best` place between the interval's ends."""

    def draw(axes: Any) -> None:
        colour, ink = STAND_INS["judge"], STAND_INS["ink"]
        if best is not None:
            axes.axvspan(best[0], best[2], color=STAND_INS["muted"], alpha=0.16, linewidth=0)
            axes.axvline(best[1], color=ink, linewidth=0.9, linestyle=DOTTED)
            place = {"xycoords": ("data", "axes fraction"), "xytext": (3, 2), "textcoords": "offset points"}
            axes.annotate("best", (best[1], 0), va="bottom", zorder=4, **place)
        if curve is not None:
            grid = [1 + (max(xs) - 1) * step / 60 for step in range(61)]
            axes.plot(grid, [curve(x) for x in grid], color=ink, linewidth=1.2)
        bars = errors if len(errors) == len(ys) else None
        axes.errorbar(xs, ys, yerr=bars, fmt="o", markersize=3.5, color=colour, ecolor=colour, elinewidth=0.7)
        axes.margins(0.05, 0.1)
        axes.grid(True, axis="both")
        label_axes(axes, x_label, y_label)

    told = "" if best is None else f" The curve is highest at {number(best[1])}."
    alt = f"{title}: from {number(ys[0])} at {number(xs[0])} to {number(ys[-1])} at {number(xs[-1])}.{told}"
    return Chart(title, caption, render(draw, title, alt))


def bar_chart(bars: Sequence[Bar], *, title: str, x_label: str, caption: str, chance: float | None = 0.5) -> Chart:
    """Shares side by side, with their intervals and the line of pure chance, if there is one."""

    def draw(axes: Any) -> None:
        places = range(len(bars))
        for place, bar in zip(places, bars, strict=True):
            axes.barh(place, bar.value, height=0.62, color=STAND_INS[bar.colour], alpha=0.85)
            if bar.low is not None and bar.high is not None:
                whisker = [[max(0.0, bar.value - bar.low)], [max(0.0, bar.high - bar.value)]]
                axes.errorbar(bar.value, place, xerr=whisker, color=STAND_INS["ink"], linewidth=1.2, capsize=3)
            edge = max(bar.value, bar.high or bar.value)
            axes.annotate(percent(bar.value), (edge, place), xytext=(4, 0), textcoords="offset points", va="center")
        if chance is not None:
            axes.axvline(chance, color=STAND_INS["ink"], linewidth=0.9, linestyle=DOTTED)
        axes.set_yticks(list(places), [wrapped(bar.label) for bar in bars])
        axes.tick_params(axis="y", labelcolor=STAND_INS["ink"])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.14)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.grid(False)
        axes.set_xlabel(x_label)

    summary = "; ".join(f"{bar.label}: {percent(bar.value)}" for bar in bars)
    height = max(_HEIGHT, 62 + 36 * len(bars))
    return Chart(title, caption, render(draw, title, f"{title}: {summary}.", height=height))


def reliability_chart(
    confidences: Sequence[float], accuracies: Sequence[float], counts: Sequence[int], *, title: str, caption: str
) -> Chart:
    """Claimed against real accuracy; a calibrated model lies on the diagonal."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=STAND_INS["ink"], linewidth=0.9, linestyle=DOTTED)
        axes.plot(confidences, accuracies, color=STAND_INS["after"], linewidth=1.2)
        sizes = [12 + 130 * count / max(1, *counts) for count in counts]
        axes.scatter(confidences, accuracies, s=sizes, color=STAND_INS["after"], alpha=0.75, linewidths=0, zorder=3)
        lowest = min(0.45, *accuracies) - 0.05
        axes.set_xlim(0.47, 1.03)
        axes.set_ylim(max(-0.03, lowest), 1.05)
        axes.grid(True, axis="both")
        label_axes(axes, "sure of its choice (probability)", "right (share of pairs)")

    summary = "; ".join(f"{percent(c)} sure, {percent(a)} right" for c, a in zip(confidences, accuracies, strict=True))
    return Chart(title, caption, render(draw, title, f"{title}: {summary}."))


def timeline_chart(
    lanes: Sequence[tuple[str, Sequence[Stripe]]],
    *,
    marks: Sequence[tuple[float, str]],
    seconds: float,
    title: str,
    caption: str,
    summary: str,
) -> Chart:
    """Who did what when: a lane each, and lines with a name at `marks`."""

    def draw(axes: Any) -> None:
        for place, (_, stripes) in enumerate(lanes):
            for what, (colour, height) in STRIPES.items():
                bars = [(stripe.start, stripe.end - stripe.start) for stripe in stripes if stripe.what == what]
                axes.broken_barh(
                    bars,
                    (place - height / 2, height),
                    facecolors="none" if what == "lost" else STAND_INS[colour],
                    edgecolor=STAND_INS[colour],
                    hatch="////" if what == "lost" else None,
                    linewidth=0.3,
                )
        for at, name in marks:
            axes.axvline(at, color=STAND_INS["ink"], linewidth=0.7, linestyle=DOTTED, zorder=0)
            axes.annotate(name, (at, 1), xycoords=("data", "axes fraction"), xytext=(2, 3), textcoords="offset points")
        axes.set_yticks(range(len(lanes)), [wrapped(name) for name, _ in lanes])
        axes.tick_params(axis="y", labelcolor=STAND_INS["ink"])
        axes.set_ylim(len(lanes) - 0.4, -0.6)
        axes.set_xlim(0, seconds)
        axes.grid(False)
        axes.set_xlabel("seconds")

    used = {stripe.what for _, stripes in lanes for stripe in stripes}
    legend = tuple((colour, what) for what, (colour, _) in STRIPES.items() if what in used)
    height = 62 + 24 * len(lanes)
    alt = f"{title}: {summary}"
    return Chart(title, caption, render(draw, title, alt, height=height, width=WIDE), legend)


def label_axes(axes: Any, x_label: str, y_label: str, *, whole_x: bool = False) -> None:
    """Name the axes, and write their numbers as the page does."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel(x_label)
    axes.set_title(y_label, loc="left", pad=7)  # above the axis, where it costs no width
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole_x, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(round(value, 12))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(round(value, 12))))


def render(draw: Callable[[Any], None], title: str, alt: str, *, height: int = _HEIGHT, width: int = _WIDTH) -> Markup:
    """The SVG element of what `draw` puts on the axes; the same for the same data."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's own fonts draw the text
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained", frameon=False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        file = io.StringIO()
        nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    return Markup(_for_page(file.getvalue(), alt))  # matplotlib escapes the text that it draws


def _for_page(svg: str, alt: str) -> str:
    """The <svg> element alone, in the page's fonts and colours, without what only a file needs."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.S)
    view = re.search(r'viewBox="([^"]*)"', svg)
    assert view is not None
    opening = f'<svg viewBox="{view[1]}" role="img" aria-label="{escape(alt)}">'
    svg = opening + svg[svg.index(">") + 1 :].strip()
    svg = svg.replace("xlink:href", "href")
    referenced = set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', svg))
    kept = {name for pair in referenced for name in pair}
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in kept else "", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)  # 0.01 px is fine enough
    svg = svg.replace("; font-family: 'DejaVu Sans'", "")
    for name, stand_in in STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", svg)


def _thin(values: Sequence[float]) -> list[float]:
    """Means of equal stretches, at most `_MOST_POINTS` of them."""
    stretch = -(-len(values) // _MOST_POINTS)
    parts = [values[start : start + stretch] for start in range(0, len(values), stretch)] if values else []
    return [sum(part) / len(part) for part in parts]


def _trend(values: Sequence[float]) -> list[float]:
    """At each place the line through the neighbours up to a sixteenth of the length away, by least squares.

    That is their mean in the middle; at the ends, where they all lie on one side, a mean would lag behind.
    """
    reach = len(values) // 16
    trend = []
    for place in range(len(values)):
        places = range(max(0, place - reach), min(len(values), place + reach + 1))
        middle, mean = sum(places) / len(places), sum(values[at] for at in places) / len(places)
        square = sum((at - middle) ** 2 for at in places)
        slope = sum((at - middle) * (values[at] - mean) for at in places) / square if square else 0.0
        trend.append(mean + slope * (place - middle))
    return trend


def wrapped(label: str) -> str:
    """`label` on at most three lines; what an SVG may not hold is replaced."""
    return "\n".join(textwrap.wrap(printable(label), 18, max_lines=3, placeholder=" …", break_on_hyphens=False))


def printable(text: str) -> str:
    """`text` with a mark in the place of what an SVG may not hold."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
