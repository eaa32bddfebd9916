"""Predictions, sources, the served model and ONNX, of one champion with a real encoder."""

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import rasterio
import torch

from satclr import files
from satclr.data.pixels import decode
from satclr.evaluation.linear import LinearProbe
from satclr.pretrain import encoder
from satclr.pretrain.views import evaluation_view
from satclr.project import Project
from satclr.tracking import champion, predict, registry, runs, store
from satclr.tracking.store import TrackingError
from tests.made_up import CROP_PX, LABELS, MEAN, STD, THRESHOLDS, TILE_PX, jpeg, pixels, write
from tests.tracking.conftest import copy_store, make_project

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Project:
    root = tmp_path_factory.mktemp("project") / "what? 1#%41 é"  # no URI may be pasted together
    copy_store(empty_store, root)
    project = make_project(root, "simclr")
    write(project.run("simclr"))
    registry.run(project)
    return project


@pytest.fixture(autouse=True)
def _no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


def tag(model: Any, tiles: list[Any]) -> pd.DataFrame:
    return model.predict(None, pd.DataFrame({"tile": tiles}))


def probabilities(project: Project, views: torch.Tensor) -> npt.NDArray[np.float64]:
    """Of views, as the stages compute them: the frozen encoder, the layer in double precision."""
    run = project.run("simclr")
    with torch.inference_mode():
        features = encoder.load(run.encoder)[0](views).numpy()
    return np.asarray(1 / (1 + np.exp(-LinearProbe.load(run.probe).logits(features))))


def expected(project: Project, pictures: list[bytes]) -> npt.NDArray[np.float64]:
    decoded = torch.from_numpy(np.stack([decode(picture, TILE_PX) for picture in pictures]))
    return probabilities(project, evaluation_view(decoded, crop_px=CROP_PX, mean=MEAN, std=STD))


def test_scores_are_the_stages_and_thresholds_choose_labels(project: Project, tmp_path: Path) -> None:
    pictures = [jpeg(seed) for seed in range(70)]  # more than one batch
    model = champion.champion(project)
    table = tag(model, pictures)
    scores = expected(project, pictures)
    np.testing.assert_allclose(table[LABELS].to_numpy(), scores, atol=1e-5)
    chosen = [[n for n, p, t in zip(LABELS, row, THRESHOLDS, strict=True) if p >= t] for row in scores]
    assert table["predicted_labels"].tolist() == chosen
    (tmp_path / "tile.jpg").write_bytes(jpeg(3))
    for form in (str(tmp_path / "tile.jpg"), decode(jpeg(3), TILE_PX)):
        pd.testing.assert_frame_equal(tag(model, [form]), tag(model, [jpeg(3)]))


def test_the_model_describes_itself_and_holds_no_pickle(project: Project, tmp_path: Path) -> None:
    client = store.open_store(project.root, "tiny").client
    model = mlflow.pyfunc.load_model("models:/satclr-tiny@champion", dst_path=str(tmp_path))  # from "?#%" it cannot
    assert model.metadata.get_input_schema().to_dict() == [{"type": "binary", "name": "tile", "required": True}]
    assert model.metadata.get_output_schema().input_names() == [*LABELS, "predicted_labels"]
    assert len(model.predict(model.input_example)) == 1
    source = client.get_model_version_by_alias("satclr-tiny", "champion").source
    found = {item.path for item in client.list_logged_model_artifacts(source.removeprefix("models:/"))}
    assert {"MLmodel", "requirements.txt", "code", "artifacts", "input_example.json"} <= found
    assert not [name for name in found if name.endswith((".pkl", ".pickle", ".pt", "uv.lock"))]


