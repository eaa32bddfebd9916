from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from satclr.pretrain import encoder
from satclr.tracking import register
from satclr.data import tiles
from satclr import tracking
from tests import made_up
from tests.serving import free_port

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_up.empty_store(tmp_path_factory.mktemp("project"))
    made_up.write(folder, arm="simclr")
    tracking.publish(folder, profile="sample", arm="simclr", seed=0, params={}, fingerprint="f0")
    register.run(folder, profile="sample", runs=[("simclr", 0)])
    return folder


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


def expected(root: Path, pictures: list[bytes]) -> npt.NDArray[np.float64]:
    """Scores as the stages compute them: decoded tile, frozen encoder, the layer in double precision."""
    models = root / "models/sample/simclr-s0"
    pixels = np.stack([tiles.decode(picture, made_up.TILE_PX) for picture in pictures])
    model, _ = encoder.load(models / "encoder.safetensors")
    from satclr.pretrain.views import evaluation_view

    views = evaluation_view(
        torch.from_numpy(pixels), crop_px=made_up.CROP_PX, mean=made_up.MEAN, std=made_up.STD
    )
    with safe_open(models / "probe.safetensors", "np") as file, torch.inference_mode():
        features = model(views).numpy().astype(float)
        logits = features @ file.get_tensor("weight").astype(float).T + file.get_tensor("bias")
    return np.asarray(1 / (1 + np.exp(-logits)))


def test_predictions_are_the_stages_scores_and_thresholds_choose_the_labels(root: Path) -> None:
    pictures = [made_up.jpeg(seed) for seed in range(70)]  # more than one batch
    table = register.champion(root, "sample").tag(pictures)
    scores = expected(root, pictures)
    np.testing.assert_allclose(table[made_up.LABELS].to_numpy(), scores, atol=1e-5)
    chosen = [
        [name for name, p, t in zip(made_up.LABELS, row, made_up.THRESHOLDS, strict=True) if p >= t]
        for row in scores
    ]
    assert table["predicted_labels"].tolist() == chosen


def test_bytes_paths_and_arrays_are_the_same_tile(root: Path, tmp_path: Path) -> None:
    import pandas as pd

    png = io.BytesIO()
    Image.fromarray(made_up.pixels(made_up.jpeg(3))).save(png, "PNG")
    path = tmp_path / "tile.jpg"
    path.write_bytes(made_up.jpeg(3))
    model = register.champion(root, "sample")
    forms: list[Any] = [made_up.jpeg(3), png.getvalue(), str(path), made_up.pixels(made_up.jpeg(3))]
    tables = [model.tag([form]) for form in forms]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


def test_signature_example_and_requirements_are_explicit(root: Path) -> None:
    tracking.open_store(root, "sample")
    model = mlflow.pyfunc.load_model("models:/satclr-sample@champion")
    assert model.metadata.get_input_schema().to_dict() == [
        {"type": "binary", "name": "tile", "required": True}
    ]
    assert model.metadata.get_output_schema().input_names() == [*made_up.LABELS, "predicted_labels"]
    example = model.input_example
    assert len(model.predict(example)) == 1
    client = tracking.open_store(root, "sample").client
    run = client.get_model_version_by_alias("satclr-sample", "champion").run_id
    model_id = client.get_run(run).outputs.model_outputs[0].model_id
    files = {item.path for item in client.list_logged_model_artifacts(model_id)}
    assert not [file for file in files if file.endswith((".pkl", ".pickle", ".pt"))]
    assert "uv.lock" not in files


def test_the_model_loads_where_the_project_is_not_installed(root: Path, tmp_path: Path) -> None:
    """Only the model's folder is at hand, and importing this project's source raises."""
    client = tracking.open_store(root, "sample").client
    version = client.get_model_version_by_alias("satclr-sample", "champion")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    shutil.copytree(
        urllib.request.url2pathname(model.artifact_location.removeprefix("file://")), tmp_path / "m"
    )
    (tmp_path / "tile.jpg").write_bytes(made_up.jpeg(5))
    code = """
import json, sys
sys.path[:] = [entry for entry in sys.path if "satclr" not in entry and not entry.endswith("/src")]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f).lower()]
import mlflow, pandas
model = mlflow.pyfunc.load_model("m")
table = model.predict(pandas.DataFrame({"tile": [open("tile.jpg", "rb").read()]}))
import satclr
assert satclr.__file__.startswith(str(__import__("pathlib").Path("m").resolve())), satclr.__file__
print(*sys.modules)
print(json.dumps(table.iloc[0, :-1].tolist()))
"""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    modules, row = done.stdout.strip().splitlines()[-2:]
    assert {"satclr.pretrain.encoder", "satclr.data.tiles", "satclr.pretrain.views"} < set(modules.split())
    assert not {"typer", "satclr.params", "satclr.tracking"} & set(modules.split())
    np.testing.assert_allclose(json.loads(row), expected(root, [made_up.jpeg(5)])[0], atol=1e-5)


