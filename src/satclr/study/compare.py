"""Compare the arms: compare.json and tables. `report` draws the figures.

In: results/<profile>/<arm>-s<seed>/ of each arm and seed that params.yaml runs. Out: reports/<profile>/.

    satclr compare --profile sample
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np

from satclr import files, progress
from satclr.data import tiles
from satclr.evaluation import references
from satclr.project import Project
from satclr.study import contrasts
from satclr.study.results import Arms, Results

# Briody & Aygen's own test mAP: a frozen ImageNet ResNet-50, and after SimCLR. For the profile of their data set.
PAPER = {"mlrsnet": {"baseline": 0.6361, "simclr": 0.9133}}
CURVES = {"train_loss": "training loss", "val_loss": "validation loss", "val_mAP": "validation mAP"}
LABEL_COLUMNS = ("arm", "label", "AP", "AP_lo", "AP_hi", "delta_AP", "delta_AP_lo", "delta_AP_hi")
TABLE_WIDTH = 120  # characters, on a narrower terminal too

Row = tuple[str, ...]


def run(project: Project) -> dict[str, Any]:
    """Compare the arms that params.yaml runs, the first as the reference; print tables and return compare.json.

    Raises `files.FileError` for results on different test tiles, and as `Results` and `tiles.open_store` do.
    """
    arms = {seeds[0].arm: [Results(run) for run in seeds] for seeds in project.arms()}
    everything = [r for seeds in arms.values() for r in seeds]
    first, test = everything[0].run.key, everything[0].scores("test")
    for other in everything[1:]:
        if not other.scores("test").same_tiles(test):
            raise files.FileError(f"test tiles or labels of {other.run.key} and {first} differ; run `dvc repro`")
    warn_of_changed_weights(everything)
    store = tiles.open_store(project.store)
    tested = store.rows("test")
    if tuple(store.names[row] for row in tested) != test.tiles:
        raise files.FileError(f"test tiles of {first} are not those of build/{project.profile}; run `dvc repro`")
    categories = [store.categories[row] for row in tested]
    measures = contrasts.measure(arms, categories)
    report = {"profile": project.profile, **contrasts.numbers(arms, measures)}
    report["references"] = contrasts.references(references.scores(store), test.targets, categories)
    report["paper"] = PAPER.get(project.profile, {})
    report["ladder"] = ladder(report, project.params.ladder)
    report["factorial"] = list(contrasts.factorials(report, arms, measures["mAP"]))
    report["leakage"] = list(leakage(report, arms))
    out = project.reports
    files.write_json(out / "compare.json", report, allow_nan=True)
    files.write_json(out / "metrics.json", headline(report), allow_nan=True)
    curves = [(r.run, row) for r in everything for row in r.curve("probe")]
    rows = [[run.arm, run.seed, int(row["epoch"]), *(row[key] for key in CURVES)] for run, row in curves]
    files.write_csv(out / "curves.csv", ["arm", "seed", "epoch", *CURVES], rows)
    by_label = contrasts.by_label(measures["mAP"], tiles=len(test.tiles))
    cells = [(n, *row) for n, table in by_label.items() for row in zip(test.labels, table.tolist(), strict=True)]
    rows = [[name, label, *("" if np.isnan(v) else v for v in values)] for name, label, values in cells]
    files.write_csv(out / "per_class_ap.csv", LABEL_COLUMNS, rows)
    for i, (header, *lines) in enumerate((arm_table(report), *other_tables(report))):
        print("\n" * (i > 0), end="")
        progress.print_table(lines, header=header, width=TABLE_WIDTH)
    for note in probe_notes(report):
        print(note)
    return report


def warn_of_changed_weights(everything: Iterable[Results]) -> None:
    """Print one line for each encoder that started from a file whose content has changed since."""
    for run in (results.run for results in everything):
        start = run.root / run.settings.pretrain.weights
        if not (start.is_file() and run.encoder.is_file()):
            continue
        recorded = files.load_facts(run.encoder).get("weights_sha256", "null").strip('"')
        if recorded not in ("null", files.sha256(start)):
            stage = f"pretrain@{run.profile}-{run.arm}-{run.seed}"
            progress.say(
                f"warning: {run.key} was pretrained from {run.settings.pretrain.weights}, which has changed since; "
                f"run `dvc repro --force --single-item {stage}`, then `dvc repro`"
            )


def ladder(report: Mapping[str, Any], rungs: Sequence[str]) -> list[dict[str, Any]]:
    """Each compared rung's mAP, and its change from the rung before with the paired interval."""
    known = [name for name in rungs if name in report["arms"]]
    steps = []
    for below, name in zip([None, *known], known, strict=False):
        arm = report["arms"][name]
        step = {"arm": name, "test_mAP": arm["test_mAP"], "ci95": arm["test_mAP_ci95"]}
        if below is not None:
            delta, ci95, _ = _contrast(report, name, below)
            step |= {"against": below, "delta_mAP": delta, "delta_ci95": ci95}
        steps.append(step)
    return steps if len(steps) > 1 else []


