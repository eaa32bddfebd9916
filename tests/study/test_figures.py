from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from satclr.study import figures

ARMS = [f"arm_{i}_with_a_long_name" for i in range(8)] + ["an_arm_whose_name_is_longer_than_a_figure_can_show"]
LABELS = ["a label that is longer than any figure has room for", *(f"label {i}" for i in range(59))]
PALETTE = figures.make_palette(ARMS)
PAPER = {"baseline": 0.6361, "simclr": 0.9133}


def entry(value: float, spread: float) -> dict[str, Any]:
    return {"test_mAP": value, "test_mAP_ci95": [value - spread, value + spread]}


def steps(*values: float) -> list[dict[str, Any]]:
    pairs = zip(ARMS, values, strict=False)
    change = {"delta_mAP": -1e-5, "delta_ci95": [-2e-5, 0]}
    return [{"arm": arm, "test_mAP": value, "ci95": [value, value], **change} for arm, value in pairs]


NARROW = {arm: entry(0.55 + i * 1e-4, 1e-5) for i, arm in enumerate(ARMS)}
CURVES: dict[str, list[Any]] = {
    "equal": [[0.55] * 9], "0 and 0.55": [[0, 0.55, 0.55]], "narrow": [[0.55, 0.55005, 0.5501]], "one epoch": [[0.1]],
    "wide": [[-1234567.8, 9e12]], "500 epochs": [range(500), range(500)], "not finite": [[np.nan, np.inf, 1]],
}  # fmt: skip
ODD: dict[str, Callable[[], Any]] = {
    name: partial(figures.curves, dict.fromkeys(ARMS, seeds), PALETTE, ylabel="loss") for name, seeds in CURVES.items()
}
ODD |= {
    "arms": partial(figures.arms, NARROW, PALETTE, references={"prior": entry(0.6, 0)}),
    "one arm": partial(figures.arms, {ARMS[8]: entry(1.0, 0.0)}, PALETTE, references={}),
    "ladder": partial(figures.ladder, steps(0.0, 1.0, 0.5), PALETTE, paper=PAPER),
    "ladder of other data": partial(figures.ladder, steps(0.3, 0.5), PALETTE, paper={}),
    "narrow ladder": partial(figures.ladder, steps(*[0.6361] * 9), PALETTE, paper=PAPER),
    "60 labels": partial(figures.dots, LABELS, dict.fromkeys(ARMS, np.eye(60, 3)), PALETTE, xlabel="test AP"),
    "differences": partial(figures.dots, LABELS[:2], {ARMS[0]: -1e-4 * np.eye(2, 3)}, PALETTE, xlabel="gain"),
    "prevalence": partial(figures.prevalence, dict.fromkeys(LABELS, 10**6)),
}


@pytest.mark.parametrize("name", ODD)
def test_labels_are_legible_whatever_the_values(name: str) -> None:
    fig = ODD[name]()
    fig.draw_without_rendering()
    shown = [text for legend in fig.legends for text in legend.get_texts()]
    for ax in fig.axes:
        shown += [*ax.texts, ax.xaxis.label, ax.yaxis.label, ax.xaxis.offsetText, ax.yaxis.offsetText]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            inside = [label for place, label in ticks if low <= place <= high]
            assert inside
            shown += inside
        assert ax.bbox.width > 0.3 * fig.bbox.width
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown if text.get_text()]
    page = fig.bbox.padded(1)
    outside = [a for a, p in boxes if not (page.contains(p.x0, p.y0) and page.contains(p.x1, p.y1))]
    assert outside == []
    overlaps = [(a, b) for (a, p), (b, q) in combinations(boxes, 2) if p.padded(-1).overlaps(q.padded(-1))]
    assert overlaps == []


def test_a_figure_of_the_page_takes_its_colours() -> None:
    text = figures.svg(ODD["ladder"]())
    assert "fill: var(--ink)" in text
    assert text.startswith("<svg")
    assert ' id="text' not in text
