"""Figures as inline SVG (in the reader's text colour, so that light and dark pages both work) and as PNG.

Drawn on `Figure` objects without pyplot: no window, no current figure, and settings live in an `rc_context`.
"""

import base64
import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.image import imread
from matplotlib.transforms import offset_copy

from ehrlab.core.files import slug
from ehrlab.evaluation.curves import CalibrationBin, grid
from ehrlab.evaluation.metrics import BoolArray, FloatArray

# Seven hues that differ for colour-blind readers and show on white and on dark grey; then again with dashes.
_COLOURS = ("#2f7fc1", "#d9812b", "#2f9e77", "#c2569b", "#8a74d6", "#a58a1f", "#cf4b5a")
_DASHES = ("-", "--", ":")
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "*")  # of what models are compared with
_INK = "#14181d"  # stands for the page's text colour: replaced in the SVG, dark on white in the PNG
_LETTERS_PER_INCH = 13  # of a legend, about
_LETTERS_OF_LINE = 8  # beside each name
_LONGEST_LINE = 44  # of a name
_DPI = 140
_STAMP = "#b3261e"
NO_SKILL = "no skill"
MOST_LINES = len(_COLOURS) * len(_DASHES)

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "ehrlab",  # same figure, same ids
    "text.parse_math": False,  # a row may be named "$x"
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#8a929c",  # not ink: a surface's grid ignores alpha
    "grid.alpha": 0.35,
    "axes.axisbelow": True,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
}


@dataclass(frozen=True)
class Figure:
    """`svg` is ready to stand in a page; `name` is the file name of the PNG without its ending."""

    name: str
    svg: Markup
    png: bytes


@dataclass(frozen=True)
class Bar:
    """A number with its interval (NaN where there is none). `is_reference`: not a model's."""

    name: str
    value: float
    low: float
    high: float
    is_reference: bool = False


@dataclass(frozen=True)
class Line:
    """Numbers over an axis with their intervals; all `[n]`, NaN where there is none. `is_reference`: not a model's."""

    name: str
    x: FloatArray
    y: FloatArray
    low: FloatArray
    high: FloatArray
    is_reference: bool = False


@dataclass(frozen=True)
class Cross:
    """A point of two numbers with their intervals (NaN where there is none)."""

    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float


def bars_figure(name: str, bars: Sequence[Bar], lines: Mapping[str, float], label: str, scale: float) -> Figure:
    """Numbers with their intervals, one to a row from above, and upright lines to compare them with.

    The last of the lines is dotted. `scale` multiplies every number.
    """

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for place, bar in enumerate(bars):
            value, low, high = (scale * number for number in (bar.value, bar.low, bar.high))
            colour = _INK if bar.is_reference else _COLOURS[0]
            axes.plot([low, high], [place, place], color=colour, linewidth=1.2)
            axes.plot([value], [place], color=colour, marker="D" if bar.is_reference else "o", markersize=4)
        for index, number in enumerate(lines.values()):
            is_last = index == len(lines) - 1
            axes.axvline(scale * number, color=_INK, linewidth=0.8, linestyle=":" if is_last else "--")
        axes.set_yticks(range(len(bars)), [_shown(bar.name) for bar in bars])
        axes.set(ylim=(len(bars) - 0.5, -0.5), xlabel=label)
        axes.grid(visible=False, axis="y")

    deepest = max((_shown(bar.name).count("\n") + 1 for bar in bars), default=1)
    return _render(name, (7.5, 0.9 + 0.24 * deepest * len(bars)), draw)


def pairs_figure(name: str, panels: Mapping[str, Sequence[tuple[Bar, Bar]]], label: str, scale: float) -> Figure:
    """Panel title -> pairs of numbers with their intervals, one pair to a row from above: the first open, the second
    filled. `scale` multiplies every number.
    """

    def draw(canvas: Canvas) -> None:
        rows = np.atleast_1d(canvas.subplots(1, len(panels)))
        for axes, (title, pairs) in zip(rows, panels.items()):
            for place, pair in enumerate(pairs):
                for side, bar in enumerate(pair):
                    y, colour = place + 0.16 * (2 * side - 1), _COLOURS[1 - side]
                    face = colour if side else "none"
                    axes.plot([scale * bar.low, scale * bar.high], [y, y], color=colour, linewidth=1.2)
                    axes.plot([scale * bar.value], [y], color=colour, marker="o", markersize=4.5, markerfacecolor=face)
            axes.set_yticks(range(len(pairs)), [_shown(first.name) for first, _ in pairs])
            axes.set(ylim=(len(pairs) - 0.5, -0.5), xlabel=label, title=title)
            axes.grid(visible=False, axis="y")

    most = max(len(pairs) for pairs in panels.values())
    return _render(name, (3.6 * len(panels), 1.1 + 0.34 * most), draw)


