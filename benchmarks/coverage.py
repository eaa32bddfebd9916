"""How often intervals hold what they should: coverage of nominal 95 % by method, size of the test, and seeds.

    python benchmarks/coverage.py                            a table, some 2 minutes on two cores
    python benchmarks/coverage.py --out docs/runs/coverage.json

Simulated: 25 labels of 2 to 50 % prevalence, normal scores whose separation differs by label. A seed moves each
label's separation and adds noise to each tile; a test draws new tiles. The estimands are the expected mAP of a test of
this size: of the very seeds that were run ("tiles"), and of new seeds too ("tiles and seeds"). `bias` is how far
that expectation lies above the mAP of endlessly many tiles, beside what jackknife and bootstrap estimate of it.
Differences: the paired bootstrap's interval of two arms that differ by their seeds' luck alone, and how many of the 25
labels it calls different.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

from satclr.evaluation import metrics

LABELS, ROUNDS, RESAMPLES, MANY, REDRAWN = 25, 200, 300, 20_000, 30
SIZES, SEEDS = (120, 420), (1, 3)
LUCK, NOISE = 0.15, 0.5  # deviation of a seed's separation, and of what a seed adds to a tile's scores
PARTS = {seeds: (slice(seeds), slice(seeds, None)) for seeds in SEEDS}  # of the scores: two arms
Floats = NDArray[np.float64]

_setup = np.random.default_rng(0)
PREVALENCE = np.exp(_setup.uniform(np.log(0.02), np.log(0.5), LABELS))
SKILL = _setup.uniform(0.3, 2.5, LABELS)


def draw(rng: np.random.Generator, tiles: int, luck: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores (S,N,K) and targets (N,K) of new tiles for seeds of separation SKILL + luck, luck (S,K)."""
    targets = rng.random((tiles, LABELS)) < PREVALENCE
    tile = rng.normal(size=targets.shape)
    own = rng.normal(size=(len(luck), *targets.shape))
    return (SKILL + luck)[:, None] * targets + tile + NOISE * own, targets


def mean_ap(scores: Floats, targets: NDArray[np.bool_]) -> float:
    return float(np.mean([metrics.nan_mean(metrics.average_precision(s, targets)) for s in scores]))


def round_of(seed: int, tiles: int, seeds: int) -> dict[str, Any]:
    """One test: the estimate, its intervals by method, and what is expected of the very seeds that were run."""
    rng = np.random.default_rng([seed, tiles, seeds])
    luck = LUCK * rng.normal(size=(2, seeds, LABELS))
    luck -= luck.mean(-1, keepdims=True) * 0.5  # half of a seed's luck is its own, half of single labels
    scores, targets = draw(rng, tiles, np.concatenate(luck))
    arms = [scores[:seeds], scores[seeds:]]
    fixed, redrawn = metrics.paired_bootstrap_over_seeds(arms, targets, resamples=RESAMPLES, seed=seed)
    each = [mean_ap(s[None], targets) for s in arms[0]]
    estimate, samples = float(np.mean(each)), metrics.nan_mean(fixed[:, 0])
    error = float(samples.std(ddof=1))
    delta = np.mean([metrics.average_precision(s, targets) for s in arms[0]], 0)
    delta = delta - np.mean([metrics.average_precision(s, targets) for s in arms[1]], 0)
    known = np.flatnonzero(~np.isnan(delta))
    apart = redrawn[:, 0] - redrawn[:, 1]
    columns = [apart[:, k][~np.isnan(apart[:, k])] for k in known]
    ends = np.array([metrics.interval(column) for column in columns])
    wald = [metrics.wald_p_value(delta[k], column) for k, column in zip(known, columns, strict=True)]
    tests = [draw(rng, tiles, np.concatenate(luck)) for _ in range(REDRAWN)]
    expected, other = (float(np.mean([mean_ap(s[part], t) for s, t in tests])) for part in PARTS[seeds])
    return {
        "expected": expected,
        "expected_difference": expected - other,
        "many": mean_ap(*draw(rng, MANY, luck[0])) if seed < 20 else np.nan,
        "jackknife": metrics.jackknife_bias(arms[0][0], targets, seed=seed),
        "bootstrap": float(samples.mean()) - estimate,
        "percentile": metrics.interval(metrics.nan_mean(redrawn[:, 0])),
        "1.96 standard errors": (estimate - 1.96 * error, estimate + 1.96 * error),
        "t": metrics.standard_interval(estimate, samples, tiles=tiles, seeds=each),
        "difference": metrics.interval(metrics.nan_mean(redrawn[:, 0]) - metrics.nan_mean(redrawn[:, 1])),
        "unadjusted": int(((ends[:, 0] > 0) | (ends[:, 1] < 0)).sum()),
        "adjusted": int((false_discovery_control(wald) < 0.05).sum()),
    }


