"""Versions of the registered model `satclr-<profile>`, their aliases, and every decision about them.

In: what the stages wrote for every arm and seed, and their MLflow runs. Out: a model version with the alias `champion`,
reports/<profile>/champion.json, and a line of reports/<profile>/promotions.csv.

    satclr register
    satclr promote VERSION
    satclr rollback
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock

from satclr import files
from satclr.evaluation import metrics
from satclr.project import Project
from satclr.study.results import Results, Scores, scores
from satclr.tracking import content, runs
from satclr.tracking.store import Store, TrackingError, open_store, tag

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
OVER, ROLLED_BACK, FILES = "satclr.promoted_over", "satclr.rolled_back", "satclr.files"
RESAMPLES = 1000
Gap = tuple[
    float | None, float | None, float | None
]  # difference in test mAP, candidate minus champion; interval
NO_GAP: Gap = (None, None, None)
Outcome = Literal["champion", "challenger", "kept", "rejected", "promoted", "rolled back", "restored"]


@dataclass(frozen=True)
class Decision:
    """One line of promotions.csv."""

    decided_at: str  # UTC, ISO 8601
    decision: Outcome
    model: str
    version: str  # empty if no version was made
    arm: str
    seed: int
    val_mAP: float  # noqa: N815 - the field's spelling
    test_mAP: float  # noqa: N815
    against: str  # the former champion's version
    delta_mAP: float | None  # noqa: N815
    delta_lo: float | None
    delta_hi: float | None
    reason: str


def run(project: Project) -> Decision:
    """Gate the candidate, the run with the best validation mAP, write champion.json and print the reason.

    Without a champion, or if it is better than the champion by paired bootstrap on the same test tiles (95% interval
    above zero), the candidate becomes `champion` and the former one `previous`; otherwise `challenger`. Below
    `register.minimum_val_mAP` it becomes no version. A decision that changes nothing is not recorded again, and a
    version that was rolled back stays so. Raises `TrackingError` without a candidate.
    """
    # The score of a probe on batch statistics depends on the other tiles of the batch: it cannot be served.
    frozen = [r for seeds in project.arms() for r in seeds if r.settings.probe.batch_norm == "frozen"]
    ranking = sorted(map(Results, frozen), key=lambda results: -float(results.metrics["val_mAP"]))
    if not ranking:
        raise TrackingError(
            "no arm of `run` has probe.batch_norm: frozen; only such a probe can be registered"
        )
    runs.publish_all(project)
    store = open_store(project.root, project.profile)
    with FileLock(project.root / "mlruns" / ".register.lock"):
        decision = _decide(store, project, ranking[0])
        champion = _by_alias(store, decision.model, CHAMPION)
    _write_champion(project, decision, ranking, champion)
    print(decision.reason)
    return decision


def promote(project: Project, version: str, reason: str = "by hand") -> Decision:
    """Make a version champion, whatever the gate decided."""
    store, name = open_store(project.root, project.profile), model_name(project)
    champion, chosen = _by_alias(store, name, CHAMPION), _version(store, name, version)
    if champion is not None and champion.version == chosen.version:
        raise TrackingError(f"{name} version {version} is the champion already")
    _set_champion(store, chosen, champion)
    store.client.delete_model_version_tag(name, chosen.version, ROLLED_BACK)
    return _record(project, store, "promoted", chosen, champion, reason)


def rollback(project: Project, reason: str = "by hand") -> Decision:
    """Make the former champion champion again."""
    store, name = open_store(project.root, project.profile), model_name(project)
    champion = _by_alias(store, name, CHAMPION)
    former = champion.tags.get(OVER) if champion is not None else None
    if champion is None or not former:
        raise TrackingError(f"{name} has no former champion")
    chosen, client = _version(store, name, former), store.client
    client.set_registered_model_alias(name, CHAMPION, chosen.version)
    client.set_model_version_tag(name, champion.version, ROLLED_BACK, "true")
    client.delete_model_version_tag(name, champion.version, OVER)
    if OVER in chosen.tags:
        client.set_registered_model_alias(name, PREVIOUS, chosen.tags[OVER])
    else:
        client.delete_registered_model_alias(name, PREVIOUS)
    return _record(project, store, "rolled back", chosen, champion, reason)


def restore(project: Project) -> Decision | None:
    """Register the champion of champion.json if the registry has none (after `satclr sync` elsewhere).

    Returns None if there is nothing to do. Raises `TrackingError` if the results have changed since.
    """
    path = project.reports / "champion.json"
    store = open_store(project.root, project.profile)
    if _by_alias(store, model_name(project), CHAMPION) is not None or not path.is_file():
        return None
    named = json.loads(path.read_text(encoding="utf-8"))["champion"]
    if named is None:
        return None
    results = Results(project.run(named["arm"], int(named["seed"])))
    if results.digest != named["digest"]:
        raise TrackingError(
            f"{path.relative_to(project.root)} names {results.run.key}, whose files have changed; run `satclr register`"
        )
    version = _registered(store, results) or _register(store, results)
    _set_champion(store, version, None)
    return _record(project, store, "restored", version, None, "from champion.json")


def model_name(project: Project) -> str:
    """The name of a profile's registered model."""
    return f"satclr-{project.profile}"


