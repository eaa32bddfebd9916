"""Versions of the registered model `satclr-<profile>`, their aliases, and every decision about them.

In: the results of every arm and seed, and their MLflow runs. Out: a model version with the alias `champion`,
reports/<profile>/champion.json, and a line of reports/<profile>/promotions.csv.

    satclr register
    satclr promote VERSION
    satclr rollback
"""

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from filelock import FileLock

from satclr import files
from satclr.project import Project
from satclr.study import contrasts
from satclr.study.results import Results, read_json, scores
from satclr.tracking import content, runs
from satclr.tracking.store import TrackingError, open_store, tag

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
OVER, ROLLED_BACK, FILES = "satclr.promoted_over", "satclr.rolled_back", "satclr.files"
SEEDS = "satclr.seed_runs"  # the MLflow runs of all seeds of a version's arm
Outcome = Literal["champion", "challenger", "kept", "rejected", "promoted", "rolled back", "restored"]
BECAME = {
    "champion": "is now champion", "promoted": "is now champion", "challenger": "is now challenger",
    "rolled back": "is champion again", "restored": "is champion again",
}  # fmt: skip


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
    test_mAP: float  # noqa: N815 - decides nothing
    against: str  # the former champion's version
    delta_val_mAP: float | None  # noqa: N815 - to the champion's arm, with its interval
    delta_lo: float | None
    delta_hi: float | None
    reason: str

    def __str__(self) -> str:
        """The decision for a person."""
        name = f"{self.model} version {self.version}" if self.version else f"not registered in {self.model}"
        became = f" {BECAME[self.decision]}" if self.decision in BECAME else ""
        return f"{name} ({self.arm}-s{self.seed}, validation mAP {self.val_mAP:.4f}){became}: {self.reason}"


@dataclass(frozen=True)
class Candidate:
    """An arm with its seeds."""

    seeds: Sequence[Results]

    @property
    def model(self) -> Results:
        """The seed with the best validation mAP, the first on a tie."""
        return max(self.seeds, key=lambda results: float(results.metrics["val_mAP"]))

    def mean(self, key: str) -> float:
        return float(np.mean([results.metrics[key] for results in self.seeds]))


def run(project: Project) -> Decision:
    """Gate the candidate, write champion.json and print the reason.

    The candidate is the arm with the best validation mAP, a mean over its seeds; its model is that of the seed which
    validates best. Without a champion, or if its arm is better than the champion's by paired bootstrap over the same
    validation tiles and over seeds (95% interval above zero), it becomes `champion` and the former one `previous`;
    otherwise `challenger`. Below `register.minimum_val_mAP` it becomes no version. Test tiles decide nothing.

    A decision that changes nothing is not recorded again, and a version that was rolled back stays so. Raises
    `TrackingError` without a candidate.
    """
    # The score of a probe on batch statistics depends on the other tiles of the batch: it cannot be served.
    served = [seeds for seeds in project.arms() if seeds[0].settings.probe.batch_norm == "frozen"]
    candidates = [Candidate([Results(run) for run in seeds]) for seeds in served]
    ranking = sorted(candidates, key=lambda candidate: -candidate.mean("val_mAP"))
    if not ranking:
        raise TrackingError("no arm of `run` has probe.batch_norm: frozen; only such a probe can be registered")
    runs.publish_all(project)
    registry = _Registry(project)
    with FileLock(registry.store.folder / ".register.lock"):
        decision = registry.decide(ranking[0])
        champion = registry.by_alias(CHAMPION)
    _write_champion(project, decision, ranking, champion)
    print(decision)
    return decision


def promote(project: Project, version: str) -> Decision:
    """Make a version champion, whatever the gate decided."""
    registry = _Registry(project)
    champion, known = registry.by_alias(CHAMPION), registry.versions()
    if version not in known:
        numbers = ", ".join(sorted(known, key=int))
        other = f"version {version!r}; it has {numbers}" if known else "versions; run `satclr register`"
        raise TrackingError(f"{registry.name} has no {other}")
    if champion is not None and str(champion.version) == version:  # a number in MLflow's SQL store
        raise TrackingError(f"{registry.name} version {version} is the champion already")
    registry.client.delete_model_version_tag(registry.name, version, ROLLED_BACK)
    return registry.set_champion("promoted", known[version], champion, "by hand")


def rollback(project: Project) -> Decision:
    """Make the former champion champion again."""
    registry = _Registry(project)
    client, name, champion = registry.client, registry.name, registry.by_alias(CHAMPION)
    if champion is None or OVER not in champion.tags:
        raise TrackingError(f"{name} has no former champion")
    former = registry.versions()[champion.tags[OVER]]
    client.set_registered_model_alias(name, CHAMPION, former.version)
    client.set_model_version_tag(name, champion.version, ROLLED_BACK, "true")
    client.delete_model_version_tag(name, champion.version, OVER)
    client.delete_registered_model_alias(name, PREVIOUS)
    if OVER in former.tags:
        client.set_registered_model_alias(name, PREVIOUS, former.tags[OVER])
    return registry.record("rolled back", former, champion, "by hand")