def row(tiles: int, seeds: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares and means over the rounds."""
    expected = float(np.mean([f["expected"] for f in found]))

    def held(method: str, truth: list[float]) -> float:
        return float(np.mean([f[method][0] <= t <= f[method][1] for f, t in zip(found, truth, strict=True)]))

    def mean(key: str) -> float:
        return float(np.mean([f[key] for f in found]))

    methods = ("percentile", "1.96 standard errors", "t")
    few = [f["expected"] - f["many"] for f in found if not np.isnan(f["many"])]
    return {
        "tiles": tiles,
        "seeds": seeds,
        "expected_mAP": expected,
        "coverage_over_tiles": {m: held(m, [f["expected"] for f in found]) for m in methods},
        "coverage_over_tiles_and_seeds": {m: held(m, [expected] * len(found)) for m in methods},
        "bias": {"true": float(np.mean(few)), "jackknife": mean("jackknife"), "bootstrap": mean("bootstrap")},
        "equal_arms": {
            "coverage_over_tiles": held("difference", [f["expected_difference"] for f in found]),
            "coverage_over_tiles_and_seeds": held("difference", [0.0] * len(found)),
            "labels_called_different": {"unadjusted": mean("unadjusted"), "Benjamini-Hochberg": mean("adjusted")},
        },
    }


def simulate(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """A row for each size of the test and number of seeds."""
    jobs = [(seed, n, s) for n in SIZES for s in SEEDS for seed in range(rounds)]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = list(pool.map(round_of, *zip(*jobs, strict=True), chunksize=20))
    cells = [(n, s) for n in SIZES for s in SEEDS]
    return [row(n, s, found[i * rounds : (i + 1) * rounds]) for i, (n, s) in enumerate(cells)]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, as docs/evaluation.md has them."""
    head = ["test tiles", "seeds", "estimand", "percentile", "± 1.96 SE", "± t · SE"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for r in rows:
        for over in ("tiles", "tiles_and_seeds"):
            shares = [f"{100 * share:.0f}%" for share in r[f"coverage_over_{over}"].values()]
            cells = [str(r["tiles"]), str(r["seeds"]), f"over {over.replace('_', ' ')}", *shares]
            lines.append("| " + " | ".join(cells) + " |")
    head = ["test tiles", "seeds", "bias of mAP", "jackknife's", "bootstrap's"]
    head += ["difference over tiles", "over tiles and seeds", "labels, 95% each", "labels, BH"]
    lines += ["", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for r in rows:
        biases = [f"{value:+.3f}" for value in r["bias"].values()]
        equal = r["equal_arms"]
        called = [f"{value:.2f}" for value in equal["labels_called_different"].values()]
        shares = [f"{100 * equal[f'coverage_over_{over}']:.0f}%" for over in ("tiles", "tiles_and_seeds")]
        cells = [str(r["tiles"]), str(r["seeds"]), *biases, *shares, *called]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    rows = simulate(given.rounds)
    if given.out is not None:
        facts = {"rounds": given.rounds, "resamples": RESAMPLES, "labels": LABELS}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
