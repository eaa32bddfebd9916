"""Write the study as one page: self-contained, offline, printable.

In: compare.json, the arms' results, the tile store and its audit. Out: reports/<profile>/report.html, some 5 MB,
and its figures as PNG.

    satclr report --profile sample
"""

import base64
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from satclr import files
from satclr.data import tiles
from satclr.project import Project
from satclr.study import compare, figures
from satclr.study.results import Arms, Results, existing, git_state, read_json, versions

TILE_PX, MAP_PX = 128, 44  # sides of shown tiles
HARDEST, EXAMPLES = 6, 4  # labels; tiles of each kind for each


def run(project: Project) -> Path:
    """Write report.html, print its path and size, and return the path.

    Raises `files.FileError` where compare.json has other arms than params.yaml runs and where `prepare` did not finish,
    and as `Results` does.
    """
    arms = {seeds[0].arm: [Results(run) for run in seeds] for seeds in project.arms()}
    report = read_json(existing(project.reports / "compare.json", project.root))
    if list(report["arms"]) != list(arms):
        raise files.FileError(
            f"compare.json has the arms {', '.join(report['arms'])}, params.yaml runs {', '.join(arms)}; "
            "run `satclr compare` again"
        )
    html, drawn = _render(project, report, arms)
    for name, figure in drawn.items():
        with files.replacing(project.reports / "figures" / f"{name}.png") as part:  # equal numbers give equal bytes
            figure.savefig(part, dpi=figures.DPI, metadata={"Software": None}, format="png")
    path = project.reports / "report.html"
    files.write_text(path, html)
    print(f"{path.relative_to(project.root)}: {path.stat().st_size / 1e6:.1f} MB")
    return path


