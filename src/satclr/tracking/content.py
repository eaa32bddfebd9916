"""What MLflow shows: metrics, tags and texts of a run, a report and a version; the views of an experiment."""

import getpass
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from satclr import files
from satclr.project import Run, leaves
from satclr.study.results import Results, git_state, read_json

NUMBERS = ("test_mAP_sd", "test_mAP_bias", "val_mAP", "p_value", "p_holm", "labels_better", "labels_worse")
ESTIMATES = [f"{kind}_{name}" for kind in ("test", "delta") for name in ("mAP", "converged_mAP", "within_category_mAP")]
# Views are saved as experiment tags; `satclr ui` opens the first, and the menu Views lists both.
ARM_RUNS, BY_ARM = "satclr-arm-runs", "satclr-by-arm"
CURRENT = "tags.`satclr.state` = 'current' and tags.`satclr.kind` = 'arm'"
COLUMNS = (
    *(f"metrics.`{name}`" for name in ("test/mAP", "test/mAP_lo", "test/mAP_hi", "test/micro_mAP", "val/mAP")),
    *("metrics.`best_epoch`", "tags.`satclr.arm`", "tags.`satclr.seed`"),
    *("attributes.`Dataset`", "attributes.`Models`", "attributes.`Description`"),
)
CARD_LENGTH = 5000  # characters that a registry keeps of a description

Number = tuple[str, float, int]  # key, value, step


def metrics(results: Results) -> list[Number]:
    """All numbers of a run: curves by epoch, `test/mAP` and the like, `test_ap/<label>`."""
    numbers: list[Number] = []
    for stage in ("pretrain", "probe"):
        for row in results.curve(stage):
            epoch = int(row.pop("epoch"))
            numbers += [(f"{stage}/{key}", value, epoch) for key, value in row.items()]
    for key, value in leaves(results.metrics, "_"):
        name = re.sub(r"^(test|val)_", r"\1/", metric_name(key))
        if key.endswith("_ci95") and value:
            numbers += [(name.replace("_ci95", end), value[i], 0) for i, end in enumerate(("_lo", "_hi"))]
        elif key != "seed" and type(value) in (int, float):
            numbers.append((name, value, 0))
    classes = [row for row in results.per_class if row["AP"]]
    names = metric_names(row["label"] for row in classes)
    return numbers + [(f"test_ap/{names[row['label']]}", float(row["AP"]), 0) for row in classes]


def report_metrics(report: Mapping[str, Any], per_class: Path) -> list[Number]:
    """The numbers of compare.json, `<what>/<arm>` and `<what>/<arm> - <against>`, and of compare's AP table."""
    entries = {**report["arms"], **report["references"]}
    for c in report["contrasts"]:
        entries[f"{c['arm']} - {c['against']}"] = c | {"delta_mAP_ci95": c["ci95"]}
    rows: list[tuple[str, Any]] = []
    for name, entry in entries.items():
        rows += [(f"{key}/{name}", entry.get(key)) for key in (*NUMBERS, *ESTIMATES)]
        for key in ESTIMATES:
            low, high = entry.get(f"{key}_ci95") or (None, None)
            rows += [(f"{key}_lo/{name}", low), (f"{key}_hi/{name}", high)]
        for row in entry.get("label_efficiency", []):
            part = f"{name}/{100 * row['fraction']:g}_percent"
            rows += [(f"label_efficiency_mAP/{part}", row["test_mAP"]), (f"label_efficiency_sd/{part}", row["sd"])]
        for stage in ("robustness", "maps"):
            for key, value in entry.get(stage, {}).items():
                rows += leaves(value, "/", f"{stage}_{key}/{name}")
    known = [row for row in files.read_csv(per_class) if row["delta_AP"]] if per_class.is_file() else []
    names = metric_names(dict.fromkeys(row["label"] for row in known))
    for row in known:
        keys = ("delta_AP", "delta_AP_lo", "delta_AP_hi")
        rows += [(f"{key}/{row['arm']}/{names[row['label']]}", row[key]) for key in keys]
    return [(key, float(value), 0) for key, value in rows if value is not None]