def restore(project: Project) -> Decision | None:
    """Register the champion of champion.json if the registry has none (after `satclr sync` elsewhere).

    Returns None if there is nothing to do. Raises `TrackingError` if the results have changed since.
    """
    path, registry = project.reports / "champion.json", _Registry(project)
    named = read_json(path)["champion"] if path.is_file() else None
    if named is None or registry.by_alias(CHAMPION) is not None:
        return None
    candidate = Candidate([Results(project.run(named["arm"], seed)) for seed in project.params.seeds])
    results = candidate.model
    if results.digest != named["digest"]:
        changed = f"names {results.run.key}, whose files have changed"
        raise TrackingError(f"{path.relative_to(project.root)} {changed}; run `satclr register`")
    version = registry.made_from(results) or registry.create(candidate)
    return registry.set_champion("restored", version, None, "from champion.json")


class _Registry:
    """The registered model of a project's profile."""

    def __init__(self, project: Project) -> None:
        self.project, self.name = project, f"satclr-{project.profile}"
        self.store = open_store(project.root, project.profile)
        self.client = self.store.client

    def versions(self) -> dict[str, Any]:
        return {str(v.version): v for v in self.client.search_model_versions(f"name = '{self.name}'")}

    def by_alias(self, alias: str) -> Any | None:
        models = self.client.search_registered_models(f"name = '{self.name}'")
        number = models[0].aliases.get(alias) if models else None
        return None if number is None else self.client.get_model_version(self.name, number)

    def made_from(self, results: Results) -> Any | None:
        return next((v for v in self.versions().values() if v.tags[FILES] == results.digest), None)

    def create(self, candidate: Candidate) -> Any:
        """Make a version from the published run of the candidate's model."""
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            text = "Labels of overhead image tiles: a frozen encoder and a linear probe."
            self.client.create_registered_model(self.name, {"satclr.profile": self.project.profile}, text)
        arm_run = self.published(candidate.model)
        model_id, told = arm_run.outputs.model_outputs[0].model_id, arm_run.data.tags
        tags = self.tags(candidate) | {key: told[key] for key in ("satclr.data_md5", "satclr.fingerprint")}
        tags["satclr.commit"] = told.get("mlflow.source.git.commit", "none")
        facts = {"run_id": arm_run.info.run_id, "model_id": model_id, "tags": tags}
        card = content.card(candidate.model, told)
        return self.client.create_model_version(self.name, f"models:/{model_id}", description=card, **facts)

    def published(self, results: Results) -> Any:
        return self.store.search(tag("files", results.digest), runs.FINISHED)[0]

    def tags(self, candidate: Candidate) -> dict[str, str]:
        model, m = candidate.model, candidate.model.metrics
        low, high = m["test_mAP_ci95"]
        facts = {"arm": model.run.arm, "seed": model.run.seed, "profile": model.run.profile, "files": model.digest}
        facts |= {"val_mAP": f"{m['val_mAP']:.6f}", "test_mAP": f"{m['test_mAP']:.6f} [{low:.6f}, {high:.6f}]"}
        facts["seed_runs"] = ",".join(self.published(results).info.run_id for results in candidate.seeds)
        return {f"satclr.{key}": str(value) for key, value in facts.items()}

    def set_champion(
        self, outcome: Outcome, version: Any, former: Any | None, reason: str, *difference: float
    ) -> Decision:
        challenger = self.by_alias(CHALLENGER)
        if former is not None:
            self.client.set_model_version_tag(self.name, version.version, OVER, former.version)
            self.client.set_registered_model_alias(self.name, PREVIOUS, former.version)
        self.client.set_registered_model_alias(self.name, CHAMPION, version.version)
        if challenger is not None and challenger.version == version.version:
            self.client.delete_registered_model_alias(self.name, CHALLENGER)
        return self.record(outcome, version, former, reason, *difference)

    def decide(self, candidate: Candidate) -> Decision:
        """Compare the candidate with the champion, and act on it."""
        val_mAP, minimum = candidate.mean("val_mAP"), self.project.settings.register_.minimum_val_mAP
        champion, version, tags = self.by_alias(CHAMPION), self.made_from(candidate.model), self.tags(candidate)
        if version is None and val_mAP < minimum:
            reason = f"validation mAP {val_mAP:.4f} is below register.minimum_val_mAP {minimum}"
            return self.decision("rejected", SimpleNamespace(version="", tags=tags), champion, reason)
        version = version or self.create(candidate)
        self.client.set_model_version_tag(self.name, version.version, SEEDS, tags[SEEDS])  # seeds may have been added
        if champion is None:
            return self.set_champion("champion", version, None, "the first version")
        if champion.version == version.version:
            if champion.tags.get("satclr.decision", CHALLENGER) == CHALLENGER:  # killed before it was recorded
                former = self.versions().get(champion.tags.get(OVER, ""))
                _, *why = self.gate(candidate, former) if former else (True, "the first version")
                return self.record("champion", champion, former, *why)
            return self.decision("kept", version, champion, "it is the champion already")
        better, *why = self.gate(candidate, champion)
        if ROLLED_BACK in version.tags:
            why[0] = "it was rolled back; `satclr promote` undoes that"
            return self.decision("kept", version, champion, *why)
        if better:
            return self.set_champion("champion", version, champion, *why)
        if version.tags.get("satclr.decision") == "challenger":
            return self.decision("challenger", version, champion, *why)
        self.client.set_registered_model_alias(self.name, CHALLENGER, version.version)
        return self.record("challenger", version, champion, *why)

    def gate(self, candidate: Candidate, champion: Any) -> tuple[Any, ...]:
        """Whether the candidate is better, a reason, and the difference with its interval."""
        ours, theirs = [results.scores("val") for results in candidate.seeds], []
        for run_id in champion.tags[SEEDS].split(","):
            with tempfile.TemporaryDirectory() as folder:
                path = self.client.download_artifacts(run_id, "results/scores.npz", folder)
                theirs.append(scores(files.load_npz(Path(path)), "val"))
        arm, seed = (champion.tags[f"satclr.{key}"] for key in ("arm", "seed"))
        who = f"champion version {champion.version} ({arm}-s{seed})"
        if not all(one.same_tiles(ours[0]) for one in ours + theirs):
            return False, f"{who} was validated on other tiles or labels; compare them and use `satclr promote`"
        delta, low, high = contrasts.gap(ours, theirs)
        over = "validation tiles" + (" and seeds" if len(ours + theirs) > 2 else "")
        interval = f"{who}: Δ validation mAP {delta:+.4f} [{low:+.4f}, {high:+.4f}] over {over}"
        short = f"not shown to be better than {interval}, short by {abs(low):.4f}"
        return low > 0, f"better than {interval}" if low > 0 else short, delta, low, high

    def decision(self, outcome: Outcome, version: Any, champion: Any, reason: str, *difference: float) -> Decision:
        arm, seed, val, test = (version.tags[f"satclr.{key}"] for key in ("arm", "seed", "val_mAP", "test_mAP"))
        chosen = (self.name, str(version.version), arm, int(seed), float(val), float(test.split()[0]))
        now, against = datetime.now(UTC).isoformat(timespec="seconds"), str(champion.version) if champion else ""
        delta, low, high = difference or (None, None, None)
        return Decision(now, outcome, *chosen, against, delta, low, high, reason)

    def record(self, outcome: Outcome, version: Any, former: Any, reason: str, *difference: float) -> Decision:
        """Keep a decision as tags of its version and as a line of promotions.csv."""
        line = self.decision(outcome, version, former, reason, *difference)
        for key in ("decision", "decided_at", "reason"):
            self.client.set_model_version_tag(self.name, line.version, f"satclr.{key}", getattr(line, key))
        path = self.project.reports / "promotions.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(asdict(line))
            writer.writerow(asdict(line).values())
        return line


