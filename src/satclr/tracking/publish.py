"""Arm runs from stage outputs: one flat run for each arm and seed, logged once whatever is rerun."""

from __future__ import annotations

import getpass
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from satclr.tracking import model, outputs
from satclr.tracking.outputs import Outputs
from satclr.tracking.store import Store, TrackingError, log, open_store, owner, sweep, tag_value

RACES = 5
OURS = ("champion.json", "promotions.csv")  # register's, not the report's
FIGURES = ("*.png", "*.svg", "*.html", "*.json", "*.csv")


def publish(
    root: Path,
    *,
    profile: str,
    arm: str,
    seed: int,
    params: Mapping[str, Any],
    fingerprint: str,
    figures: Iterable[Path] = (),
) -> str:
    """Return the id of the arm run of these outputs; log it first where the store has none.

    The same outputs and parameters (by digest) are never logged twice. Other runs of the arm and seed are
    marked superseded, and the live runs of its stages become its children.
    Raises `TrackingError` naming a missing output.
    """
    found = outputs.read(root, profile=profile, arm=arm, seed=seed, params=params)
    store = open_store(root, profile)
    sweep(store)
    run_id = _finished(store, found.digest)
    if run_id is None:
        run_id = _log(store, root, found, params=params, fingerprint=fingerprint, figures=figures)
    _supersede(store, found, run_id)
    _adopt(store, found, run_id)
    return run_id