def report_note(report: Mapping[str, Any]) -> str:
    """Contrasts and references as Markdown tables."""
    lines = [_cells("arm", "against", "Δ test mAP", "95% interval", "p (Holm)"), "| --- | --- | --- | --- | --- |"]
    for c in report["contrasts"]:
        interval = f"{c['ci95'][0]:+.4f} to {c['ci95'][1]:+.4f}"
        lines.append(_cells(c["arm"], c["against"], f"{c['delta_mAP']:+.4f}", interval, f"{c['p_holm']:.4g}"))
    lines += ["", _cells("", "test mAP", "within category"), "| --- | --- | --- |"]
    for name, entry in {**report["arms"], **report["references"]}.items():
        lines.append(_cells(name, f"{entry['test_mAP']:.4f}", f"{entry['test_within_category_mAP']:.4f}"))
    return "\n".join(lines)


def _cells(*texts: str) -> str:
    """A row of a Markdown table, with room between columns: MLflow's pages leave none."""
    return f"| {' | '.join(f'{text}&emsp;' for text in texts)} |"


def metric_name(text: str) -> str:
    """`text` with `_` for what MLflow does not allow in a metric's name."""
    return re.sub(r"[^\w\-. ]", "_", text).strip(" .") or "_"


def metric_names(labels: Iterable[str]) -> dict[str, str]:
    """Each label's metric name; equal names are numbered."""
    names: dict[str, str] = {}
    for label in labels:
        same = sum(metric_name(other) == metric_name(label) for other in names)
        names[label] = f"{metric_name(label)}_{same + 1}" if same else metric_name(label)
    return names


def tags(results: Results, fingerprint: str) -> dict[str, str]:
    """The tags of an arm run, its description among them."""
    run = results.run
    stage = f"evaluate@{run.profile}-{run.arm}-{run.seed}"
    commit, dirty = git_state(run.root)
    md5 = data_md5(run) or "unknown"
    facts = {"kind": "arm", "arm": run.arm, "seed": run.seed, "profile": run.profile, "fingerprint": fingerprint}
    facts |= {"files": results.digest, "dvc_stage": stage, "data_md5": md5, "git_dirty": str(dirty).lower()}
    rows = {
        "DVC stage": f"`{stage}`",
        "commit": f"`{commit or 'none'}`{' with changes' if dirty else ''}",
        "data": f"`data/{run.profile}` md5 `{md5}`",
        "fingerprint": f"`{fingerprint}`",
    }
    numbers, first = audit(run)
    if numbers:
        flagged = f"{numbers['tiles_flagged']:,} of {numbers['tiles']:,} tiles flagged"
        rows["labels"] = f"{flagged}; first finding: {first.replace('|', '/')} (`data/audit.json`)"
    table = ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())]
    return {
        **{f"satclr.{key}": str(value) for key, value in facts.items()},
        "mlflow.note.content": "\n".join([headline(results), "", *table]),
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": f"satclr evaluate ({stage})",
        "mlflow.source.type": "LOCAL",
        **({"mlflow.source.git.commit": commit} if commit else {}),
    }


def headline(results: Results) -> str:
    """The result in one line of Markdown."""
    m = results.metrics
    low, high = m["test_mAP_ci95"]
    return (
        f"**{results.run.key}: test mAP {m['test_mAP']:.4f}** (95% interval {low:.4f} to {high:.4f}, over test tiles"
        f" only; {m['test_tiles']} tiles, {m['labels']} labels);"
        f" validation mAP {m['val_mAP']:.4f} at epoch {m['best_epoch']}"
    )