def _write_champion(project: Project, decision: Decision, ranking: Sequence[Candidate], champion: Any) -> None:
    """Write champion.json: the champion, the decision, and the candidates by validation mAP."""
    rows = []
    for candidate in ranking:
        model, means = candidate.model, {key: candidate.mean(key) for key in ("val_mAP", "test_mAP")}
        chosen = {"seed": model.run.seed, "val_mAP": model.metrics["val_mAP"], "digest": model.digest}
        rows.append({"arm": model.run.arm, "seeds": [r.run.seed for r in candidate.seeds], **means, "model": chosen})
    tree: dict[str, Any] = {"profile": project.profile, "model": decision.model, "champion": None, "candidate": rows[0]}
    tree |= {"decision": decision.decision, "reason": decision.reason, "ranking": rows}
    if champion is not None:
        arm, seed, val = (champion.tags[f"satclr.{key}"] for key in ("arm", "seed", "val_mAP"))
        tree["champion"] = {"arm": arm, "seed": int(seed), "val_mAP": float(val), "digest": champion.tags[FILES]}
        if str(champion.version) == decision.version:  # the same however often it is decided
            tree |= {key: champion.tags[f"satclr.{key}"] for key in ("decision", "reason")}
    files.write_json(project.reports / "champion.json", tree)
