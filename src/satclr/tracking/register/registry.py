"""Versions of the registered model, their aliases, and the history of every decision."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from satclr import atomic
from satclr.tracking import Store, TrackingError, open_store
from satclr.tracking.outputs import Outputs, read
from satclr.tracking.register import card
from satclr.tracking.register.gate import Contrast, contrast, read_split

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
OVER, ROLLED_BACK, FILES = "satclr.promoted_over", "satclr.rolled_back", "satclr.files"


@dataclass(frozen=True)
class Decision:
    """One line of promotions.csv."""

    decided_at: str  # UTC, ISO 8601
    decision: Literal["champion", "challenger", "kept", "rejected", "promoted", "rolled back", "restored"]
    model: str
    version: str  # empty where no version was made
    arm: str
    seed: int
    val_mAP: float  # noqa: N815 - the field's spelling
    test_mAP: float  # noqa: N815
    against: str  # version of the champion before, empty where there was none
    delta_mAP: float | None  # noqa: N815
    delta_lo: float | None
    delta_hi: float | None
    reason: str


def model_name(profile: str) -> str:
    """Return the name of a profile's registered model."""
    return f"satclr-{profile}"


def run(
    root: Path, *, profile: str, runs: Sequence[tuple[str, int]], minimum_val_mAP: float = 0.0, resamples: int = 1000
) -> Decision:
    """Gate the candidate, the (arm, seed) with the best validation mAP, and write champion.json.

    No champion yet, or better than it by paired bootstrap on the same test split (95% interval above
    zero): the candidate becomes `champion` and the old one `previous`. Not shown to be better:
    `challenger`. Below the minimum: no version. A decision that changes nothing is not recorded again, and
    what was rolled back stays back.
    Raises `TrackingError` where outputs or their arm run are missing.
    """
    found = [read(root, profile=profile, arm=arm, seed=seed) for arm, seed in runs]
    if not found:
        raise TrackingError("register was given no arm; params.yaml must name at least one")
    candidate = max(found, key=lambda entry: float(entry.metrics["val_mAP"]))
    store = open_store(root, profile)
    with FileLock(root / "mlruns" / ".register.lock"):
        decision = _decide(store, root, candidate, minimum=minimum_val_mAP, resamples=resamples)
        crowned = _by_alias(store, profile, CHAMPION)
    _write_champion(root, profile, candidate, decision, found, crowned)
    return decision


def promote(root: Path, profile: str, version: str, reason: str = "by hand") -> Decision:
    """Make a version champion whatever the gate said."""
    store = open_store(root, profile)
    present = _by_alias(store, profile, CHAMPION)
    chosen = _version(store, profile, version)
    if present is not None and present.version == chosen.version:
        raise TrackingError(f"{model_name(profile)} version {version} is champion already")
    _crown(store, profile, chosen, present)
    store.client.delete_model_version_tag(chosen.name, chosen.version, ROLLED_BACK)
    return _record(store, root, profile, chosen, "promoted", present, reason)


def rollback(root: Path, profile: str, reason: str = "by hand") -> Decision:
    """Give `champion` back to the version that had it before."""
    store = open_store(root, profile)
    present = _by_alias(store, profile, CHAMPION)
    former = present.tags.get(OVER) if present is not None else None
    if present is None or not former:
        raise TrackingError(f"{model_name(profile)} has no former champion to go back to")
    chosen = _version(store, profile, former)
    client, name = store.client, model_name(profile)
    client.set_registered_model_alias(name, CHAMPION, chosen.version)
    client.set_model_version_tag(name, present.version, ROLLED_BACK, "true")
    client.delete_model_version_tag(name, present.version, OVER)
    before = chosen.tags.get(OVER)
    if before:
        client.set_registered_model_alias(name, PREVIOUS, before)
    else:
        client.delete_registered_model_alias(name, PREVIOUS)
    return _record(store, root, profile, chosen, "rolled back", present, reason)


def restore(root: Path, profile: str) -> Decision | None:
    """Register the champion that champion.json names where the registry has none (after `satclr sync`).

    Returns None where there is one already, or no champion.json. Raises `TrackingError` where the outputs at
    hand are not that champion's.
    """
    path = root / "reports" / profile / "champion.json"
    store = open_store(root, profile)
    if _by_alias(store, profile, CHAMPION) is not None or not path.is_file():
        return None
    named = json.loads(path.read_text(encoding="utf-8"))["champion"]
    if named is None:
        return None
    found = read(root, profile=profile, arm=named["arm"], seed=int(named["seed"]))
    if found.files != named["digest"]:
        raise TrackingError(
            f"{path.relative_to(root)} names {found.name} with other outputs than those here; run satclr register"
        )
    version = _known(store, found) or _create(store, found)
    _crown(store, profile, version, None)
    return _record(store, root, profile, version, "restored", None, "from champion.json")