def _render(project: Project, report: dict[str, Any], arms: Arms) -> tuple[str, dict[str, Any]]:
    """The page, and its figures by name."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    store = tiles.open_store(project.store)
    audit = read_json(existing(store.folder / "audit.json", project.root))
    if "split" not in audit:
        raise files.FileError(
            f"build/{project.profile}/audit.json is of a `satclr prepare` that did not finish; run it"
        )
    entries, verdict = report["arms"], compare.answer(report)
    best = max(entries, key=lambda name: float(entries[name]["val_mAP"]))
    first = {name: seeds[0] for name, seeds in arms.items()}
    rows = files.read_csv(existing(project.reports / "per_class_ap.csv", project.root))
    labels = per_label(rows, first[best].per_class, arm=verdict.get("arm", best))
    robust = all("robustness" in entry for entry in entries.values())
    tested = entries[best]["robustness"]["corruptions"] if robust else {}
    palette = figures.make_palette(arms)
    flat = [results.run.flat() for results in first.values()]
    commit, dirty = git_state(project.root)
    drawn = _charts(arms, report, labels, palette) | {"prevalence": figures.prevalence(audit["label_counts"])}
    html = environment.get_template("template.html").render(
        report,
        plotly=get_plotlyjs(),
        colours={name: figures.PAGE_COLOURS.get(colour, colour) for name, (colour, _) in palette.items()},
        answer=verdict,
        best=best,
        seeds=project.params.seeds,
        charts={name: figures.svg(figure) for name, figure in drawn.items()},
        labels=labels,
        hardest=hardest(first[best], store),
        corruptions=tested,
        corrupted=corrupted(tested, store, audit["flagged"]) if robust else [],
        maps=maps(first, entries, store),
        audit=audit,
        store=store,
        settings={key: [f[key] for f in flat] for key in flat[0]},
        versions=versions(),
        commit=f"{commit} with changes" if dirty else commit,
    )
    return html, drawn


def _charts(
    arms: Arms, report: Mapping[str, Any], labels: Sequence[Mapping[str, Any]], palette: figures.Palette
) -> dict[str, Any]:
    """The figures of the arms, by name."""
    entries, names, drawn = report["arms"], [row["label"] for row in labels], dict[str, Any]()
    curves = [("pretrain", "loss", "contrastive loss"), *(("probe", *c) for c in compare.CURVES.items())]
    for stage, key, ylabel in curves:
        tables = {name: [r.curve(stage) for r in seeds] for name, seeds in arms.items()}
        values = {name: [[row[key] for row in rows] for rows in t] for name, t in tables.items() if t[0]}
        if values:  # no arm may have been pretrained
            drawn["pretrain_loss" if stage == "pretrain" else key] = figures.curves(values, palette, ylabel=ylabel)
    drawn["arms"] = figures.arms(entries, palette, references=report["references"])
    drawn["labels"] = figures.dots(names, intervals(labels, "AP"), palette, xlabel="test AP")
    if len(entries) > 1:
        gains, xlabel = intervals(labels, "delta_AP"), f"difference in test AP to {next(iter(entries))}"
        drawn["differences"] = figures.dots(names, gains, palette, xlabel=xlabel, lanes=len(entries))
    if report["ladder"]:
        drawn["ladder"] = figures.ladder(report["ladder"], palette, paper=report["paper"])
    for name, rows in (("label_efficiency", few_labels), ("robustness", strengths)):
        named = {arm: rows(entry) for arm, entry in entries.items()}
        if all(named.values()):
            each = {arm: np.array(list(table.values())) for arm, table in named.items()}
            drawn[name] = figures.dots(list(next(iter(named.values()))), each, palette, xlabel="test mAP")
    return drawn


def per_label(
    rows: Sequence[Mapping[str, str]], counts: Sequence[Mapping[str, str]], *, arm: str
) -> list[dict[str, Any]]:
    """Each label with its test tiles and every arm's row of compare's table; those that gain most with `arm` first.

    rows: of reports/<profile>/per_class_ap.csv; counts: of one arm's per_class_ap.csv. Labels without AP are left out.
    """
    by_label: dict[str, dict[str, Mapping[str, str]]] = {}
    for row in rows:
        if row["AP"]:
            by_label.setdefault(row["label"], {})[row["arm"]] = row
    count = {row["label"]: row for row in counts}
    table: list[dict[str, Any]] = [{**count[label], "arms": arms} for label, arms in by_label.items()]
    by = "delta_AP" if any(row["arms"][arm]["delta_AP"] for row in table) else "AP"
    return sorted(table, key=lambda row: -float(row["arms"][arm][by]))


def intervals(labels: Sequence[Mapping[str, Any]], key: str) -> dict[str, figures.Floats]:
    """Value, low and high of each label, (K,3), of every arm that has them; labels: of `per_label`."""
    keys = (key, f"{key}_lo", f"{key}_hi")
    arms = [arm for arm in (labels[0]["arms"] if labels else ()) if labels[0]["arms"][arm][key]]
    return {arm: np.array([[float(row["arms"][arm][k]) for k in keys] for row in labels]) for arm in arms}


def few_labels(entry: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Test mAP by share of training labels, one standard deviation below, above; of one arm in compare.json."""
    points = [(p["fraction"], p["tiles"], p["test_mAP"], p["sd"] or 0) for p in entry["label_efficiency"]]
    return {f"{100 * share:g}%, {count:,} tiles": (y, y - sd, y + sd) for share, count, y, sd in points}


