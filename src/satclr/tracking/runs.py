"""Arm runs from what the stages wrote: one flat run per arm and seed, logged once.

    satclr evaluate ...       publishes its run
    satclr sync               publishes whatever the store lacks

No torch here: `evaluate` publishes, and works on numbers.
"""

import hashlib
import io
import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from satclr import files, progress
from satclr.evaluation.linear import LinearProbe
from satclr.project import PACKAGE, Project, ProjectError, Run, experiment
from satclr.study.results import Results, read_json
from satclr.tracking import content
from satclr.tracking.store import Store, load_mlflow, log, mark_killed, open_store, owner, stamped, tag

PACKAGES = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "torch", "torchvision")
REGISTRYS = ("champion.json", "promotions.csv")  # in reports/, but not part of the report
FIGURES = {".png", ".svg", ".html", ".json", ".csv"}
FINISHED = "attributes.status = 'FINISHED'"


def publish(run: Run) -> str:
    """Log the arm run of what the stages wrote, unless the store has it; return its id.

    It is recognised by the digest of its files and parameters. Other runs of the arm and seed are marked superseded,
    but for those of other DVC experiments, and the live runs of its stages become its children. Raises `ProjectError`
    naming a missing file.
    """
    results, store = Results(run), open_store(run.root, run.profile)
    mark_killed(store)
    return _publish(store, results, _digest(results))


def publish_all(project: Project) -> tuple[list[str], list[str]]:
    """Publish the arms and the report that the store lacks; return run ids, and what is missing and why."""
    store = open_store(project.root, project.profile)
    mark_killed(store)
    current = store.search(tag("kind", "arm"), tag("state", "current"), FINISHED)
    known = {found.data.tags["satclr.digest"]: str(found.info.run_id) for found in current}
    run_ids, missing = [], []
    for run in (run for seeds in project.arms() for run in seeds):
        results = Results(run)
        try:
            digest = _digest(results)
        except ProjectError as error:
            missing.append(f"{run.key}: {error}")
            continue
        if digest not in known:
            progress.say(f"publishing {run.key} to MLflow")
            known[digest] = _publish(store, results, digest)
        run_ids.append(known[digest])
    if (project.reports / "compare.json").is_file():
        publish_report(project)
    return run_ids, missing


def publish_report(project: Project) -> str:
    """Log the run `compare` of a report, its contrasts as metrics, unless the store has it; return its id."""
    folder, store = project.reports, open_store(project.root, project.profile)
    found = sorted(path for path in folder.rglob("*") if path.suffix in FIGURES and path.name not in REGISTRYS)
    digest = files.sha256(*found)
    run_id = _finished(store, digest)
    if run_id is None:
        report = read_json(folder / "compare.json")
        tags = {"satclr.kind": "compare", "satclr.profile": project.profile, "satclr.digest": digest}
        run_id = _create(
            store, "compare", experiment(project.root), tags | {"mlflow.note.content": content.report_note(report)}
        )
        log(store, run_id, metrics=stamped(content.report_metrics(report, folder / "per_class_ap.csv")))
        for path in found:
            store.client.log_artifact(run_id, str(path), str("report" / path.parent.relative_to(folder)))
        store.client.set_terminated(run_id)
    _make_current(store, run_id, experiment(project.root), tag("kind", "compare"))
    return run_id


def parameters(results: Results) -> dict[str, str]:
    """The settings of a run, what `precision: auto` became, and the digest of the weights that were a file."""
    facts = LinearProbe.load(results.run.probe).encoder
    used = {"pretrain.precision_used": str(facts.get("precision", "unknown"))}
    if facts.get("weights_sha256"):
        used["pretrain.weights_sha256"] = str(facts["weights_sha256"])
    return results.run.parameters() | used


def _publish(store: Store, results: Results, digest: str) -> str:
    own = (tag("arm", results.run.arm), tag("seed", results.run.seed))
    run_id = _finished(store, digest) or _log(store, results, digest)
    _make_current(store, run_id, experiment(results.run.root), tag("kind", "arm"), *own)
    for child in store.search(tag("kind", "live"), *own):
        if "mlflow.parentRunId" not in child.data.tags:
            store.client.set_tag(child.info.run_id, "mlflow.parentRunId", run_id)
    return run_id


def _digest(results: Results) -> str:
    return hashlib.sha256(f"{results.digest}{json.dumps(parameters(results))}".encode()).hexdigest()


def _log(store: Store, results: Results, digest: str) -> str:
    run, client = results.run, store.client
    probe, (audit, _) = LinearProbe.load(run.probe), content.audit(run)
    tags = content.tags(results, str(probe.encoder.get("fingerprint", "unknown")))
    run_id = _create(store, run.key, experiment(run.root), tags | {"satclr.digest": digest})
    try:
        _log_data(store, results, run_id, audit)
        log(store, run_id, params=parameters(results))
        model_id = _log_model(store, results, probe, run_id)
        log(store, run_id, metrics=stamped(content.metrics(results)), model_id=model_id)
        if audit:
            log(store, run_id, metrics=stamped((f"tiles_audit/{key}", value, 0) for key, value in audit.items()))
            client.log_artifact(run_id, str(run.store / "audit.json"), "data")
        for name in Results.RESULTS:
            client.log_artifact(run_id, str(run.results / name), "results")
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return run_id


