"""The figures: curves over epochs and AP of each label, one colour an arm everywhere.

In: numbers. Out: PNG files. Colours are Okabe and Ito's, which colour-blind readers tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from satclr import atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000", "#B8A800")
STYLES = ("-", "--", "-.", ":")
DPI = 150

Curves = Mapping[str, Sequence[Sequence[float]]]  # arm → seeds → value an epoch


class Palette:
    """An arm's colour and line, by its place in params.yaml, so that it is the same in every figure."""

    def __init__(self, arms: Sequence[str]) -> None:
        self._place = {arm: i for i, arm in enumerate(arms)}

    def colour(self, arm: str) -> str:
        return COLOURS[self._place[arm] % len(COLOURS)]

    def style(self, arm: str) -> str:
        return STYLES[self._place[arm] // len(COLOURS) % len(STYLES)]


def curves(path: Path, values: Curves, *, ylabel: str, title: str, palette: Palette) -> None:
    """Draw one line an arm over its epochs: the mean over seeds, with their range as a band."""
    fig, ax = _figure(7.0, 4.2)
    for arm, seeds in values.items():
        table = np.array(seeds, float)  # (seeds, epochs)
        epochs = np.arange(1, table.shape[1] + 1)
        ax.plot(epochs, table.mean(0), palette.style(arm), color=palette.colour(arm), label=arm, linewidth=1.8)
        if len(table) > 1:
            ax.fill_between(epochs, table.min(0), table.max(0), color=palette.colour(arm), alpha=0.2, linewidth=0)
    ax.set(xlabel="epoch", ylabel=ylabel)
    ax.set_title(title, loc="left", fontsize=11)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(frameon=False, fontsize=9)
    _save(fig, path)


def label_differences(
    path: Path, labels: Sequence[str], deltas: Sequence[float], *, title: str, colours: tuple[str, str]
) -> None:
    """Draw one bar a label, sorted: by how much its AP differs between two arms (gain, loss in `colours`)."""
    order = np.argsort(deltas)
    values = np.array(deltas, float)[order]
    fig, ax = _figure(7.0, 1.2 + 0.22 * len(labels))
    ax.barh(np.arange(len(order)), values, color=[colours[0] if v >= 0 else colours[1] for v in values], height=0.7)
    ax.set_yticks(np.arange(len(order)), [labels[i] for i in order], fontsize=8)
    ax.set_ylim(-0.6, len(order) - 0.4)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_xlabel("difference in test AP")
    ax.set_title(title, loc="left", fontsize=11)
    _save(fig, path)


def ladder(path: Path, steps: Sequence[Mapping[str, Any]], *, paper: Mapping[str, float], palette: Palette) -> None:
    """Draw the rungs from top to bottom: test mAP on the left, the change from the rung above on the right."""
    fig, (level, change) = _figure(9.0, 1.5 + 0.55 * len(steps), columns=2)
    for place, step in enumerate(steps):
        colour = palette.colour(step["arm"])
        _interval(level, step["test_mAP"], step["ci95"], place, colour)
        if "against" in step:
            _interval(change, step["delta_mAP"], step["delta_ci95"], place, colour)
            change.annotate(
                f"{step['delta_mAP']:+.3f}", (step["delta_mAP"], place), (0, 7), textcoords="offset points",
                ha="center", fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
    for name, value in paper.items():
        level.axvline(value, color="#999999", linestyle=":", linewidth=1.2)
        level.annotate(
            f"paper, {name}\n(MLRSNet)", (value, -0.75), (0, 2), textcoords="offset points",
            ha="center", va="bottom", fontsize=7, color="#555555", annotation_clip=False,
        )  # fmt: skip
    level.set_yticks(range(len(steps)), [step["arm"] for step in steps], fontsize=9)
    level.set(xlabel="test mAP", ylim=(len(steps) - 0.5, -0.75))
    change.set(xlabel="change from the rung above", ylim=(len(steps) - 0.5, -0.75), yticks=[])
    change.axvline(0, color="black", linewidth=0.8)
    _save(fig, path)


def _interval(ax: Any, value: float, ends: Sequence[float], place: int, colour: str) -> None:
    ax.plot(ends, [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
    ax.plot([value], [place], "o", color=colour, markersize=6)


def _figure(width: float, height: float, *, columns: int = 1) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    for ax in np.atleast_1d(axes):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(visible=True, color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
    return fig, axes


def _save(fig: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    # Neither a date nor a version in the file: the same numbers give the same bytes.
    with atomic.replacing(path) as part:
        fig.savefig(part, dpi=DPI, metadata={"Software": None}, format=path.suffix[1:])
    plt.close(fig)