def card(results: Results, run_tags: Mapping[str, str]) -> str:
    """The model card of a version: intended use, data, metrics by label, limits, licence."""
    without = ", ".join(results.metrics.get("labels_without_positives", [])) or "none"
    head = f"""{headline(results)}

**Intended use.** Labels of overhead image tiles of the kind it was trained on: several labels per tile, no \
positions. Not for decisions about people or places unless someone looks at the picture.

**Data.** `data/{results.run.profile}`, DVC md5 `{run_tags["satclr.data_md5"]}`; commit \
`{run_tags.get("mlflow.source.git.commit", "none")}`, fingerprint `{run_tags["satclr.fingerprint"]}`.

**Limits.** The interval is over the tiles of one test split, not over places, sensors or seasons. Without test \
positives, hence of unknown quality: {without}. Chosen by validation mAP {results.metrics["val_mAP"]:.4f}.

**Licence.** Code MIT. The weights are subject to the terms of their training data and initial weights.

"""
    lines = [_cells("label", "test AP", "95% interval", "positives"), "| --- | --- | --- | --- |"]
    for row in results.per_class:
        ap, low, high = (f"{float(row[key]):.3f}" if row[key] else "–" for key in ("AP", "AP_lo", "AP_hi"))
        lines.append(_cells(row["label"], ap, f"{low} to {high}", row["positives"]))
    while len(head) + len("\n".join(lines)) > CARD_LENGTH - 60:
        lines = [*lines[:-2], "(more in the run's per_class_ap.csv)"]
    return head + "\n".join(lines)


def experiment_tags(profile: str) -> dict[str, str]:
    """A profile's kind, description and two saved views."""
    by_arm = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "satclr.arm"}]}
    return {
        "mlflow.experimentKind": "custom_model_development",  # else the UI opens as for language models
        "mlflow.note.content": (
            f"Arms of profile `{profile}`. **Views → Arm runs** lists the current run of each arm and seed,"
            " best test mAP first; **Views → Arms, mean over seeds** groups them. Runs of earlier settings are"
            " tagged `satclr.state = superseded`; live runs of the stages are children of their arm run."
        ),
        f"mlflow.sharedViewState.{ARM_RUNS}": _view("Arm runs", None),
        f"mlflow.sharedViewState.{BY_ARM}": _view("Arms, mean over seeds", by_arm),
    }


def _view(name: str, group_by: dict[str, Any] | None) -> str:
    state = {"searchFilter": CURRENT, "orderByKey": COLUMNS[0], "orderByAsc": False, "groupBy": group_by}
    state |= {"startTime": "ALL", "lifecycleFilter": "Active", "modelVersionFilter": "All Runs", "datasetsFilter": []}
    state |= {"selectedColumns": list(COLUMNS), "columnOrder": list(COLUMNS), "runsHiddenMode": "SHOW_ALL"}
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def data_md5(run: Run) -> str | None:
    """DVC's md5 of data/<profile> as `prepare` last read it, or that of the whole data folder."""
    prepared = _yaml(run.root / "dvc.lock").get("stages", {}).get(f"prepare@{run.profile}", {})
    found = [dep for dep in prepared.get("deps", []) if dep["path"] == f"data/{run.profile}"]
    found += _yaml(run.root / "data.dvc").get("outs", [])
    return str(found[0]["md5"]) if found else None


def audit(run: Run) -> tuple[dict[str, int], str]:
    """The numbers of build/<profile>/audit.json and its worst finding; none without one of a finished `prepare`."""
    file = run.store / "audit.json"
    tree = read_json(file) if file.is_file() else {}
    if "split" not in tree:
        return {}, ""
    levels = [finding["level"] for finding in tree["findings"]]
    numbers = {
        "tiles": tree["tiles"],
        "tiles_flagged": len(tree["flagged"]),
        "tiles_unlabelled": tree.get("unlabelled", {}).get("tiles", 0),
        "errors": levels.count("error"),
        "suspects": levels.count("suspect"),
        "near_duplicates_across_splits": tree["near_duplicates"]["groups_across_splits"],
    }
    return numbers, tree["findings"][0]["title"] if levels else "none"


def _yaml(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # dvc.lock is long
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return yaml.load(text, Loader=loader) or {}  # noqa: S506 - a safe loader  # nosec B506