def _create(store: Store, name: str, trial: str | None, tags: Mapping[str, str]) -> str:
    """Create a run. trial: the DVC experiment that it is of."""
    own = {"satclr.experiment": trial} if trial else {}
    name = f"{name} ({trial})" if trial else name
    created = store.client.create_run(store.experiment_id, run_name=name, tags={**tags, **own, **owner()})
    return str(created.info.run_id)


def _log_data(store: Store, results: Results, run_id: str, audit: Mapping[str, int]) -> None:
    """Log the data set as an input, with its DVC md5."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    profile, md5 = results.run.profile, content.data_md5(results.run)
    source = json.dumps({"uri": f"data/{profile}", "dvc_md5": md5})
    facts = json.dumps({"test_tiles": results.metrics["test_tiles"], **audit})
    data = Dataset(profile, md5 or "unknown", "local", source, profile=facts)
    inputs = [DatasetInput(data, [InputTag("mlflow.data.context", "training")])]
    try:
        store.client.log_inputs(run_id, inputs)
    except MlflowException as error:
        if "unique" not in str(error).lower():
            raise
        store.client.log_inputs(run_id, inputs)  # another arm added the same data set at the same moment


def _log_model(store: Store, results: Results, probe: LinearProbe, run_id: str) -> str:
    """Log encoder, probe and code as a model; return its id. `log_model` would import torch to try the example."""
    mlflow = load_mlflow()
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run, client = results.run, store.client
    facts = {"arm": run.arm, "seed": run.seed, "profile": run.profile, "digest": results.digest}
    packages = [*PACKAGES, *["timm"] * str(probe.encoder.get("arch")).startswith("timm/")]
    packages += ["rasterio"] * ("scale" in probe.encoder)  # to read tiles of other than 8 bits
    model = client.create_logged_model(store.experiment_id, run.key, run_id)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):  # advice on type hints
        parts = {"encoder": run.encoder, "probe": run.probe}
        for path in parts.values():  # MLflow takes paths for URIs and refuses links, as into DVC's cache
            shutil.copyfile(path, Path(folder, path.name))
        mlflow.pyfunc.save_model(
            f"{folder}/model",
            mlflow_model=Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id),
            python_model=str(PACKAGE / "tracking" / "serving.py"),
            artifacts={name: Path(folder, path.name).as_uri() for name, path in parts.items()},
            code_paths=[str(PACKAGE)],
            **_interface(probe.labels, int(probe.encoder["tile_px"])),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in packages],  # without +cpu
            metadata=facts,
        )
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _interface(labels: list[str], tile_px: int) -> dict[str, Any]:
    """Signature: a column `tile` in; a probability per label and the list `predicted_labels` out. And an example."""
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType
    from PIL import Image

    Image.new("RGB", (tile_px, tile_px), (96, 112, 88)).save(grey := io.BytesIO(), "JPEG")
    names = files.columns(labels, ("predicted_labels",))
    columns = [*(ColSpec("double", name) for name in names), ColSpec(Array(DataType.string), "predicted_labels")]
    signature = ModelSignature(Schema([ColSpec("binary", "tile")]), Schema(columns))
    return {"signature": signature, "input_example": pd.DataFrame({"tile": [grey.getvalue()]})}


def _finished(store: Store, digest: str) -> str | None:
    """The run of a digest; runs whose logging was interrupted are deleted, with their models."""
    for run in store.search(tag("digest", digest)):
        if run.info.status == "FINISHED":
            return str(run.info.run_id)
        if run.info.status != "RUNNING":
            models = store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run.info.run_id}'")
            for model in models:
                store.client.delete_logged_model(model.model_id)
            store.client.delete_run(run.info.run_id)
    return None


def _make_current(store: Store, run_id: str, trial: str | None, *conditions: str) -> None:
    """Mark a run current, and the others that were superseded. trial: the DVC experiment that says so."""
    client = store.client
    for run in store.search(*conditions, tag("state", "current")):
        if run.info.run_id != run_id and run.data.tags.get("satclr.experiment") == trial:
            log(store, run.info.run_id, tags={"satclr.state": "superseded", "satclr.superseded_by": run_id})
            client.update_run(run.info.run_id, name=f"{run.info.run_name} (superseded)")
    tags = client.get_run(run_id).data.tags
    if tags.get("satclr.state") != "current":
        client.set_tag(run_id, "satclr.state", "current")
        if "satclr.superseded_by" in tags:  # DVC restored former outputs
            client.delete_tag(run_id, "satclr.superseded_by")
            client.update_run(run_id, name=tags["mlflow.runName"].removesuffix(" (superseded)"))
