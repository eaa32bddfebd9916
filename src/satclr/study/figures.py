"""The figures of the study, each drawn by one function; the report saves them as PNG and embeds them as SVG.

They are 5 inches wide so that text is legible on a phone. Colours are Okabe and Ito's, which colour-blind readers
tell apart. Labels never overlap: legends are outside the axes, rows have a fixed height, axes have few ticks.
"""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#1b1f24", "#B8A800")
STYLES = ("-", "--", "-.", ":")
WIDTH_IN, DPI, FONT_PT = 5.0, 150, 10.0
ROW_IN, DOT_IN = 0.2, 0.1  # height of a row of text, and of each further arm in it
NAME_LENGTH = 26  # longer names are cut
SMALLEST_SPAN = 0.01  # of an axis, so that tick labels stay short
INK, GRID = "#1b1f24", "#d9dde2"
PAGE_COLOURS = {INK: "var(--ink)", GRID: "var(--line)"}  # in SVG, for light and dark

Floats = npt.NDArray[np.float64]
Entries = Mapping[str, Mapping[str, Any]]  # of compare.json, by name
Palette = Mapping[str, tuple[str, Any]]  # colour and line style of each arm


def make_palette(arms: Iterable[str]) -> Palette:
    """Each arm's colour and line style, by its place among the compared arms, the same in every figure."""
    looks = ((colour, style) for style in cycle(STYLES) for colour in COLOURS)
    return dict(zip(arms, looks, strict=False))


def curves(values: Mapping[str, Sequence[Sequence[float]]], palette: Palette, *, ylabel: str) -> Any:
    """One line per arm over epochs: the mean over seeds, with their range as a band; values: arm → seed → epoch."""
    fig, ax = _figure(3.0)
    for arm, seeds in values.items():
        table = np.array(seeds, float)  # (seeds, epochs)
        epochs = np.arange(1, table.shape[1] + 1)
        colour, style = palette[arm]
        ax.plot(epochs, table.mean(0), style, color=colour, marker="o" if len(epochs) == 1 else "")
        ax.fill_between(epochs, table.min(0), table.max(0), color=colour, alpha=0.2, linewidth=0)
    _ticks(ax.xaxis, integer=True)
    _range(ax, "y", [value for seeds in values.values() for line in seeds for value in line])
    ax.set(xlabel="epoch", ylabel=ylabel)
    _legend(fig, list(values), palette)
    return fig


def arms(entries: Entries, palette: Palette, *, references: Entries) -> Any:
    """Test mAP of each arm with its 95% interval, and below the arms that of each reference."""
    rows = [(n, entry["test_mAP"], *entry["test_mAP_ci95"]) for n, entry in {**entries, **references}.items()]
    fig, ax = _figure(0.6 + 0.32 * len(rows))
    _panel(ax, rows, palette, xlabel="test mAP")
    return fig


def ladder(steps: Sequence[Mapping[str, Any]], palette: Palette, *, paper: Mapping[str, float]) -> Any:
    """The rungs from top to bottom: test mAP above, the change from the rung before below.

    paper: the paper's own mAPs, drawn as dotted lines; none on the axis of other data.
    """
    fig, (level, change) = _figure(1.5 + 0.64 * len(steps), axes=2)
    rows = [(step["arm"], step["test_mAP"], *step["ci95"]) for step in steps]
    _panel(level, rows, palette, xlabel="test mAP", include=paper.values())
    if paper:
        lines = [level.axvline(value, color=INK, linestyle=":", linewidth=1) for value in paper.values()]
        _key(fig, lines[:1], ["the paper"])
    rows = [(step["arm"], step["delta_mAP"], *step["delta_ci95"]) for step in steps[1:]]
    _panel(change, rows, palette, xlabel="change from the rung above", sign="+", include=[0])
    change.axvline(0, color=INK, linewidth=0.8)
    return fig


def dots(names: Sequence[str], values: Mapping[str, Floats], palette: Palette, *, xlabel: str, lanes: int = 1) -> Any:
    """A dot with its interval for each name and arm; values: (names,3) of each arm: value, low, high.

    Rows have room for `lanes` arms or more, so that rows of two figures can align.
    """
    count, row_in = len(values), ROW_IN + DOT_IN * (max(lanes, len(values)) - 1)
    fig, ax = _figure(0.6 + len(names) * row_in)
    _rows(ax, names, xlabel)
    points = {
        arm: [(k + 0.64 * ((i + 0.5) / count - 0.5), *row) for k, row in enumerate(table.tolist())]
        for i, (arm, table) in enumerate(values.items())
    }
    _dots(ax, points, palette, 4)
    if min(table.min(initial=0) for table in values.values()) < 0:
        ax.axvline(0, color=INK, linewidth=0.8)
    _legend(fig, list(values), palette)
    return fig