def sync(root: Path, arms: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Publish every arm and seed whose outputs are here; return run ids, and what was left out and why.

    Each of `arms` holds the keyword arguments of `publish`.
    """
    run_ids, missing = [], []
    for arm in arms:
        try:
            run_ids.append(publish(root, **arm))
        except TrackingError as error:
            if "does not exist" not in str(error):
                raise
            missing.append(f"{arm['arm']}-s{arm['seed']}: {error}")
    return run_ids, missing


def publish_report(root: Path, profile: str, folder: Path) -> str:
    """Return the id of the run `compare` of a report: its contrasts as metrics, its files as artifacts."""
    files = sorted({file for pattern in FIGURES for file in folder.glob(pattern)})
    files = [file for file in files if file.name not in OURS]
    digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
    store = open_store(root, profile)
    sweep(store)
    run_id = _finished(store, digest)
    if run_id is None:
        report = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
        tags = {"satclr.kind": "compare", "satclr.profile": profile, "satclr.digest": digest}
        run_id = _create(store, "compare", {**tags, "mlflow.note.content": _contrasts(report)})
        now_ms = int(time.time() * 1000)
        numbers = _report_numbers(report) + _label_numbers(folder / "per_class_ap.csv")
        log(store, run_id, metrics=[(key, value, now_ms, 0) for key, value in numbers])
        for file in files:
            store.client.log_artifact(run_id, str(file), "report")
        store.client.set_terminated(run_id)
    query = "tags.`satclr.kind` = 'compare' and tags.`satclr.state` = 'current'"
    _replace(store, query, run_id)
    return run_id


def _log(
    store: Store, root: Path, found: Outputs, *, params: Mapping[str, Any], fingerprint: str, figures: Iterable[Path]
) -> str:
    run_id = _create(store, found.name, _tags(root, found, fingerprint))
    try:
        _log_data(store, root, found, run_id)
        model_id = model.log_model(found, run_id)
        now_ms = int(time.time() * 1000)
        points = [(key, value, now_ms, step) for key, value, step in outputs.points(found)]
        log(store, run_id, params=params, metrics=points, model_id=model_id)
        if audit := outputs.audit(root, found.profile):
            numbers = [(f"tiles_audit/{key}", float(value), now_ms, 0) for key, value in audit.numbers.items()]
            log(store, run_id, metrics=numbers)
            store.client.log_artifact(run_id, str(audit.file), "data")
        for name in outputs.RESULTS:
            store.client.log_artifact(run_id, str(found.results / name), "results")
        for figure in figures:
            store.client.log_artifact(run_id, str(figure), "figures")
    except BaseException:
        store.client.set_terminated(run_id, "FAILED")
        raise
    store.client.set_terminated(run_id)
    return run_id


def _create(store: Store, name: str, tags: Mapping[str, str]) -> str:
    run = store.client.create_run(store.experiment_id, run_name=name, tags={**tags, **owner()})
    return str(run.info.run_id)


def _tags(root: Path, found: Outputs, fingerprint: str) -> dict[str, str]:
    commit, dirty = outputs.git(root)
    md5 = outputs.data_md5(root, found.profile)
    stage = f"evaluate@{found.profile}-{found.arm}-{found.seed}"
    note = [
        outputs.headline(found),
        "",
        "| | |",
        "| --- | --- |",
        f"| DVC stage | `{stage}` |",
        f"| commit | `{commit or 'none'}`{' with changes' if dirty else ''} |",
        f"| data | `data/{found.profile}` md5 `{md5 or 'unknown'}` |",
        f"| fingerprint | `{fingerprint}` |",
    ]
    if audit := outputs.audit(root, found.profile):
        flagged = f"{audit.numbers['tiles_flagged']:,} of {audit.numbers['tiles']:,} tiles flagged"
        note.append(f"| labels | {flagged}; first finding: {audit.worst.replace('|', '/')} (`data/audit.json`) |")
    return {
        "satclr.kind": "arm",
        "satclr.arm": found.arm,
        "satclr.seed": str(found.seed),
        "satclr.profile": found.profile,
        "satclr.fingerprint": fingerprint,
        "satclr.digest": found.digest,
        "satclr.files": found.files,
        "satclr.dvc_stage": stage,
        "satclr.data_md5": md5 or "unknown",
        "satclr.git_dirty": str(dirty).lower(),
        "mlflow.note.content": "\n".join(note),
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": f"satclr evaluate ({stage})",
        "mlflow.source.type": "LOCAL",
        **({"mlflow.source.git.commit": commit} if commit else {}),
    }


def _log_data(store: Store, root: Path, found: Outputs, run_id: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    md5 = outputs.data_md5(root, found.profile)
    audit = outputs.audit(root, found.profile)
    facts = {"test_tiles": found.metrics["test_tiles"], **(audit.numbers if audit else {})}
    data = Dataset(
        name=found.profile,
        digest=md5 or "unknown",
        source_type="local",
        source=json.dumps({"uri": f"data/{found.profile}", "dvc_md5": md5}),
        profile=json.dumps(facts),
    )
    inputs = [DatasetInput(data, [InputTag("mlflow.data.context", "training")])]
    for attempt in range(RACES):
        try:
            store.client.log_inputs(run_id, inputs)
        except MlflowException as error:  # another arm added the same data set at the same moment
            if "unique" not in str(error).lower() or attempt == RACES - 1:
                raise
        else:
            return


def _finished(store: Store, digest: str) -> str | None:
    """Return the run of a digest; one whose logging was cut short is deleted, to be logged anew."""
    query = f"tags.`satclr.digest` = {tag_value(digest)}"
    for run in store.client.search_runs([store.experiment_id], query):
        if run.info.status == "FINISHED":
            return str(run.info.run_id)
        if run.info.status != "RUNNING":
            _delete(store, run.info.run_id)
    return None


def _delete(store: Store, run_id: str) -> None:
    """Delete a run and the models it logged."""
    query = f"source_run_id = {tag_value(run_id)}"
    for logged in store.client.search_logged_models([store.experiment_id], query):
        store.client.delete_logged_model(logged.model_id)
    store.client.delete_run(run_id)


def _supersede(store: Store, found: Outputs, run_id: str) -> None:
    query = (
        f"tags.`satclr.kind` = 'arm' and tags.`satclr.arm` = {tag_value(found.arm)}"
        f" and tags.`satclr.seed` = '{found.seed}' and tags.`satclr.state` = 'current'"
    )
    _replace(store, query, run_id)


def _replace(store: Store, query: str, run_id: str) -> None:
    """Make a run the current one of a query and the others superseded, as it may have been itself."""
    client = store.client
    for run in client.search_runs([store.experiment_id], query):
        if run.info.run_id != run_id:
            name = run.info.run_name
            log(store, run.info.run_id, tags={"satclr.state": "superseded", "satclr.superseded_by": run_id})
            client.update_run(run.info.run_id, name=f"{name} (superseded)")
    tags = client.get_run(run_id).data.tags
    if tags.get("satclr.state") != "current":
        client.set_tag(run_id, "satclr.state", "current")
        if "satclr.superseded_by" in tags:
            client.delete_tag(run_id, "satclr.superseded_by")
            client.update_run(run_id, name=tags["mlflow.runName"].removesuffix(" (superseded)"))


def _adopt(store: Store, found: Outputs, run_id: str) -> None:
    query = (
        f"tags.`satclr.kind` = 'live' and tags.`satclr.arm` = {tag_value(found.arm)}"
        f" and tags.`satclr.seed` = '{found.seed}'"
    )
    for run in store.client.search_runs([store.experiment_id], query):
        if "mlflow.parentRunId" not in run.data.tags:
            store.client.set_tag(run.info.run_id, "mlflow.parentRunId", run_id)


def _report_numbers(report: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The numbers of compare.json, `<what>/<arm>` and `<what>/<arm> - <against>`; docs/evaluation.md lists them."""
    rows = [row for arm, entry in report["arms"].items() for row in _arm_numbers(arm, entry)]
    for contrast in report["contrasts"]:
        name = f"{contrast['arm']} - {contrast['against']}"
        low, high = contrast["ci95"]
        rows += [(f"delta_mAP/{name}", contrast["delta_mAP"]), (f"delta_mAP_lo/{name}", low)]
        rows += [(f"delta_mAP_hi/{name}", high), (f"p_value/{name}", contrast["p_value"])]
        counts = [key for key in ("labels_better", "labels_worse") if key in contrast]
        rows += [(f"{key}/{name}", contrast[key]) for key in counts]
    return [(key, float(value)) for key, value in rows if value is not None]


def _arm_numbers(arm: str, entry: Mapping[str, Any]) -> list[tuple[str, Any]]:
    low, high = entry["test_mAP_ci95"]
    rows = [(f"{key}/{arm}", entry.get(key)) for key in ("test_mAP", "test_mAP_sd", "val_mAP")]
    rows += [(f"test_mAP_lo/{arm}", low), (f"test_mAP_hi/{arm}", high)]
    for row in entry.get("label_efficiency", []):
        name = f"{arm}/{100 * row['fraction']:g}_percent"
        rows += [(f"label_efficiency_mAP/{name}", row["test_mAP"]), (f"label_efficiency_sd/{name}", row["sd"])]
    for stage in ("robustness", "maps"):
        for key, value in entry.get(stage, {}).items():
            rows += _leaves(f"{stage}_{key}/{arm}", value)
    return rows


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    """{"haze": {"1": x}} at `name` as (name/haze/1, x)."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _leaves(f"{name}/{key}", inner)]
    return [(name, value)]


def _label_numbers(path: Path) -> list[tuple[str, float]]:
    """The difference in AP of each label, with its interval, from compare's per_class_ap.csv."""
    if not path.is_file():
        return []
    known = [row for row in outputs.table(path) if row["delta_AP"]]
    labels = list(dict.fromkeys(row["label"] for row in known))
    names = dict(zip(labels, outputs.metric_names(labels), strict=True))
    return [
        (f"{key}/{row['arm']}/{names[row['label']]}", float(row[key]))
        for row in known
        for key in ("delta_AP", "delta_AP_lo", "delta_AP_hi")
    ]


def _contrasts(report: Mapping[str, Any]) -> str:
    lines = ["| arm | against | Δ test mAP | 95% interval | p |", "| --- | --- | --- | --- | --- |"]
    for c in report["contrasts"]:
        low, high = c["ci95"]
        interval = f"{low:+.4f} to {high:+.4f}"
        lines.append(f"| {c['arm']} | {c['against']} | {c['delta_mAP']:+.4f} | {interval} | {c['p_value']:.4g} |")
    return "\n".join(lines)