def test_predict_reports_a_corrupt_tile_and_goes_on(root: Path, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(made_up.jpeg(number))
    (tmp_path / "2.jpg").write_bytes(made_up.jpeg(2)[:300])
    (tmp_path / "notes.txt").write_text("no tile")
    counted: list[int] = []
    found = list(register.predict(root, "sample", [tmp_path], done=counted.append))
    assert [Path(prediction.tile).name for prediction in found] == [f"{n}.jpg" for n in range(5)]
    assert [bool(prediction.error) for prediction in found] == [False, False, True, False, False]
    assert sum(counted) == 5
    scores = expected(root, [made_up.jpeg(4)])[0]
    assert found[4].probabilities == pytest.approx(dict(zip(made_up.LABELS, scores, strict=True)), abs=1e-5)
    assert list(found[4].probabilities.values()) == sorted(found[4].probabilities.values(), reverse=True)
    stream = io.StringIO()
    register.write_csv(found, stream)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert float(rows[4]["airplane"]) == pytest.approx(scores[0], abs=1e-5)
    assert json.loads(json.dumps(register.as_json(found[2])))["error"]


def test_paths_that_are_not_there_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(tracking.TrackingError, match=r"nowhere\.jpg does not exist"):
        register.find([tmp_path / "nowhere.jpg"])
    with pytest.raises(tracking.TrackingError, match="holds no picture"):
        register.find([tmp_path])
    (tmp_path / "b.png").touch()
    (tmp_path / "a.png").touch()
    names = [Path(source.name).name for source in register.find([str(tmp_path / "*.png")])]
    assert names == ["a.png", "b.png"]
    with pytest.raises(tracking.TrackingError, match="satclr-sample has no champion"):
        register.champion(tmp_path, "sample")


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_scene_is_cut_into_located_tiles(root: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 70, 100), np.uint8)
    transform = rasterio.transform.from_origin(500_000, 4_000_000, 2.0, 2.0)
    with rasterio.open(
        tmp_path / "scene.tif", "w", driver="GTiff", width=100, height=70, count=3, dtype="uint8",
        crs="EPSG:32633", transform=transform,
    ) as scene:  # fmt: skip
        scene.write(pixels)
    found = register.find([tmp_path / "scene.tif"], scene_tile_px=48)
    assert [source.name.split("#")[1] for source in found] == [
        "x=0,y=0", "x=48,y=0", "x=52,y=0", "x=0,y=22", "x=48,y=22", "x=52,y=22",
    ]  # fmt: skip
    assert found[-1].bounds == (500_104, 3_999_860, 500_200, 3_999_956)
    np.testing.assert_array_equal(made_up.pixels(found[3].read()), pixels[:, 22:70, :48].transpose(1, 2, 0))
    tagged = list(register.predict(root, "sample", [tmp_path / "scene.tif"], scene_tile_px=48))
    assert [prediction.bounds for prediction in tagged] == [source.bounds for source in found]
    assert not any(prediction.error for prediction in tagged)


def test_onnx_gives_the_same_probabilities(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    target = register.export(root, "sample", tmp_path / "champion.onnx")
    session = onnxruntime.InferenceSession(target)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["labels"]) == made_up.LABELS
    side = int(facts["crop_px"])
    for count in (1, 5):
        pixels = np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)
        (scores,) = session.run(None, {"pixels": pixels})
        model, _ = encoder.load(root / "models/sample/simclr-s0/encoder.safetensors")
        np.testing.assert_allclose(scores, _scores(root, model, pixels), atol=1e-4)


def _scores(root: Path, model: Any, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    normal = (torch.from_numpy(pixels).double() / 255 - torch.tensor(made_up.MEAN)) / torch.tensor(
        made_up.STD
    )
    with safe_open(root / "models/sample/simclr-s0/probe.safetensors", "pt") as file, torch.inference_mode():
        features = model(normal.float().permute(0, 3, 1, 2))
        return np.asarray(torch.sigmoid(features @ file.get_tensor("weight").T + file.get_tensor("bias")))


@pytest.mark.slow
def test_the_champion_answers_over_http(root: Path) -> None:
    port = free_port()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow starts uvicorn by name
    env = {**os.environ, "MLFLOW_TRACKING_URI": tracking.tracking_uri(root), "PATH": path}
    command = ["mlflow", "models", "serve", "-m", "models:/satclr-sample@champion"]
    server = subprocess.Popen(
        [sys.executable, "-m", *command, "--env-manager", "local", "--port", str(port), "--workers", "1"],
        env=env,
    )
    try:
        body = {"columns": ["tile"], "data": [[base64.b64encode(made_up.jpeg(7)).decode()]]}
        answer = _post(f"http://127.0.0.1:{port}/invocations", {"dataframe_split": body})
    finally:
        server.terminate()
        server.wait(timeout=60)
    (row,) = answer["predictions"]
    labels = row.pop("predicted_labels")
    scores = dict(zip(made_up.LABELS, expected(root, [made_up.jpeg(7)])[0], strict=True))
    assert row == pytest.approx(scores, abs=1e-5)
    assert isinstance(labels, list)


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    for _ in range(300):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read()) from error
        except urllib.error.URLError:
            time.sleep(0.4)
    raise AssertionError(f"{url} does not answer")