def gap(candidate: Scores, champion: Scores) -> tuple[float, float, float]:
    """Difference in mAP on the same tiles, and its 95% interval by paired bootstrap over tiles."""
    both = [candidate.scores, champion.scores]
    means = [metrics.mean_average_precision(metrics.average_precision(s, candidate.targets)) for s in both]
    samples = metrics.paired_bootstrap(both, candidate.targets, resamples=RESAMPLES, seed=0)
    low, high = np.nanpercentile(samples[:, 0] - samples[:, 1], [2.5, 97.5])
    return means[0] - means[1], float(low), float(high)


def _decide(store: Store, project: Project, candidate: Results) -> Decision:
    val_mAP, minimum = candidate.metrics["val_mAP"], project.settings.register_.minimum_val_mAP
    champion, version = _by_alias(store, model_name(project), CHAMPION), _registered(store, candidate)
    if version is None and val_mAP < minimum:
        reason = f"validation mAP {val_mAP:.4f} is below register.minimum_val_mAP {minimum}"
        return _decision("rejected", model_name(project), "", _tags(candidate), champion, reason)
    version = version or _register(store, candidate)
    if champion is None:
        _set_champion(store, version, None)
        return _record(project, store, "champion", version, None, "the first version")
    known = (version.name, version.version, version.tags, champion)
    if champion.version == version.version:
        return _decision("kept", *known, "it is the champion already")
    found, reason = _gate(store, candidate, champion)
    if ROLLED_BACK in version.tags:
        return _decision("kept", *known, "it was rolled back; `satclr promote` undoes that", found)
    if found[1] is not None and found[1] > 0:
        _set_champion(store, version, champion)
        return _record(project, store, "champion", version, champion, reason, found)
    if version.tags.get("satclr.decision") == "challenger":
        return _decision("challenger", *known, reason, found)
    store.client.set_registered_model_alias(version.name, CHALLENGER, version.version)
    return _record(project, store, "challenger", version, champion, reason, found)


def _gate(store: Store, candidate: Results, champion: Any) -> tuple[Gap, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = store.client.download_artifacts(champion.run_id, "results/scores.npz", folder)
        ours, theirs = candidate.scores("test"), scores(files.load_npz(Path(path)), "test")
    who = (
        f"champion version {champion.version} ({champion.tags['satclr.arm']}-s{champion.tags['satclr.seed']})"
    )
    if not ours.same_tiles(theirs):
        return NO_GAP, f"{who} was tested on other tiles or labels; compare them and use `satclr promote`"
    delta, low, high = gap(ours, theirs)
    interval = f"Δ test mAP {delta:+.4f} [{low:+.4f}, {high:+.4f}]"
    if low > 0:
        return (delta, low, high), f"better than {who}: {interval}"
    return (delta, low, high), f"not shown to be better than {who}: {interval}, short by {-low:.4f}"


def _registered(store: Store, results: Results) -> Any | None:
    """The version of a run's files."""
    name = f"satclr-{results.run.profile}"
    found = store.client.search_model_versions(f"name = '{name}' and tags.`{FILES}` = '{results.digest}'")
    return _version(store, name, found[0].version) if found else None  # a search returns no aliases


def _register(store: Store, results: Results) -> Any:
    """Create a version from a published run."""
    from mlflow.exceptions import MlflowException

    client, profile = store.client, results.run.profile
    arm_run = store.search(tag("files", results.digest), runs.FINISHED)[0]
    name, text = (
        f"satclr-{profile}",
        f"Labels of overhead image tiles, profile `{profile}`: encoder, linear probe.",
    )
    try:
        client.create_registered_model(name, {"satclr.profile": profile}, text)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model_id, told = arm_run.outputs.model_outputs[0].model_id, arm_run.data.tags
    origin = {f"satclr.{key}": told[f"satclr.{key}"] for key in ("data_md5", "fingerprint")}
    origin["satclr.commit"] = told.get("mlflow.source.git.commit", "none")
    created = client.create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=arm_run.info.run_id,
        model_id=model_id,
        description=content.card(results, told),
        tags=_tags(results) | origin,
    )
    return _version(store, name, created.version)


