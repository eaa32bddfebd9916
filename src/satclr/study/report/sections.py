"""What each section of the report shows, gathered from the stages' files."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from satclr.data import tiles
from satclr.evaluation import corruptions
from satclr.params import Arm
from satclr.study.report import pictures

EXAMPLE_PX, MAP_PX, CORRUPTION_PX = 128, 44, 128
HARDEST, EXAMPLES = 6, 4  # labels; tiles of each kind for each

Row = Mapping[str, str]  # of a CSV file


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
        return table(self.folder / name)

    def tree(self, name: str) -> dict[str, Any]:
        """A JSON file of a stage that may be left out: {} without it."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by its header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def per_label(rows: Sequence[Row], counts: Sequence[Row], *, arm: str) -> list[dict[str, Any]]:
    """Each label with its test tiles and every arm's row of compare's table, those that gain most with `arm` first.

    rows: of reports/per_class_ap.csv; counts: of any arm's own per_class_ap.csv. A label without AP is left out.
    """
    by_label: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["AP"]:
            by_label.setdefault(row["label"], {})[row["arm"]] = row
    count = {row["label"]: row for row in counts}
    found: list[dict[str, Any]] = [
        {
            "label": label,
            "positives": int(count[label]["positives"]),
            "prevalence": float(count[label]["prevalence"]),
            "arms": arms,
        }
        for label, arms in by_label.items()
    ]
    by = "delta_AP" if any(row["arms"][arm]["delta_AP"] for row in found) else "AP"
    return sorted(found, key=lambda row: -float(row["arms"][arm][by]))


def hardest(found: Run, store: tiles.TileStore) -> list[dict[str, Any]]:
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

    rows = []
    for row in sorted(known, key=lambda row: float(row["AP"]))[:HARDEST]:
        k = store.labels.index(row["label"])
        ranked = np.argsort(-scores[:, k], kind="stable")
        wrong, missed = ranked[~targets[ranked, k]], ranked[::-1][targets[ranked[::-1], k]]
        rows.append({**row, "wrong": examples(wrong, k), "missed": examples(missed, k)})
    return rows


def robustness(
    entries: Mapping[str, Mapping[str, Any]], store: tiles.TileStore, flagged: Collection[str]
) -> dict[str, Any] | None:
    """Each arm's mAPs under corruption, of compare.json's arms, and one tile under every corruption."""
    found = {name: entry.get("robustness", {}) for name, entry in entries.items()}
    if not all(tree.get("corruptions") for tree in found.values()):
        return None
    tested = next(iter(found.values()))["corruptions"]
    return {
        "arms": found,
        "names": list(tested),
        "strengths": list(next(iter(tested.values()))),
        "pictures": corrupted(tested, store, flagged),
    }


def corrupted(
    tested: Mapping[str, Mapping[str, float]], store: tiles.TileStore, flagged: Collection[str]
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


def maps(
    first: Mapping[str, Run], entries: Mapping[str, Mapping[str, Any]], store: tiles.TileStore
) -> dict[str, Any] | None:
    """Coordinates of the same test tiles in every arm's first seed, their labels, and one sheet of their pictures."""
    found = {name: run.tree("maps.json") for name, run in first.items()}
    if not all("maps" in entry for entry in entries.values()):
        return None
    names = next(iter(found.values()))["tiles"]
    row_of = {name: i for i, name in enumerate(store.names)}
    rows = [row_of[name] for name in names]
    picture, columns = pictures.sheet(store.pixels[rows], side_px=MAP_PX)
    categories = sorted({store.categories[row] for row in rows})
    return {
        "numbers": {name: entry["maps"] for name, entry in entries.items()},
        "projections": list(next(iter(found.values()))["projections"]),
        "neighbours": next(iter(first.values())).arm.settings.maps.neighbours,
        "categories": categories,
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


def ladder(reports: Path) -> str | None:
    """The ladder's figure, where compare drew one."""
    path = reports / "figures" / "ladder.png"
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