def _decide(store: Store, root: Path, candidate: Outputs, *, minimum: float, resamples: int) -> Decision:
    profile = candidate.profile
    champion = _by_alias(store, profile, CHAMPION)
    version = _known(store, candidate)
    if version is None and candidate.metrics["val_mAP"] < minimum:
        reason = f"validation mAP {candidate.metrics['val_mAP']:.4f} is below register.minimum_val_mAP {minimum}"
        return _line(candidate, "rejected", "", champion, None, reason)
    if version is None:
        version = _create(store, candidate)
    if champion is None:
        _crown(store, profile, version, None)
        return _record(store, root, profile, version, "champion", None, "the first version")
    if champion.version == version.version:
        return _line(candidate, "kept", version.version, champion, None, "it is champion already")
    gap, reason = _gate(store, candidate, champion, resamples)
    if gap is not None and gap.better and ROLLED_BACK not in version.tags:
        _crown(store, profile, version, champion)
        return _record(store, root, profile, version, "champion", champion, reason, gap)
    if ROLLED_BACK in version.tags:
        return _line(
            candidate, "kept", version.version, champion, gap, "it was rolled back; satclr promote undoes that"
        )
    if version.tags.get("satclr.decision") == "challenger":
        return _line(candidate, "challenger", version.version, champion, gap, reason)
    store.client.set_registered_model_alias(version.name, CHALLENGER, version.version)
    return _record(store, root, profile, version, "challenger", champion, reason, gap)


def _gate(store: Store, candidate: Outputs, champion: Any, resamples: int) -> tuple[Contrast | None, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = store.client.download_artifacts(champion.run_id, "results/scores.npz", folder)
        ours, theirs = read_split(candidate.results / "scores.npz"), read_split(Path(path))
    who = f"champion version {champion.version} ({champion.tags['satclr.arm']}-s{champion.tags['satclr.seed']})"
    if not ours.same_as(theirs):
        return None, f"{who} was tested on another split; compare them and use satclr promote"
    gap = contrast(ours, theirs, resamples=resamples)
    interval = f"Δ test mAP {gap.delta_mAP:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
    if gap.better:
        return gap, f"better than {who}: {interval}"
    return gap, f"not shown to be better than {who}: {interval}, short by {-gap.low:.4f}"


def _known(store: Store, candidate: Outputs) -> Any | None:
    query = f"name = '{model_name(candidate.profile)}' and tags.`{FILES}` = '{candidate.files}'"
    found = store.client.search_model_versions(query)
    return _version(store, candidate.profile, found[0].version) if found else None


def _create(store: Store, candidate: Outputs) -> Any:
    client, name = store.client, model_name(candidate.profile)
    query = f"tags.`{FILES}` = '{candidate.files}' and attributes.status = 'FINISHED'"
    runs = client.search_runs([store.experiment_id], query, max_results=1)
    if not runs or not runs[0].outputs.model_outputs:
        raise TrackingError(f"MLflow has no run of the present {candidate.name}; run satclr sync")
    arm_run = runs[0]
    _ensure_model(store, candidate.profile)
    model_id = arm_run.outputs.model_outputs[0].model_id
    m, tags = candidate.metrics, arm_run.data.tags
    low, high = m["test_mAP_ci95"]
    version = client.create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=arm_run.info.run_id,
        model_id=model_id,
        description=card.write(candidate, tags),
        tags={
            FILES: candidate.files,
            "satclr.arm": candidate.arm,
            "satclr.seed": str(candidate.seed),
            "satclr.profile": candidate.profile,
            "satclr.val_mAP": f"{m['val_mAP']:.6f}",
            "satclr.test_mAP": f"{m['test_mAP']:.6f} [{low:.6f}, {high:.6f}]",
            "satclr.data_md5": tags["satclr.data_md5"],
            "satclr.commit": tags.get("mlflow.source.git.commit", "none"),
            "satclr.fingerprint": tags["satclr.fingerprint"],
        },
    )
    return _version(store, candidate.profile, version.version)