def prevalence(counts: Mapping[str, int]) -> Any:
    """How many tiles have each label, most first."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    fig, ax = _figure(0.6 + ROW_IN * len(ranked))
    ax.barh(range(len(ranked)), [count for _, count in ranked], 0.7, color="#7F7F7F")
    _rows(ax, [name for name, _ in ranked], "tiles")
    _ticks(ax.xaxis, integer=True)
    return fig


def svg(fig: Any) -> str:
    """A figure as an SVG element whose text and grid take the page's colours and font."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "satclr"}):
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # ids are unused, and not unique on a page
    for colour, variable in PAGE_COLOURS.items():
        text = text.replace(colour, variable)
    return text


def _figure(height_in: float, *, axes: int = 1) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({
        "font.size": FONT_PT, "axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK,
        "xtick.color": INK, "ytick.color": INK, "grid.color": GRID, "grid.linewidth": 0.6, "axes.grid": True,
        "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    }):  # fmt: skip
        fig = Figure((WIDTH_IN, height_in), layout="constrained")
        return fig, fig.subplots(axes)


def _rows(ax: Any, names: Sequence[str], xlabel: str) -> None:
    """One named row per entry, the first at the top."""
    ax.set_yticks(range(len(names)), [_short(name.replace("_", " ")) for name in names])
    ax.set(xlabel=xlabel, ylim=(len(names) - 0.4, -0.6))
    ax.tick_params("y", length=0)


def _panel(
    ax: Any, rows: Sequence[Any], palette: Palette, *, xlabel: str, sign: str = "", include: Iterable[float] = ()
) -> None:
    """Rows of (arm, value, low, high): a dot with its interval, and the value right of the axes."""
    _rows(ax, [arm for arm, *_ in rows], xlabel)
    _dots(ax, {arm: [(i, *row)] for i, (arm, *row) in enumerate(rows)}, palette, 6, include)
    for i, (_, value, *_) in enumerate(rows):
        ax.text(1.02, i, f"{value:{sign}.4f}", transform=ax.get_yaxis_transform(), va="center", color=INK)


def _dots(ax: Any, points: Mapping[str, Any], palette: Palette, size: float, include: Any = ()) -> None:
    """Dots with intervals; points: for each arm (row, value, low, high)."""
    for arm, rows in points.items():
        y, x, low, high = np.array(rows, float).T
        colour, _ = palette.get(arm, (INK, ""))  # a reference has no place among the arms
        ax.hlines(y, low, high, color=colour, linewidth=1.6)
        ax.plot(x, y, "o", color=colour, markersize=size)
    _range(ax, "x", [x for rows in points.values() for row in rows for x in row[1:]] + list(include))


def _range(ax: Any, axis: str, values: Sequence[float]) -> None:
    """The axis follows the values, but is never so narrow that its ticks need many digits."""
    known = [value for value in values if np.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    margin = max(0.05 * (high - low), (SMALLEST_SPAN - (high - low)) / 2)
    ax.set(**{f"{axis}lim": (low - margin, high + margin)})
    _ticks(ax.xaxis if axis == "x" else ax.yaxis)


def _ticks(axis: Any, *, integer: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    few, at_least = 4 if axis.axis_name == "x" else 5, 1 if integer else 2
    axis.set_major_locator(MaxNLocator(few, integer=integer, min_n_ticks=at_least, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(StrMethodFormatter("{x:.6g}"))


def _legend(fig: Any, names: Sequence[str], palette: Palette) -> None:
    """The arms above the axes, in as many columns as their names leave room for."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=palette[n][0], linestyle=palette[n][1], linewidth=2) for n in names]
    shown = [_short(name) for name in names]
    width_pt = 45 + 0.62 * FONT_PT * max(map(len, shown))
    columns = max(1, min(len(names), int(72 * WIDTH_IN // width_pt)))
    fig.set_figheight(fig.get_figheight() + ROW_IN * (math.ceil(len(names) / columns) + 0.5))
    _key(fig, lines, shown, ncols=columns)


def _key(fig: Any, lines: Sequence[Any], names: Sequence[str], **options: int) -> None:
    fig.legend(lines, names, loc="outside upper left", frameon=False, fontsize=FONT_PT, labelcolor=INK, **options)


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
