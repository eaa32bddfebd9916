"""The tables of the docs, filled from the committed runs and benchmarks.

python -m tools.tables
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from satclr.evaluation import metrics

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"(<!-- table: (?P<run>[\w-]+) (?P<kind>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    for doc in documents():
        doc.write_text(with_tables(doc.read_text(encoding="utf-8")), encoding="utf-8")


def documents() -> list[Path]:
    """The README and the docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def with_tables(text: str) -> str:
    """`text` with each `<!-- table: RUN KIND --> … <!-- end -->` filled from docs/runs/RUN/compare.json.

    Where RUN is `benchmarks`, from a benchmark's results.
    """

    def table(match: re.Match[str]) -> str:
        if match["run"] == "benchmarks":
            return match[1] + str(benchmark("run").markdown(match["kind"])) + match[4]
        folder = ROOT / "docs" / "runs" / match["run"]
        report = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
        if (folder / "grid.json").exists():
            report["grid"] = json.loads((folder / "grid.json").read_text(encoding="utf-8"))
        header, *rows = TABLES[match["kind"]](report)
        lines = [header, ("---",) * len(header), *rows]
        return match[1] + "".join(f"| {' | '.join(line)} |\n" for line in lines) + match[4]

    return TABLE.sub(table, text)


def arms(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Each arm with its spread over seeds, interval, and difference to the first."""
    reference = next(iter(report["arms"]))
    against = {c["arm"]: c for c in report["contrasts"] if c["against"] == reference}
    rows: list[tuple[str, ...]] = [
        ("arm", "test mAP", "sd over seeds", "95% interval", f"against `{reference}`", "95% interval")
    ]
    for name, arm in report["arms"].items():
        c = against.get(name)
        sd = "" if arm["test_mAP_sd"] is None else f"{arm['test_mAP_sd']:.4f}"
        difference = (f"{c['delta_mAP']:+.4f}", _span(c["ci95"], "+")) if c else ("", "")
        rows.append((f"`{name}`", f"{arm['test_mAP']:.4f}", sd, _span(arm["test_mAP_ci95"]), *difference))
    return rows


def ladder(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rungs of the ladder, each with its change from the one above."""
    rows: list[tuple[str, ...]] = [("rung", "test mAP", "95% interval", "change from the rung above", "95% interval")]
    for step in report["ladder"]:
        change = (f"{step['delta_mAP']:+.4f}", _span(step["delta_ci95"], "+")) if "against" in step else ("", "")
        rows.append((f"`{step['arm']}`", f"{step['test_mAP']:.4f}", _span(step["ci95"]), *change))
    return rows


def factorial(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """What each departure of the released code contributes to the difference that all make."""
    rows: list[tuple[str, ...]] = [("departure", "alone", "after the others", "Shapley value", "95% interval")]
    for found in report["factorial"]:
        for row in found["departures"]:
            values = (f"{row[key]:+.3f}" for key in ("alone", "last", "shapley"))
            rows.append((row["departure"], *values, _span(row["ci95"], "+")))
        rows.append(("all three", "", "", f"{found['delta_mAP']:+.3f}", _span(found["ci95"], "+")))
    return rows


def labels(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The converged probe on shares of the training labels: mean ± standard deviation over subsets and seeds."""
    shares = next(iter(report["arms"].values()))["label_efficiency"]
    rows: list[tuple[str, ...]] = [("arm", *(f"{row['fraction']:.0%}: {row['tiles']:,} tiles" for row in shares))]
    for name, arm in report["arms"].items():
        cells = ((row["test_mAP"], row["sd"]) for row in arm["label_efficiency"])
        rows.append((f"`{name}`", *(f"{mean:.3f}" + ("" if sd is None else f" ± {sd:.3f}") for mean, sd in cells)))
    return rows


def objectives(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Each objective at the first temperature and at its best by validation, against SimCLR and the best objective.

    p-values are adjusted by Holm's method among the rows of their column.
    """
    grid, entries = report["grid"], report["arms"]
    chosen = [facts["chosen"] for facts in grid.values()]
    best = max(chosen, key=lambda name: float(entries[name]["val_mAP"]))
    against = [_against(report, chosen, reference) for reference in (grid["simclr"]["chosen"], best)]
    first = next(iter(grid["simclr"]["temperatures"]))
    rows: list[tuple[str, ...]] = [(
        "objective", f"test mAP at τ = {first}", "best τ", "test mAP", "converged probe", "within category",
        "against SimCLR", "95% interval", "p", "against the best", "95% interval", "p", f"labels shuffled, τ = {first}",
    )]  # fmt: skip
    for arm, facts in grid.items():
        name = facts["chosen"]
        cells = [f"`{arm}`", _spread(entries[facts["first"]]), facts.get("temperature", ""), _spread(entries[name])]
        cells += [f"{entries[name][f'test_{key}_mAP']:.3f}" for key in ("converged", "within_category")]
        for found in against:
            cells += found.get(name, ("", "", ""))
        rows.append((*cells, f"{facts['shuffled']['test_mAP']:.3f}" if "shuffled" in facts else ""))
    return rows


def temperatures(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Validation mAP of each objective at each temperature, on the first seed."""
    tried = {arm: facts["temperatures"] for arm, facts in report["grid"].items() if "temperatures" in facts}
    taus = sorted(next(iter(tried.values())), key=float)
    rows: list[tuple[str, ...]] = [("validation mAP", *(f"τ = {t}" for t in taus))]
    for arm, at in tried.items():
        values = [at[t]["val_mAP"] for t in taus]
        rows.append((f"`{arm}`", *(f"**{v:.3f}**" if v == max(values) else f"{v:.3f}" for v in values)))
    return rows


def structure(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Local and global structure of the features and of their maps, means over seeds."""
    found = {name: arm["maps"] for name, arm in report["arms"].items() if "maps" in arm}
    kinds = {"umap": "UMAP", "tsne": "t-SNE"}
    columns = [f"{kind}, {what}" for kind in kinds.values() for what in ("local", "global")]
    rows: list[tuple[str, ...]] = [("arm", "labels shared with neighbours", *columns)]
    for name, m in found.items():
        both = (m[key][kind] for kind in kinds for key in ("trustworthiness", "distance_rank_correlation"))
        rows.append((f"`{name}`", f"{m['knn_label_overlap']:.3f}", *(f"{value:.3f}" for value in both)))
    return rows


TABLES = {
    "arms": arms,
    "ladder": ladder,
    "factorial": factorial,
    "labels": labels,
    "objectives": objectives,
    "temperatures": temperatures,
    "structure": structure,
}


def _against(report: dict[str, Any], arms: list[str], reference: str) -> dict[str, tuple[str, str, str]]:
    """Each other arm's difference to the reference, its interval, and its p-value, adjusted among these."""
    found = {}
    for c in report["contrasts"]:
        sign = 1 if c["against"] == reference else -1
        name = c["arm"] if sign > 0 else c["against"]
        if {c["arm"], c["against"]} == {reference, name} and name in arms:
            ends = sorted(sign * end for end in c["ci95"])
            found[name] = (f"{sign * c['delta_mAP']:+.3f}", _span(ends, "+"), c["p_wald"])
    adjusted = metrics.holm([p for *_, p in found.values()])
    return {name: (*cells[:2], f"{p:.3f}") for (name, cells), p in zip(found.items(), adjusted, strict=True)}


def _spread(entry: dict[str, Any]) -> str:
    sd = "" if entry["test_mAP_sd"] is None else f" ± {entry['test_mAP_sd']:.3f}"
    return f"{entry['test_mAP']:.3f}{sd}"


def benchmark(name: str) -> Any:
    """A module of benchmarks/, whose modules import each other by name."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def _span(ends: list[float], sign: str = "") -> str:
    return f"{ends[0]:{sign}.3f} to {ends[1]:{sign}.3f}"


if __name__ == "__main__":
    main()