def states_figure(name: str, groups: Mapping[str, FloatArray]) -> Figure:
    """Points "n 2" by group. As in MedDiffusion's Figure 2 a name ends in + (circles) or - (crosses), and names that
    are the same before it share a colour. The axes have no numbers: only neighbourhoods mean something.
    """

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        kinds = list(dict.fromkeys(group[:-1] for group in groups))
        for group, points in groups.items():
            kind = kinds.index(group[:-1])
            colour = _COLOURS[kind % len(_COLOURS)]
            # The first kind is drawn large and open, so that what lies on it does not hide it.
            style: dict[str, Any] = {"s": 18 if kind else 55, "label": _shown(group)}
            if group.endswith("+"):
                style |= {"marker": "o", "edgecolors": colour, "facecolors": colour if kind else "none"}
            else:
                style |= {"marker": "x", "color": colour}
            axes.scatter(points[:, 0], points[:, 1], **style)
        axes.grid(visible=False)
        axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
        canvas.legend(loc="outside lower center", ncols=len(kinds))

    return _render(name, (4.8, 4.6), draw)


def image(name: str, png: bytes) -> Figure:
    """A picture that was drawn before, as an element of a page."""
    content = base64.b64encode(png).decode()
    return Figure(name, Markup(f'<img class="figure" alt="" src="data:image/png;base64,{content}">'), png)


def dose_figure(
    name: str,
    panels: Mapping[str, Sequence[Line]],
    x_label: str,
    ticks: Mapping[float, str],
    *,
    is_log: bool,
) -> Figure:
    """Panel title -> lines over one common axis, with intervals. Models in colour, references in the text's colour."""

    def draw(canvas: Canvas) -> None:
        rows = np.atleast_1d(canvas.subplots(1, len(panels)))
        drawn: dict[str, Any] = {}
        for axes, (title, lines) in zip(rows, panels.items()):
            models = [line.name for line in lines if not line.is_reference]
            references = [line.name for line in lines if line.is_reference]
            if is_log:
                axes.set_xscale("log")
            for line in lines:
                style: dict[str, Any] = {"color": _INK, "linewidth": 1.0, "markersize": 3.5}
                if line.name == NO_SKILL:
                    # A line over one dose has no length.
                    style |= (
                        {"linestyle": ":"}
                        if len(line.x) > 1
                        else {"marker": "_", "markersize": 16, "markeredgewidth": 1.5}
                    )
                elif line.is_reference:
                    style |= {"linestyle": "--", "marker": _MARKERS[references.index(line.name) % len(_MARKERS)]}
                else:
                    index = models.index(line.name)
                    colour, dashes = _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]
                    # Beside each other, so that equal numbers hide no interval.
                    beside = offset_copy(axes.transData, canvas, 3 * (index - (len(models) - 1) / 2), units="points")
                    style |= {"color": colour, "linestyle": dashes, "linewidth": 1.5, "marker": "o"}
                    style["transform"] = beside
                    axes.vlines(line.x, line.low, line.high, color=colour, linewidth=1.0, transform=beside)
                (drawn[line.name],) = axes.plot(line.x, line.y, **style)
                # What is drawn beside its place does not count for the limits by itself.
                points = np.column_stack([np.tile(line.x, 3), np.concatenate([line.y, line.low, line.high])])
                axes.update_datalim(points[np.isfinite(points).all(axis=1)])
            axes.autoscale_view()
            axes.set(title=title, xlabel=x_label)
            axes.set_xticks(list(ticks), list(ticks.values()))
            axes.minorticks_off()
        _legend(canvas, list(drawn.values()), list(drawn))

    return _render(name, (3.6 * len(panels), 3.2), draw)


def curves_figure(
    name: str,
    precision_recall: Mapping[str, FloatArray],
    roc: Mapping[str, FloatArray],
    calibration: Mapping[str, Sequence[CalibrationBin]],
    prevalence: float,
) -> Figure:
    """PR, ROC and calibration curves of the rows, on the grids of `evaluation.curves`. Rows without a curve are left
    out."""

    def draw(canvas: Canvas) -> None:
        pr_axes, roc_axes, calibration_axes = canvas.subplots(1, 3)
        _lines(pr_axes, {row: (grid(), y) for row, y in precision_recall.items()})
        pr_axes.axhline(prevalence, color=_INK, linewidth=0.8, linestyle=":")
        pr_axes.set(title="Precision-recall", xlabel="recall", ylabel="precision")
        _lines(roc_axes, {row: (grid(), y) for row, y in roc.items()})
        roc_axes.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
        points = {
            row: (np.array([b.mean_probability for b in bins]), np.array([b.observed for b in bins]))
            for row, bins in calibration.items()
        }
        _lines(calibration_axes, points, marker="o")
        calibration_axes.set(title="Calibration", xlabel="predicted risk", ylabel="observed share")
        for axes in (roc_axes, calibration_axes):
            axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":")
        for axes in (pr_axes, roc_axes, calibration_axes):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        _legend(canvas, pr_axes.get_lines(), list(precision_recall))

    return _render(name, (10.5, 3.6), draw)


