import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from satclr import cli, files, runner
from satclr.pretrain import encoder
from satclr.tracking import store
from tests.test_dvc import MODULES

STAGES = ("pretrain", "embed", "probe", "evaluate")
ENCODER = Path("models/tiny/simclr-s0/encoder.safetensors")

Make = Callable[..., Path]


def satclr(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run a command in this process: exit code, output, errors."""
    capsys.readouterr()
    with mock.patch.object(sys, "argv", ["satclr", *arguments]), pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


def succeed(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must succeed; its output."""
    code, out, err = satclr(*arguments, capsys=capsys)
    assert code == 0, err
    return out


def test_help_is_instant() -> None:
    run = subprocess.run([sys.executable, "-m", "satclr", "--help"], capture_output=True, check=True)
    assert b"pretrain" in run.stdout
    heavy = "import sys, satclr.cli; print({'torch', 'mlflow', 'numpy', 'pydantic', 'rich.table'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", heavy], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "set()"


def test_arms_shows_the_resolved_table(project: Make, capsys: pytest.CaptureFixture[str]) -> None:
    project(lambda tree: tree["profiles"]["tiny"]["pretrain"].update(epochs=1), data=False)
    out = succeed("arms", capsys=capsys)
    clash = "pretrain.select 2 must be at most epochs 1"
    for text in (clash, "profile tiny", "baseline", "simclr yes pretrain.objective nt_xent", "-S '+arms."):
        assert text in " ".join(out.split())