def test_the_model_loads_where_satclr_is_not_installed(project: Project, tmp_path: Path) -> None:
    version = store.open_store(project.root, "tiny").client.get_model_version_by_alias("satclr-tiny", "champion")
    mlflow.artifacts.download_artifacts(version.source, dst_path=str(tmp_path / "m"))
    (tmp_path / "tile.jpg").write_bytes(jpeg(5))
    code = """
import json, sys
sys.path[:] = [entry for entry in sys.path if not entry.endswith("/src")]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
import mlflow, pandas
model = mlflow.pyfunc.load_model("m")
table = model.predict(pandas.DataFrame({"tile": [open("tile.jpg", "rb").read()]}))
import satclr
assert satclr.__file__.startswith(str(__import__("pathlib").Path("m").resolve())), satclr.__file__
assert not {"typer", "satclr.cli", "satclr.tracking"} & sys.modules.keys()
print(json.dumps(table.iloc[0, :-1].tolist()))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.strip().splitlines()[-1])
    np.testing.assert_allclose(row, expected(project, [jpeg(5)])[0], atol=1e-5)


@pytest.mark.parametrize("form", ["json", "csv", "table"])
def test_a_corrupt_tile_is_reported_and_the_others_are_labelled(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number)[: 300 if number == 1 else None])
    (tmp_path / "notes.txt").write_text("not a tile")
    assert predict.run(project, [str(tmp_path)], form=form, top=2, scene_tile_px=256) == 1
    out, err = capsys.readouterr()
    assert f"{tmp_path / '1.jpg'}: " in err
    scores = dict(zip(LABELS, expected(project, [jpeg(2)])[0], strict=True))
    if form == "json":
        rows: list[Any] = [json.loads(line) for line in out.splitlines()]
        assert [list(row) for row in rows][1] == ["tile", "labels", "error"]
        shown = {*sorted(scores, key=scores.__getitem__)[::-1][:2], *rows[2]["labels"]}
        assert rows[2]["probabilities"] == pytest.approx({name: scores[name] for name in shown}, abs=1e-5)
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [bool(row["error"]) for row in rows] == [False, True, False]
        assert float(rows[2]["airplane"]) == pytest.approx(scores["airplane"], abs=1e-5)
    else:
        assert [line.split()[0][-5:] for line in out.splitlines() if not line.startswith(" ")] == ["0.jpg", "2.jpg"]


def test_labels_may_be_called_as_columns_are(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["error", "labels", "metal", "predicted_labels", "tile", "tile (label)"]
    scores = dict(zip(names, np.linspace(0.1, 0.6, 6).tolist(), strict=True))
    predict._print_csv(names, [predict.Prediction(predict.Source("roof_1.jpg", bytes), scores, ["tile"])])
    ((row),) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["tile"], row["error"], row["labels"]) == ("roof_1.jpg", "", "tile")
    assert len(row) == 3 + len(names)
    assert [float(row[f"{name} (label)"]) for name in ("error", "labels", "tile")] == pytest.approx([0.1, 0.2, 0.5])
    assert float(row["tile (label) (label)"]) == pytest.approx(0.6)
    model = champion.champion(project)
    model.labels = ["predicted_labels", *LABELS[1:]]
    table = tag(model, [jpeg(1)])
    assert table.columns.tolist() == ["predicted_labels (label)", *LABELS[1:], "predicted_labels"]
    assert runs._interface(model.labels, 32)["signature"].outputs.input_names() == table.columns.tolist()


def test_the_table_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    names = ["airplane", "bare-soil", "buildings", "cars", "chaparral", "court", "mobile-home", "pavement", "sand"]
    probabilities = dict(zip(names, np.linspace(0.99, 0.01, len(names)), strict=True))
    short = predict.Source("short.jpg", bytes)
    deep = predict.Source("/a/folder/of/" + "many/folders/" * 8 + "mobilehomepark01.tif", bytes)
    found = [predict.Prediction(short, probabilities, names[:2]), predict.Prediction(deep, probabilities, names)]
    predict._print_table(found, 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=1) == ["short.jpg", "airplane 0.99, bare-soil 0.87 (buildings 0.74)"]
    assert lines[1].startswith("…")
    assert "park01.tif  airplane 0.99, " in lines[1]
    assert max(map(len, lines)) <= 80
    assert all(line.endswith((",", ")")) or line[-4:-2] == "0." for line in lines), "only whole labels"


def test_wrong_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"nowhere\.jpg does not exist"):
        predict.find([tmp_path / "nowhere.jpg"])
    with pytest.raises(TrackingError, match="contains no pictures"):
        predict.find([tmp_path])
    (tmp_path / "b.png").touch()
    (tmp_path / "a.png").touch()
    names = [Path(source.name).name for source in predict.find([str(tmp_path / "*.png")])]
    assert names == ["a.png", "b.png"]


def test_a_damaged_or_foreign_champion_is_refused(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, broken = project.run("simclr"), tmp_path / "probe.safetensors"
    model, probe = champion.champion(project), LinearProbe.load(sound.probe)
    replace(probe, encoder=probe.encoder | {"tile_px": "wide"}).save(broken)
    with pytest.raises(files.FileError, match="tile_px 'wide'"):
        model.load(sound.encoder, broken)
    replace(probe, weight=probe.weight[:, :9]).save(broken)
    with pytest.raises(files.FileError, match="does not fit the 512 features"):
        model.load(sound.encoder, broken)
    (tmp_path / "python_model.pkl").touch()
    for foreign, reason in ((tmp_path, "python_model.pkl may run code"), (tmp_path / "empty", "lacks an encoder")):
        foreign.mkdir(exist_ok=True)
        monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda *_, at=foreign, **__: at)
        with pytest.raises(TrackingError, match=rf"version 1 is not a model of satclr: .*{reason}"):
            champion.champion(project)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_scene_is_cut_into_located_tiles(tmp_path: Path) -> None:
    scene_pixels = np.random.default_rng(0).integers(0, 256, (3, 70, 100), np.uint8)
    transform = rasterio.transform.from_origin(500_000, 4_000_000, 2.0, 2.0)
    facts = {"driver": "GTiff", "width": 100, "height": 70, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "scene.tif", "w", transform=transform, **facts) as scene:
        scene.write(scene_pixels)
    found = predict.find([tmp_path / "scene.tif"], scene_tile_px=48)
    corners = [(x, y) for y in (0, 22) for x in (0, 48, 52)]
    assert [source.name.split("#")[1] for source in found] == [f"x={x},y={y}" for x, y in corners]
    assert found[-1].bounds == (500_104, 3_999_860, 500_200, 3_999_956)
    np.testing.assert_array_equal(pixels(found[3].read()), scene_pixels[:, 22:70, :48].transpose(1, 2, 0))


def test_onnx_gives_the_same_probabilities(project: Project, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    champion.export(project, tmp_path / "champion.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "champion.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["labels"]) == LABELS
    side = int(facts["crop_px"])
    for count in (1, 5):
        batch = np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)
        views = (torch.from_numpy(batch).double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        (scores,) = session.run(None, {"pixels": batch})
        np.testing.assert_allclose(scores, probabilities(project, views.float().permute(0, 3, 1, 2)), atol=1e-4)