def leakage(report: Mapping[str, Any], arms: Arms) -> Iterator[dict[str, Any]]:
    """How much near-duplicates across splits lift each arm, compared with the arm that leaves them out.

    One row for each pair of arms whose settings differ in `near_duplicates` alone: by_tile keeps them, by_group not.
    """
    for (by_tile, seeds), (by_group, others) in permutations(arms.items(), 2):
        settings = seeds[0].run.settings
        kept = "leave_out" not in (settings.pretrain.near_duplicates, settings.probe.near_duplicates)
        for section in ("pretrain", "probe"):
            settings = contrasts.changed(settings, section, "near_duplicates", "leave_out")
        if kept and others[0].run.settings == settings:
            delta, ci95, p_value = _contrast(report, by_tile, by_group)
            yield {
                "by_tile": by_tile,
                "by_group": by_group,
                "test_mAP": [report["arms"][name]["test_mAP"] for name in (by_tile, by_group)],
                "delta_mAP": delta,
                "ci95": ci95,
                "p_value": p_value,
                "train_tiles": [r[0].metrics["train_tiles"] for r in (seeds, others)],
            }


def _contrast(report: Mapping[str, Any], arm: str, against: str) -> tuple[float, list[float], float]:
    """Difference in mAP, interval and p-value of two arms, in either order."""
    c = next(c for c in report["contrasts"] if {c["arm"], c["against"]} == {arm, against})
    sign = 1.0 if c["arm"] == arm else -1.0
    return sign * c["delta_mAP"], sorted(sign * end for end in c["ci95"]), c["p_value"]


def answer(report: Mapping[str, Any]) -> dict[str, Any]:
    """The reference and the arm that validates best against it: verdict yes, no or open, and the contrast."""
    reference, *others = report["arms"]
    if not others:
        return {"verdict": None, "reference": reference}
    best = max(others, key=lambda name: float(report["arms"][name]["val_mAP"]))
    contrast = next(c for c in report["contrasts"] if c["arm"] == best and c["against"] == reference)
    low, high = contrast["ci95"]
    verdict = "yes" if low > 0 else "no" if high < 0 else "open"
    return {"verdict": verdict, "reference": reference, "arm": best, "contrast": contrast}


def headline(report: Mapping[str, Any]) -> dict[str, float | None]:
    """What a person compares in a terminal: the best arm by validation mAP against the reference, flat."""
    found = answer(report)
    reference, c = report["arms"][found["reference"]], found.get("contrast", {})
    best = report["arms"][found.get("arm", found["reference"])]
    low, high = c.get("ci95", (None, None))
    return {
        "reference_test_mAP": reference["test_mAP"],
        "best_test_mAP": best["test_mAP"],
        "best_val_mAP": best["val_mAP"],
        "delta_mAP": c.get("delta_mAP"),
        "delta_mAP_lo": low,
        "delta_mAP_hi": high,
        **{key: c.get(key) for key in ("p_holm", "delta_converged_mAP", "delta_within_category_mAP")},
        "category_prior_test_mAP": report["references"]["category_prior"]["test_mAP"],
    }