def strengths(entry: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Test mAP under each corruption: mean, lowest, highest over its strengths; of one arm in compare.json."""
    if "robustness" not in entry:
        return {}
    tested = {"untouched": {"0": entry["robustness"]["clean_mAP"]}, **entry["robustness"]["corruptions"]}
    values = {name: list(each.values()) for name, each in tested.items()}
    return {name: (float(np.mean(v)), min(v), max(v)) for name, v in values.items()}


def hardest(results: Results, store: tiles.TileStore) -> list[dict[str, Any]]:
    """The labels of lowest AP, with the highest scores without the label and the lowest with it."""
    test, tested = results.scores("test"), store.rows("test")
    scores, targets = test.scores, test.targets.astype(bool)

    def examples(order: npt.NDArray[np.int64], k: int) -> list[dict[str, Any]]:
        return [
            {"tile": test.tiles[i], "score": float(scores[i, k]), "picture": uri(store.pixels[tested[i]])}
            for i in order[:EXAMPLES]
        ]

    rows = []
    known = [row for row in results.per_class if row["AP"]]
    for row in sorted(known, key=lambda row: float(row["AP"]))[:HARDEST]:
        k = store.labels.index(row["label"])
        ranked = np.argsort(-scores[:, k], kind="stable")
        wrong, missed = ranked[~targets[ranked, k]], ranked[::-1][targets[ranked[::-1], k]]
        rows.append({**row, "wrong": examples(wrong, k), "missed": examples(missed, k)})
    return rows


def corrupted(
    tested: Mapping[str, Mapping[str, float]], store: tiles.TileStore, flagged: Collection[str]
) -> list[dict[str, Any]]:
    """A test tile with many labels and some green, which the audit did not flag: untouched, and corrupted."""
    import torch  # corruptions compute with it

    from satclr.evaluation import corruptions

    trusted = [row for row in store.rows("test").tolist() if store.names[row] not in flagged]

    def worth_showing(row: int) -> tuple[bool, int]:
        pixels = store.pixels[row].astype(int)
        green = (pixels[..., 1] - pixels[..., [0, 2]].max(-1) > 10).mean()
        return bool(green > 0.1), int(store.targets[row].sum())

    row = max((trusted or store.rows("test").tolist())[:2000], key=worth_showing)
    tile, key = torch.from_numpy(store.pixels[[row]]), [store.names[row]]
    shown = [{"name": "untouched", "pictures": [uri(tile[0].numpy())]}]
    for name, strengths in tested.items():
        each = [corruptions.corrupt(tile, name, strength=int(s), keys=key)[0].numpy() for s in strengths]
        shown.append({"name": name, "pictures": [uri(pixels) for pixels in each]})
    return shown


def maps(first: Mapping[str, Results], entries: figures.Entries, store: tiles.TileStore) -> dict[str, Any] | None:
    """Coordinates of the same test tiles for every arm's first seed, their labels, and a sheet of their pictures."""
    if not all("maps" in entry for entry in entries.values()):
        return None
    trees = {name: results.optional("maps.json") or {} for name, results in first.items()}
    names = next(iter(trees.values()))["tiles"]
    row_of = {name: i for i, name in enumerate(store.names)}
    rows = [row_of[name] for name in names]
    picture, columns = sheet(store.pixels[rows], side_px=MAP_PX)
    categories = sorted({store.categories[row] for row in rows})
    data = {
        "arms": {name: tree["projections"] for name, tree in trees.items()},
        "tiles": names,
        "categories": categories,
        "category": [categories.index(store.categories[row]) for row in rows],
        "names": store.labels,
        "labels": [np.flatnonzero(store.targets[row]).tolist() for row in rows],
        "columns": columns,
        "side_px": MAP_PX,
    }
    return {"sheet": picture, "data": data}


def uri(tile: npt.NDArray[np.uint8]) -> str:
    """One tile (H,H,3) as a data URI of side TILE_PX."""
    return sheet(tile[None], side_px=TILE_PX)[0]


def sheet(tiles: npt.NDArray[np.uint8], *, side_px: int) -> tuple[str, int]:
    """Tiles (N,H,H,3) as one picture, a data URI, each of side `side_px`, row by row; and how many are in a row."""
    columns = math.ceil(math.sqrt(len(tiles)))
    picture = Image.new("RGB", (columns * side_px, math.ceil(len(tiles) / columns) * side_px))
    for i, tile in enumerate(tiles):
        small = Image.fromarray(tile).resize((side_px, side_px), Image.Resampling.LANCZOS)
        picture.paste(small, (i % columns * side_px, i // columns * side_px))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), columns