def tradeoff_figure(
    name: str, curves: Mapping[str, tuple[FloatArray, FloatArray]], points: Mapping[str, Cross]
) -> Figure:
    """Recall and precision: of each row a curve over a threshold, and a point with its intervals. A row may have one
    of both only."""

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        rows = list(dict.fromkeys([*curves, *points]))
        handles = []
        for index, row in enumerate(rows):
            colour, dashes = _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]
            recall, precision = curves.get(row, (np.empty(0), np.empty(0)))
            handles += axes.plot(recall, precision, color=colour, linestyle=dashes, linewidth=1.3)
            if (point := points.get(row)) is not None:
                axes.plot([point.x], [point.y], color=colour, marker="o", markersize=7, markeredgecolor=_INK)
                axes.plot([point.x_low, point.x_high], [point.y, point.y], color=colour, linewidth=0.9)
                axes.plot([point.x, point.x], [point.y_low, point.y_high], color=colour, linewidth=0.9)
        axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, None), ylim=(-0.02, None))
        _legend(canvas, handles, rows)

    return _render(name, (5.4, 3.8), draw)


def scatter_figure(
    name: str, panels: Mapping[str, tuple[FloatArray, FloatArray, BoolArray]], x_label: str, y_label: str
) -> Figure:
    """Panel title -> x, y > 0 and which points are marked, over logarithmic axes of one range, with the diagonal."""

    def draw(canvas: Canvas) -> None:
        rows = np.atleast_1d(canvas.subplots(1, len(panels), sharex=True, sharey=True))
        decades = np.log10(np.concatenate([[0.1, 1], *(axis for x, y, _ in panels.values() for axis in (x, y))]))
        exponents = np.arange(np.floor(decades.min()), np.ceil(decades.max()) + 1)
        ends = [10 ** exponents[0], 10 ** exponents[-1]]
        ticks = {10**exponent: f"{10**exponent:g}" for exponent in exponents}
        for axes, (title, (x, y, marked)) in zip(rows, panels.items()):
            axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, title=_shown(title), xlabel=x_label)
            axes.set_xticks(list(ticks), list(ticks.values()))
            axes.set_yticks(list(ticks), list(ticks.values()))
            axes.minorticks_off()
            axes.plot(ends, ends, color=_INK, linewidth=0.8, linestyle=":")
            axes.scatter(x[~marked], y[~marked], s=7, color=_COLOURS[0], alpha=0.5, linewidths=0)
            axes.scatter(x[marked], y[marked], s=26, marker="D", color=_COLOURS[1], edgecolors=_INK, linewidths=0.5)
        rows[0].set_ylabel(y_label)

    return _render(name, (2.7 * len(panels) + 1.3, 3.4), draw)