def _tags(results: Results) -> dict[str, str]:
    m, run = results.metrics, results.run
    low, high = m["test_mAP_ci95"]
    facts = {"arm": run.arm, "seed": run.seed, "profile": run.profile, "val_mAP": f"{m['val_mAP']:.6f}"}
    facts |= {"files": results.digest, "test_mAP": f"{m['test_mAP']:.6f} [{low:.6f}, {high:.6f}]"}
    return {f"satclr.{key}": str(value) for key, value in facts.items()}


def _set_champion(store: Store, version: Any, former: Any | None) -> None:
    client, name = store.client, version.name
    if former is not None:
        client.set_model_version_tag(name, version.version, OVER, former.version)
        client.set_registered_model_alias(name, PREVIOUS, former.version)
    client.set_registered_model_alias(name, CHAMPION, version.version)
    challenger = _by_alias(store, name, CHALLENGER)
    if challenger is not None and challenger.version == version.version:
        client.delete_registered_model_alias(name, CHALLENGER)


def _by_alias(store: Store, name: str, alias: str) -> Any | None:
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        return None


def _version(store: Store, name: str, version: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_model_version(name, version)
    except MlflowException:
        known = sorted(int(found.version) for found in store.client.search_model_versions(f"name = '{name}'"))
        versions = ", ".join(map(str, known)) or "none; run `satclr register`"
        raise TrackingError(f"{name} has no version {version!r}; it has {versions}") from None


def _decision(
    decision: Outcome, model: str, version: str, tags: Any, champion: Any, reason: str, found: Gap = NO_GAP
) -> Decision:
    arm, seed, val, test = (tags[f"satclr.{key}"] for key in ("arm", "seed", "val_mAP", "test_mAP"))
    now, against = (
        datetime.now(UTC).isoformat(timespec="seconds"),
        "" if champion is None else str(champion.version),
    )
    measured = (float(val), float(test.split()[0]))
    return Decision(now, decision, model, str(version), arm, int(seed), *measured, against, *found, reason)


def _record(
    project: Project,
    store: Store,
    outcome: Outcome,
    version: Any,
    former: Any,
    reason: str,
    found: Gap = NO_GAP,
) -> Decision:
    """Keep a decision as tags of its version and as a line of promotions.csv."""
    line = _decision(outcome, version.name, version.version, version.tags, former, reason, found)
    for key in ("decision", "decided_at", "reason"):
        store.client.set_model_version_tag(line.model, line.version, f"satclr.{key}", getattr(line, key))
    path = project.reports / "promotions.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(asdict(line))
        writer.writerow(asdict(line).values())
    return line


def _write_champion(
    project: Project, decision: Decision, ranking: Sequence[Results], champion: Any | None
) -> None:
    """Write champion.json: the champion, the decision, and the candidates by validation mAP."""
    keys, named = ("val_mAP", "test_mAP", "test_mAP_ci95"), None
    rows = [
        {"arm": r.run.arm, "seed": r.run.seed, **{key: r.metrics[key] for key in keys}, "digest": r.digest}
        for r in ranking
    ]
    if champion is not None:
        arm, seed, val = (champion.tags[f"satclr.{key}"] for key in ("arm", "seed", "val_mAP"))
        named = {"arm": arm, "seed": int(seed), "val_mAP": float(val), "digest": champion.tags[FILES]}
    tree = {"profile": project.profile, "model": decision.model, "champion": named, "candidate": rows[0]}
    tree |= {"decision": decision.decision, "reason": decision.reason, "ranking": rows}
    files.write_json(project.reports / "champion.json", tree)