def _ensure_model(store: Store, profile: str) -> None:
    from mlflow.exceptions import MlflowException

    text = f"Labels of overhead image tiles, profile `{profile}`: a frozen encoder and a linear probe."
    try:
        store.client.create_registered_model(model_name(profile), {"satclr.profile": profile}, text)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _crown(store: Store, profile: str, version: Any, former: Any | None) -> None:
    client, name = store.client, model_name(profile)
    if former is not None:
        client.set_model_version_tag(name, version.version, OVER, former.version)
        client.set_registered_model_alias(name, PREVIOUS, former.version)
    client.set_registered_model_alias(name, CHAMPION, version.version)
    challenger = _by_alias(store, profile, CHALLENGER)
    if challenger is not None and challenger.version == version.version:
        client.delete_registered_model_alias(name, CHALLENGER)


def _by_alias(store: Store, profile: str, alias: str) -> Any | None:
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_model_version_by_alias(model_name(profile), alias)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        return None


def _version(store: Store, profile: str, version: str) -> Any:
    from mlflow.exceptions import MlflowException

    name = model_name(profile)
    try:
        return store.client.get_model_version(name, version)
    except MlflowException:
        there = sorted(int(found.version) for found in store.client.search_model_versions(f"name = '{name}'"))
        versions = ", ".join(map(str, there)) or "none, run satclr register"
        raise TrackingError(f"{name} has no version {version!r}; it has {versions}") from None


def _line(
    candidate: Outputs, decision: Any, version: str, against: Any | None, gap: Contrast | None, reason: str
) -> Decision:
    return Decision(
        decided_at=datetime.now(UTC).isoformat(timespec="seconds"),
        decision=decision,
        model=model_name(candidate.profile),
        version=str(version),
        arm=candidate.arm,
        seed=candidate.seed,
        val_mAP=float(candidate.metrics["val_mAP"]),
        test_mAP=float(candidate.metrics["test_mAP"]),
        against="" if against is None else str(against.version),
        delta_mAP=None if gap is None else gap.delta_mAP,
        delta_lo=None if gap is None else gap.low,
        delta_hi=None if gap is None else gap.high,
        reason=reason,
    )


def _record(
    store: Store,
    root: Path,
    profile: str,
    version: Any,
    decision: Any,
    against: Any | None,
    reason: str,
    gap: Contrast | None = None,
) -> Decision:
    """Keep a decision as tags of its version and as a line of promotions.csv."""
    tags = version.tags
    line = Decision(
        decided_at=datetime.now(UTC).isoformat(timespec="seconds"),
        decision=decision,
        model=version.name,
        version=str(version.version),
        arm=tags["satclr.arm"],
        seed=int(tags["satclr.seed"]),
        val_mAP=float(tags["satclr.val_mAP"]),
        test_mAP=float(tags["satclr.test_mAP"].split()[0]),
        against="" if against is None else str(against.version),
        delta_mAP=None if gap is None else gap.delta_mAP,
        delta_lo=None if gap is None else gap.low,
        delta_hi=None if gap is None else gap.high,
        reason=reason,
    )
    for key in ("decision", "decided_at", "reason"):
        store.client.set_model_version_tag(line.model, line.version, f"satclr.{key}", getattr(line, key))
    path = root / "reports" / profile / "promotions.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(asdict(line)), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(line))
    return line


def _write_champion(
    root: Path, profile: str, candidate: Outputs, decision: Decision, found: Sequence[Outputs], crowned: Any | None
) -> None:
    """Write champion.json: the candidates by validation mAP, what was decided, and who is champion now."""
    ranking = sorted(found, key=lambda entry: -float(entry.metrics["val_mAP"]))
    report: Mapping[str, Any] = {
        "profile": profile,
        "model": decision.model,
        "champion": None
        if crowned is None
        else {
            "arm": crowned.tags["satclr.arm"],
            "seed": int(crowned.tags["satclr.seed"]),
            "val_mAP": float(crowned.tags["satclr.val_mAP"]),
            "digest": crowned.tags[FILES],
        },
        "candidate": _summary(candidate),
        "decision": decision.decision,
        "reason": decision.reason,
        "ranking": [_summary(entry) for entry in ranking],
    }
    atomic.write_json(root / "reports" / profile / "champion.json", report)


def _summary(found: Outputs) -> dict[str, Any]:
    keys = ("val_mAP", "test_mAP", "test_mAP_ci95")
    return {"arm": found.arm, "seed": found.seed, **{key: found.metrics[key] for key in keys}, "digest": found.files}
