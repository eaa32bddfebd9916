"""Gathers what the stages left and fills the template."""

from __future__ import annotations

import csv
import json
import platform
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from satclr import atomic, corruptions, figures, tiles
from satclr.params import Arm
from satclr.report import charts, pictures

MAX_MB = 15
EXAMPLE_PX, MAP_PX, CORRUPTION_PX = 96, 44, 96
HARDEST, EXAMPLES = 6, 4  # labels; tiles of each kind for each
PACKAGES = ("satclr", "torch", "torchvision", "numpy", "scikit-learn", "mlflow", "dvc")
CURVES = {"val_mAP": "validation mAP", "train_loss": "training loss", "val_loss": "validation loss"}


class ReportError(ValueError):
    """A report that cannot be written: exit code 2."""


@dataclass(frozen=True)
class Run:
    """What the stages left of one arm and seed."""

    arm: Arm
    folder: Path

    @cached_property
    def scores(self) -> dict[str, npt.NDArray[Any]]:
        with np.load(self.folder / "scores.npz", allow_pickle=False) as file:
            return dict(file)

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def tree(self, name: str) -> dict[str, Any]:
        """A JSON file of a stage that may be left out: {} without it."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def run(
    results: Path,
    reports: Path,
    store: tiles.Store,
    *,
    arms: Sequence[Sequence[Arm]],
    palette: figures.Palette,
    commit: str | None,
) -> Path:
    """Write report.html below `reports` and return its path.

    `arms`: one sequence of seeds each, the first is the reference, as compare had them. Raises `ReportError`
    naming the file that is missing, or the size of a page that would be too large to send.
    """
    try:
        compare = json.loads((reports / "compare.json").read_text(encoding="utf-8"))
        audit = json.loads((store.folder / "audit.json").read_text(encoding="utf-8"))
        runs = {seeds[0].name: [Run(arm, results / arm.key) for arm in seeds] for seeds in arms}
        if list(compare["arms"]) != list(runs):
            raise ReportError(
                f"compare.json has the arms {', '.join(compare['arms'])}, params.yaml runs {', '.join(runs)}; "
                "run `satclr compare` again"
            )
        html = _render(compare, audit, runs, store, palette=palette, commit=commit, reports=reports)
    except FileNotFoundError as error:
        raise ReportError(f"{error.filename} does not exist; run `satclr compare` first") from None
    if len(html.encode()) > MAX_MB * 1e6:
        raise ReportError(f"the report is {len(html.encode()) / 1e6:.1f} MB, over {MAX_MB}; run fewer arms")
    path = reports / "report.html"
    atomic.write_text(path, html)
    return path


def commit(root: Path) -> str | None:
    """The commit that `root` has checked out, or None outside a repository."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
        )
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _render(
    compare: dict[str, Any],
    audit: dict[str, Any],
    runs: Mapping[str, Sequence[Run]],
    store: tiles.Store,
    *,
    palette: figures.Palette,
    commit: str | None,
    reports: Path,
) -> str:
    import jinja2
    import plotly.offline

    folder = resources.files("satclr.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((folder / "template.html").read_text(encoding="utf-8"))
    first = {name: seeds[0] for name, seeds in runs.items()}
    best = max(compare["arms"], key=lambda name: float(compare["arms"][name]["val_mAP"]))
    robustness = _robustness(runs, store, audit["flagged"])
    return template.render(
        profile=compare["profile"],
        css=(folder / "style.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        plotly=plotly.offline.get_plotlyjs(),
        colours={name: palette.colour(name) for name in runs},
        arms=compare["arms"],
        means={name: _means(entry) for name, entry in compare["arms"].items()},
        contrasts=compare["contrasts"],
        answer=answer(compare),
        ladder=_ladder(reports),
        leakage=compare["leakage"],
        best=best,
        seeds=[r.arm.seed for r in next(iter(runs.values()))],
        charts=_charts(compare, runs, audit, palette, robustness),
        hardest=_hardest(first[best], store),
        robustness=robustness,
        maps=_maps(first, store),
        audit=audit,
        store=store,
        parameters=_parameters([r.arm for r in first.values()]),
        versions=_versions(),
        commit=commit,
    )


def answer(compare: Mapping[str, Any]) -> dict[str, Any]:
    """The reference and the arm that validates best against it: verdict yes, no or open, and the contrast."""
    reference, *others = compare["arms"]
    if not others:
        return {"verdict": None, "reference": reference}
    best = max(others, key=lambda name: float(compare["arms"][name]["val_mAP"]))
    contrast = next(c for c in compare["contrasts"] if c["arm"] == best and c["against"] == reference)
    low, high = contrast["ci95"]
    verdict = "yes" if low > 0 else "no" if high < 0 else "open"
    return {"verdict": verdict, "reference": reference, "arm": best, "contrast": contrast}


def _means(entry: Mapping[str, Any]) -> dict[str, float]:
    """Each number of an arm, the mean over its seeds."""
    seeds = list(entry["seeds"].values())
    keys = [k for k, v in seeds[0].items() if isinstance(v, int | float) and not isinstance(v, bool)]
    return {
        k: float(np.mean([s[k] for s in seeds])) for k in keys if all(s.get(k) is not None for s in seeds)
    }


def _charts(
    compare: dict[str, Any],
    runs: Mapping[str, Sequence[Run]],
    audit: Mapping[str, Any],
    palette: figures.Palette,
    robustness: Mapping[str, Any] | None,
) -> dict[str, str]:
    first = {name: seeds[0] for name, seeds in runs.items()}
    classes = {name: run.table("per_class_ap.csv") for name, run in first.items()}
    reference, last = next(iter(classes.values())), list(classes.values())[-1]
    gain = {
        a["label"]: float(b["AP"]) - float(a["AP"]) for a, b in zip(reference, last, strict=True) if a["AP"]
    }
    drawn = {
        "arms": charts.arms(compare["arms"], palette),
        "labels": charts.labels(classes, sorted(gain, key=lambda label: -gain[label]), palette),
        "prevalence": charts.prevalence(audit["label_counts"]),
    }
    probes = {name: [run.table("probe.csv") for run in seeds] for name, seeds in runs.items()}
    for key, what in CURVES.items():
        values = {n: [[float(row[key]) for row in rows] for rows in tables] for n, tables in probes.items()}
        drawn[key] = charts.curves(values, palette, ylabel=what)
    pretraining = {
        n: [[float(row["loss"]) for row in run.table("pretrain.csv")] for run in seeds]
        for n, seeds in runs.items()
    }
    if trained := {n: lines for n, lines in pretraining.items() if lines[0]}:
        drawn["pretrain"] = charts.curves(trained, palette, ylabel="contrastive loss")
    few = {n: _label_efficiency(entry) for n, entry in compare["arms"].items()}
    if all(few.values()):
        drawn["label_efficiency"] = charts.label_efficiency(few, palette)
    if robustness:
        drawn["robustness"] = charts.robustness(robustness["arms"], palette)
    drawn["map"] = charts.embedding()
    return {name: charts.to_json(figure) for name, figure in drawn.items()}


def _label_efficiency(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An arm's rows, subsets of all its seeds together."""
    seeds = [seed.get("label_efficiency", []) for seed in entry["seeds"].values()]
    rows = []
    for same in zip(*seeds, strict=True):
        values = [value for row in same for value in row["subsets"]]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        rows.append({**same[0], "test_mAP": float(np.mean(values)), "sd": sd})
    return rows


def _hardest(found: Run, store: tiles.Store) -> list[dict[str, Any]]:
    """The labels of lowest AP, with their most confident mistakes and their most overlooked tiles."""
    row_of = {name: i for i, name in enumerate(store.names)}
    scores, targets = found.scores["test_scores"], found.scores["test_targets"].astype(bool)
    names = found.scores["test_tiles"].tolist()
    known = [row for row in found.table("per_class_ap.csv") if row["AP"]]

    def examples(order: npt.NDArray[np.int64], k: int) -> list[dict[str, Any]]:
        return [
            {
                "tile": names[i],
                "score": float(scores[i, k]),
                "picture": pictures.uri(store.pixels[row_of[names[i]]], side_px=EXAMPLE_PX),
            }
            for i in order[:EXAMPLES]
        ]

    hardest = []
    for row in sorted(known, key=lambda row: float(row["AP"]))[:HARDEST]:
        k = store.labels.index(row["label"])
        ranked = np.argsort(-scores[:, k], kind="stable")
        wrong, missed = ranked[~targets[ranked, k]], ranked[::-1][targets[ranked[::-1], k]]
        hardest.append({**row, "wrong": examples(wrong, k), "missed": examples(missed, k)})
    return hardest


def _robustness(
    runs: Mapping[str, Sequence[Run]], store: tiles.Store, flagged: Collection[str]
) -> dict[str, Any] | None:
    """Each arm's mAPs under corruption, means over its seeds, and one tile under every corruption."""
    found = {name: _mean_of([run.tree("robustness.json") for run in seeds]) for name, seeds in runs.items()}
    if not all(tree.get("corruptions") for tree in found.values()):
        return None
    tested = next(iter(found.values()))["corruptions"]
    return {"arms": found, "names": list(tested), "pictures": _corrupted(tested, store, flagged)}


def _mean_of(trees: Sequence[Any]) -> Any:
    """Trees of the same shape as one, a mean in place of each number."""
    if isinstance(trees[0], dict):
        return {key: _mean_of([tree[key] for tree in trees]) for key in trees[0]}
    return None if trees[0] is None else float(np.mean(trees))


def _corrupted(
    tested: Mapping[str, Mapping[str, float]], store: tiles.Store, flagged: Collection[str]
) -> list[dict[str, Any]]:
    """A test tile with many labels and some green, of those the audit trusts, untouched and under everything."""
    trusted = [row for row in store.rows("test").tolist() if store.names[row] not in flagged]

    def worth_showing(row: int) -> tuple[bool, int]:
        pixels = store.pixels[row].astype(int)
        green = (pixels[..., 1] - pixels[..., [0, 2]].max(-1) > 10).mean()
        return bool(green > 0.1), int(store.targets[row].sum())

    row = max((trusted or store.rows("test").tolist())[:2000], key=worth_showing)
    tile, key = torch.from_numpy(store.pixels[[row]]), [store.names[row]]
    shown = [{"name": "untouched", "pictures": [pictures.uri(tile[0].numpy(), side_px=CORRUPTION_PX)]}]
    for name, strengths in tested.items():
        each = [corruptions.corrupt(tile, name, strength=int(s), keys=key)[0].numpy() for s in strengths]
        uris = [pictures.uri(pixels, side_px=CORRUPTION_PX) for pixels in each]
        shown.append({"name": name, "pictures": uris})
    return shown


def _maps(first: Mapping[str, Run], store: tiles.Store) -> dict[str, Any] | None:
    """Coordinates of the same test tiles in every arm, their labels, and one sheet of their pictures."""
    found = {name: run.tree("maps.json") for name, run in first.items()}
    if not all(tree.get("projections") for tree in found.values()):
        return None
    names = next(iter(found.values()))["tiles"]
    row_of = {name: i for i, name in enumerate(store.names)}
    rows = [row_of[name] for name in names]
    picture, columns = pictures.sheet(store.pixels[rows], side_px=MAP_PX)
    categories = sorted(set(store.categories))
    return {
        "numbers": found,
        "projections": list(next(iter(found.values()))["projections"]),
        "sheet": picture,
        "data": {
            "arms": {name: tree["projections"] for name, tree in found.items()},
            "tiles": names,
            "categories": categories,
            "category": [categories.index(store.categories[row]) for row in rows],
            "names": store.labels,
            "labels": [np.flatnonzero(store.targets[row]).tolist() for row in rows],
            "columns": columns,
            "side_px": MAP_PX,
        },
    }


def _ladder(reports: Path) -> str | None:
    """The ladder's figure, where compare drew one."""
    import base64

    path = reports / "figures" / "ladder.png"
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _parameters(arms: Sequence[Arm]) -> list[tuple[str, list[str]]]:
    """Every setting, one column an arm."""
    flat = [arm.flat() for arm in arms]
    return [(key, [f[key] for f in flat]) for key in flat[0] if key not in ("profile", "arm", "seed")]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