def test_arms_shows_each_distinct_encoder(project: Make, capsys: pytest.CaptureFixture[str]) -> None:
    small, vit = "shufflenet_v2_x0_5", {"arch": "timm/vit_tiny_patch16_224", "normalization": "encoder"}

    def change(tree: dict[str, Any]) -> None:
        tree["arms"] = {"simclr": tree["arms"]["simclr"], "baseline": {"pretrain": {"objective": "none"}}}
        tree["arms"] |= {"vit": {"pretrain": vit}, "shown": {"pretrain": {"normalization": "imagenet"}}}
        tree["run"], tree["ladder"] = ["simclr", "vit"], []

    root = project(change)
    out = succeed("arms", "--encoders", capsys=capsys)
    assert out.count("run `satclr prepare`") == out.count("train") == 1
    succeed("prepare", capsys=capsys)
    out = succeed("arms", "--encoders", capsys=capsys)
    sizes = [f"{arch} {size(arch):,} {width} 32" for arch, width in ((small, "1,024"), (vit["arch"], 192))]
    statistics = json.loads((root / "build/tiny/stats.json").read_text())["normalization"]
    rows = [("train", sizes[0], statistics["train"]["mean"], statistics["train"]["std"])]
    rows += [("encoder", sizes[1], (0.5,) * 3, (0.5,) * 3)]
    rows += [("imagenet", sizes[0], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    expected = []
    for name, first, mean, std in rows:
        expected += [f"{first} {name}", "none mean {:.3f} {:.3f} {:.3f}".format(*mean)]
        expected += ["std {:.3f} {:.3f} {:.3f}".format(*std)]
    assert [" ".join(line.split()) for line in out.splitlines()[1:]] == expected


def size(arch: str) -> int:
    return sum(p.numel() for p in encoder.build(arch, 32)[0].parameters())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["arms", "--profile", "big"], ["big", "mlrsnet"]),
        (["pretrain", "--arm", "moco"], ["moco", "did you mean mulcon?"]),
        (["pretrain", "--arm", "simcl"], ["did you mean simclr"]),
        (["prepare", "--profile", "mlrsnet"], ["data/mlrsnet", "dvc pull"]),
        (["prepare"], ["road_00001.jpg", "runcated"]),
        (["embed", "--arm", "simclr"], ["satclr prepare"]),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: list[str], says: list[str], project: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    tile = project() / "data/tiny/Images/road/road_00001.jpg"
    tile.write_bytes(tile.read_bytes()[:700])
    code, _, err = satclr(*arguments, capsys=capsys)
    assert code == 2
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert [text for text in says if text not in err] == []


def test_no_library_ends_a_stage_with_a_traceback(
    project: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(data=False)

    def fail(*_: Any) -> None:
        raise ValueError("Expected more than 1 value per channel when training")

    for stage, module in {**MODULES, "register": "tracking.registry"}.items():
        monkeypatch.setattr(f"satclr.{module}.run", fail)
        monkeypatch.setattr(f"satclr.{module}.fingerprint", lambda _: "", raising=False)
        arm = ["--arm", "baseline"] if stage in runner.ARM_STAGES else []
        code, _, err = satclr(stage, *arm, capsys=capsys)
        assert (code, "Traceback" in err) == (1, False)
        assert [line[:28] for line in err.splitlines() if "error" in line] == ["error: unexpected ValueError"]
    monkeypatch.setenv("SATCLR_TRACEBACK", "1")
    assert "Traceback" in satclr("compare", capsys=capsys)[2]


def test_outside_a_project_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = satclr("arms", capsys=capsys)
    assert (code, "no params.yaml" in err) == (2, True)


def test_the_whole_line_from_tiles_to_a_champion(project: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Every stage through the command line, then a prediction by the registered model."""
    root = project()
    arms = [(stage, "--arm", arm) for arm in ("baseline", "simclr") for stage in STAGES]
    for command in [("prepare",), *arms, ("compare",), ("register",)]:
        succeed(*command, capsys=capsys)
    report = json.loads((root / "reports/tiny/compare.json").read_text())
    assert list(report["arms"]) == ["baseline", "simclr"]
    (contrast,) = report["contrasts"]
    assert (contrast["arm"], contrast["against"]) == ("simclr", "baseline")
    for file in [root / "reports/tiny/metrics.json", *root.glob("results/tiny/*/metrics.json")]:  # what DVC shows
        shown = json.loads(file.read_text())
        assert len(shown) <= 12
        assert all(value is None or isinstance(value, int | float) for value in shown.values())
    tile = root / "data/tiny/Images/water/water_00001.jpg"
    (root / "broken.jpg").write_bytes(b"no picture")
    code, out, _ = satclr("predict", "--json", "--top", "2", str(tile), str(root / "broken.jpg"), capsys=capsys)
    assert code == 1  # one of the two could not be read
    found = [json.loads(line) for line in out.splitlines()]
    assert found[0]["tile"] == str(tile)
    assert {*found[0]["labels"]} <= found[0]["probabilities"].keys()
    assert len(found[0]["probabilities"]) >= 2
    assert found[1]["error"]
    succeed("sync", capsys=capsys)  # publishes the comparison
    before = (root / "mlruns/mlflow.db").stat().st_size
    assert succeed("sync", capsys=capsys) == "2 arm runs of tiny in the store\n"
    assert (root / "mlruns/mlflow.db").stat().st_size == before  # nothing was logged twice


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_an_encoder_of_timm_goes_the_whole_line(name: str, project: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Every stage, from weights for 224 px to views of 32 px; the served model, `predict` and ONNX say the same."""
    import mlflow
    import timm
    import torch

    from satclr.data.pixels import decode
    from satclr.pretrain import views

    onnxruntime = pytest.importorskip("onnxruntime")

    def change(tree: dict[str, Any]) -> None:
        tree["run"] = ["baseline_batch_norm", "simclr"]
        tree["profiles"]["tiny"]["pretrain"] |= {"arch": f"timm/{name}", "weights": "start.pth", "knn_every_epochs": 2}
        tree["profiles"]["tiny"]["pretrain"] |= {"normalization": "encoder"}

    root = project(change)
    torch.save({f"backbone.{k}": v for k, v in timm.create_model(name).state_dict().items()}, root / "start.pth")
    stages = (*STAGES, "robustness", "maps")
    arms = [(stage, "--arm", arm) for arm in ("simclr", "baseline_batch_norm") for stage in stages]
    for command in [("prepare",), *arms, ("compare",), ("report",), ("register",)]:
        succeed(*command, capsys=capsys)
    compared = json.loads((root / "reports/tiny/compare.json").read_text())["arms"]["simclr"]
    assert compared["robustness"]["corruptions"].keys() == {"haze", "rotation"}
    assert compared["maps"]["trustworthiness"].keys() == {"pca"}
    assert f"timm/{name}" in (root / "reports/tiny/report.html").read_text()
    facts = {key: json.loads(text) for key, text in files.load_facts(root / ENCODER).items()}
    config = timm.get_pretrained_cfg(name)
    assert (facts["arch"], tuple(facts["mean"]), tuple(facts["std"])) == (f"timm/{name}", config.mean, config.std)
    opened = store.open_store(root, "tiny")
    run = opened.search(store.tag("kind", "arm"), store.tag("arm", "simclr"))[0]
    assert run.data.params["pretrain.weights_sha256"] == files.sha256(root / "start.pth") == facts["weights_sha256"]
    tile = root / "data/tiny/Images/water/water_00001.jpg"
    expected = json.loads(succeed("predict", "--json", "--top", "3", str(tile), capsys=capsys))["probabilities"]
    served = mlflow.pyfunc.load_model("models:/satclr-tiny@champion", dst_path=str(root))
    answer = served.predict(pd.DataFrame({"tile": [tile.read_bytes()]}))
    assert answer[list(expected)].iloc[0].to_dict() == pytest.approx(expected)
    for requirements in (root / "mlruns").rglob("requirements.txt"):
        assert f"timm=={timm.__version__}" in requirements.read_text().split()
    succeed("export", str(root / "champion.onnx"), capsys=capsys)
    session = onnxruntime.InferenceSession(root / "champion.onnx")
    facts = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    pixels = np.stack([decode(tile, 40)] * 3)
    x = views.evaluation_view(torch.from_numpy(pixels), crop_px=facts["crop_px"], mean=(0.0,) * 3, std=(1.0,) * 3)
    x = (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    scores = session.run(None, {"pixels": x.numpy()})[0]
    assert scores.shape == (3, 3)
    by_label = dict(zip(facts["labels"], scores[2], strict=True))
    assert by_label == pytest.approx(expected, abs=0.01)  # whole pixel values