def history_figure(name: str, curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> Figure:
    """Training curves: curve name -> seed -> [(epoch, value)], one panel per curve."""

    def draw(canvas: Canvas) -> None:
        panels = np.atleast_1d(canvas.subplots(1, len(curves)))
        seeds: list[str] = list(dict.fromkeys(seed for lines in curves.values() for seed in lines))
        for axes, (curve, lines) in zip(panels, curves.items()):
            points = {seed: np.array(lines.get(seed, []), dtype=float).reshape(-1, 2).T for seed in seeds}
            _lines(axes, {seed: (x, y) for seed, (x, y) in points.items()}, marker=".")
            axes.set(title=curve, xlabel="epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        _legend(canvas, panels[0].get_lines(), seeds)

    return _render(name, (2.7 * len(curves), 2.5), draw)


def landscape_figure(
    name: str, x: Sequence[float], y: Sequence[float], surfaces: Mapping[str, FloatArray], x_label: str, y_label: str
) -> Figure:
    """Surfaces over a grid of two settings (as MedDiffusion's Figures 4-7): panel title -> `[len(y), len(x)]`.

    Above the surface, below the same numbers as a heat map with values. A missing cell (NaN) stays empty.
    """

    def draw(canvas: Canvas) -> None:
        x_grid, y_grid = np.meshgrid(np.arange(len(x)), np.arange(len(y)))
        for index, (title, z) in enumerate(surfaces.items()):
            shown = np.ma.masked_invalid(z)
            top = canvas.add_subplot(2, len(surfaces), index + 1, projection="3d")
            # A surface needs two rows and columns and a complete grid; otherwise the heat map alone shows it.
            if min(z.shape) > 1 and not shown.mask.any():
                top.plot_surface(x_grid, y_grid, z, cmap="viridis", edgecolor=_INK, linewidth=0.3)
            top.set_xticks(range(len(x)), [f"{v:g}" for v in x])
            top.set_yticks(range(len(y)), [f"{v:g}" for v in y])
            top.set(title=title)
            top.set_xlabel(x_label, labelpad=8)
            top.set_ylabel(y_label, labelpad=8)
            top.set_box_aspect(None, zoom=0.85)
            for axis in (top.xaxis, top.yaxis, top.zaxis):
                axis.set_pane_color((0, 0, 0, 0))
            below = canvas.add_subplot(2, len(surfaces), len(surfaces) + index + 1)
            below.grid(visible=False)
            if not shown.mask.all():
                below.pcolormesh(x_grid, y_grid, shown, cmap="viridis", shading="nearest")
                middle = (shown.min() + shown.max()) / 2
                for row, column in np.argwhere(~np.ma.getmaskarray(shown)):
                    value = z[row, column]
                    ink = "white" if value <= middle else "black"
                    below.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=8)
            below.set_xticks(range(len(x)), [f"{v:g}" for v in x])
            below.set_yticks(range(len(y)), [f"{v:g}" for v in y])
            below.set(xlabel=x_label, ylabel=y_label)

    return _render(name, (3.6 * len(surfaces), 6.4), draw)


def file_name(*parts: str) -> str:
    """A name for files from names of data, tasks and rows, which may hold anything."""
    return slug("-".join(re.sub(r"[^A-Za-z0-9.=]+", "_", part).strip("_") or "x" for part in parts))


def _lines(axes: Axes, lines: Mapping[str, tuple[FloatArray, FloatArray]], marker: str | None = None) -> None:
    for index, (x, y) in enumerate(lines.values()):
        axes.plot(
            x,
            y,
            color=_COLOURS[index % len(_COLOURS)],
            linestyle=_DASHES[index // len(_COLOURS) % len(_DASHES)],
            linewidth=2.0 if index == 0 else 1.3,
            marker=marker,
            markersize=3.5,
        )


def stamped(png: bytes, text: str) -> bytes:
    """The picture with a word in its upper right corner."""
    pixels, stamp = imread(io.BytesIO(png)), io.BytesIO()
    height, width = pixels.shape[:2]
    canvas = Canvas(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    canvas.figimage(pixels)
    canvas.text(0.995, 0.995, text, ha="right", va="top", fontsize=8, fontweight="bold", color=_STAMP)
    canvas.savefig(stamp, format="png", dpi=_DPI, metadata={"Software": None})
    return stamp.getvalue()


def _legend(canvas: Canvas, lines: Sequence[Artist], names: Sequence[str]) -> None:
    """Below the panels, in as many columns as the names leave room for; the canvas grows by its rows."""
    shown = [_shown(name) for name in names]
    if not shown:
        return
    width, height = canvas.get_size_inches()
    longest = max(len(line) for name in shown for line in name.split("\n"))
    columns = min(max(int(width * _LETTERS_PER_INCH / (longest + _LETTERS_OF_LINE)), 1), 4, len(shown))
    deepest = max(name.count("\n") + 1 for name in shown)
    canvas.set_size_inches(width, height + 0.2 * deepest * math.ceil(len(shown) / columns))
    canvas.legend(lines[: len(shown)], shown, loc="outside lower center", ncols=columns)


def _shown(name: str) -> str:
    """As a label: a long name goes over several lines, and a space before "_" keeps matplotlib from hiding it."""
    name = "\n".join(textwrap.wrap(name, _LONGEST_LINE)) if len(name) > _LONGEST_LINE else name
    return f" {name}" if name.startswith("_") else name


def _render(name: str, size: tuple[float, float], draw: Callable[[Canvas], None]) -> Figure:
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas)
        svg, png = io.BytesIO(), io.BytesIO()
        canvas.savefig(png, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
        canvas.set_layout_engine("none")  # laid out above; once more costs as much as drawing
        canvas.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Figure(name, _inline(svg.getvalue().decode(), name), png.getvalue())


def _inline(svg: str, name: str) -> Markup:
    """matplotlib's SVG file as an element of a page: no declarations, names of its own, the page's text colour."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"", "", body)
    body = body.replace("xlink:href=", "href=").replace(_INK, "currentColor")
    prefix = file_name(name)
    body = re.sub(r"\bid=\"([^\"]*)\"", rf'id="{prefix}.\1"', body)
    body = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}.\1)", body)
    body = re.sub(r"href=\"#([^\"]*)\"", rf'href="#{prefix}.\1"', body)
    return Markup(body.replace("<svg", '<svg class="figure" role="img"', 1))