def arm_table(report: Mapping[str, Any]) -> list[Row]:
    """Each arm's test mAP (± deviation over seeds) and its difference to the first arm, with intervals."""
    reference = next(iter(report["arms"]))
    against = {c["arm"]: c for c in report["contrasts"] if c["against"] == reference}
    seeds = len(report["arms"][reference]["seeds"])
    over = "95% interval\n" + ("over test tiles only" if seeds == 1 else f"over tiles and {seeds} seeds")
    header = ("arm", "test mAP", over, "bias", "within\ncategory", "val mAP")
    rows: list[Row] = [(*header, f"against\n{reference}", "95% interval", "p (Holm)")]
    for name, arm in report["arms"].items():
        sd = f" ± {arm['test_mAP_sd']:.4f}" if arm["test_mAP_sd"] is not None else ""
        row: Row = (name, f"{arm['test_mAP']:.4f}{sd}", _span(arm["test_mAP_ci95"]), f"{arm['test_mAP_bias']:+.3f}")
        row += (f"{arm['test_within_category_mAP']:.4f}", f"{arm['val_mAP']:.4f}")
        if c := against.get(name):
            row += (f"{c['delta_mAP']:+.4f}", _span(c["ci95"], "+"), _p(c["p_holm"]))
        rows.append(row)
    return rows


def other_tables(report: Mapping[str, Any]) -> Iterator[list[Row]]:
    """References on the same test tiles; the ladder, the paper's own numbers last; each factorial, its sum; leakage."""
    rows: list[Row] = [("reference", "test mAP", "95% interval\nover test tiles only", "within\ncategory")]
    for name, r in report["references"].items():
        rows.append((name, f"{r['test_mAP']:.4f}", _span(r["test_mAP_ci95"]), f"{r['test_within_category_mAP']:.4f}"))
    yield rows
    rows = [("rung", "test mAP", "95% interval", "change", "95% interval")]
    for step in report["ladder"]:
        change = (f"{step['delta_mAP']:+.4f}", _span(step["delta_ci95"], "+")) if "against" in step else ()
        rows.append((step["arm"], f"{step['test_mAP']:.4f}", _span(step["ci95"]), *change))
    if len(report["ladder"]) > 2 or report["paper"]:  # two rungs say what the arms' table says
        yield rows + [(f"paper, {name} (MLRSNet)", f"{value:.4f}") for name, value in report["paper"].items()]
    for f in report["factorial"]:
        rows = [("departure", "alone", "after the others", "Shapley value", "95% interval")]
        for d in f["departures"]:
            effects = (f"{d[key]:+.4f}" for key in ("alone", "last", "shapley"))
            rows.append((d["departure"], *effects, _span(d["ci95"], "+")))
        total = f"{f['delta_mAP']:+.4f}"
        yield [*rows, (f"{f['arm']} - {f['against']}", "", "", total, _span(f["ci95"], "+"))]
    rows = [("leakage of", "split by tile", "by group", "lifted by", "95% interval", "training tiles left out")]
    for row in report["leakage"]:
        (by_tile, by_group), (whole, rest) = row["test_mAP"], row["train_tiles"]
        numbers = (f"{by_tile:.4f}", f"{by_group:.4f}", f"{row['delta_mAP']:+.4f}", _span(row["ci95"], "+"))
        rows.append((row["by_tile"], *numbers, f"{whole - rest:,} of {whole:,} ({(whole - rest) / whole:.1%})"))
    if report["leakage"]:
        yield rows


def probe_notes(report: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each difference to the first arm that depends on the probe."""
    reference = next(iter(report["arms"]))
    for c in report["contrasts"]:
        if c["against"] == reference and c.get("depends_on_probe"):
            yield (
                f"{c['arm']} against {reference} depends on the probe: {c['delta_mAP']:+.4f} with the paper's, "
                f"{c['delta_converged_mAP']:+.4f} with one trained to convergence"
            )


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _span(ends: Sequence[float], sign: str = "") -> str:
    return f"{ends[0]:{sign}.4f} to {ends[1]:{sign}.4f}"
