import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from satclr import settings
from satclr.params import Params
from satclr.project import Project, leaves
from satclr.settings import ParamsError, merge

from .conftest import ROOT


@pytest.fixture
def tree() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    return loaded


def load(tree: Any, folder: Path) -> Params:
    path = folder / "params.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree, sort_keys=False))
    return settings.load(path)


def test_mlrsnet_is_the_paper_to_the_letter() -> None:
    s = settings.resolve(settings.load(ROOT / "params.yaml"), "mlrsnet", "simclr")
    assert (s.pretrain.arch, s.pretrain.weights, s.views.crop_px) == ("resnet50", "IMAGENET1K_V2", 224)
    assert s.data.split.fractions == (0.7, 0.2, 0.1)
    assert (s.pretrain.temperature, s.pretrain.epochs, s.pretrain.batch_size) == (0.5, 10, 128)
    assert (s.pretrain.optimizer, s.pretrain.learning_rate, s.pretrain.precision) == ("adam", 3e-4, "float32")
    assert (s.probe.epochs, s.probe.batch_size, s.probe.learning_rate) == (10, 128, 1e-3)
    v = s.views
    assert (v.flip_p, v.jitter_p, v.grayscale_p, v.blur_p) == (0.5, 0.8, 0.2, 1.0)
    assert (v.brightness, v.contrast, v.saturation, v.hue) == (0.4, 0.4, 0.4, 0.1)
    assert (v.ratio, v.blur_kernel_px, v.blur_sigma) == ((1.0, 1.0), 23, (0.1, 2.0))


@pytest.mark.parametrize(("arm", "text"), [("baseline_as_released", "baseline"), ("simclr_as_released", "simclr")])
def test_as_released_is_the_paper_but_for_the_notebooks_departures(arm: str, text: str) -> None:
    paper, released = (Project(ROOT, "mlrsnet").run(name).flat() for name in (text, arm))
    changed = {key: value for key, value in released.items() if paper[key] != value}
    expected = {"views.interpolation": "bilinear", "pretrain.normalization": "released", "probe.batch_norm": "batch"}
    expected |= {"probe.select": "arbitrary", "evaluate.undefined_ap": "zero"}
    if text == "simclr":
        expected |= {"pretrain.forward": "separate", "pretrain.select": "arbitrary"}
        expected |= {"pretrain.projection.hidden": "512", "pretrain.projection.batch_norm": "False"}
    assert changed == expected


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"defaults": {"pretrain": {"temprature": 0.1}}}, ["defaults.pretrain.temprature", "temperature"]),
        ({"defaults": {"pretrain": {"temperature": 0.0}}}, ["defaults.pretrain.temperature = 0.0", "greater than 0"]),
        ({"profiles": {"sample": {"pretrain": {"epochs": 1.5}}}}, ["profiles.sample.pretrain.epochs = 1.5"]),
        ({"profiles": {"sample": {"pretrain": {"epochs": True}}}}, ["profiles.sample.pretrain.epochs = True"]),
        ({"arms": {"simclr": {"pretrain": {"objective": "simclr"}}}}, ["arms.simclr.pretrain.objective", "nt_xent"]),
        ({"arms": {"simclr": {"embed": {}}}}, ["arms.simclr.embed", "unknown key"]),
        ({"arms": {"Sim CLR": {"pretrain": {}}}}, ["Sim CLR"]),
        ({"run": ["baseline", "moco"]}, ["moco", "did you mean mulcon?"]),
        ({"run": []}, ["run"]),
        ({"seeds": [0, 0]}, ["seeds: duplicate entry 0"]),
        ({"seeds": [-1]}, ["seeds.0 = -1"]),
        ({"profile": "mlrs"}, ["mlrs", "mlrsnet"]),
        ({"colour": "red"}, ["colour", "unknown key"]),
        ({"machine": {"processes": 0}}, ["machine.processes = 0"]),
        ({"defaults": {"views": {"scale": [0.5, 0.1]}}}, ["defaults.views.scale", "0.5, 0.1"]),
        ({"defaults": {"views": {"blur_kernel_px": 22}}}, ["defaults.views.blur_kernel_px 22"]),
        ({"defaults": {"data": {"split": {"fractions": [0.5, 0.2, 0.1]}}}}, ["data.split.fractions", "sum to 1"]),
        ({"profiles": {"ucmerced": {"data": {"split": {"by": "group"}}}}}, ["by: group", "set file: null"]),
        ({"defaults": {"pretrain": {"warmup_epochs": 99}}}, ["defaults.pretrain.warmup_epochs 99"]),
        ({"arms": {"jaccard": {"pretrain": {"tiles": "unlabelled"}}}}, ["arms.jaccard", "objective jaccard"]),
        ({"arms": {"simclr": {"pretrain": {"adapt_batch_norm": True}}}}, ["arms.simclr.pretrain.adapt_batch_norm"]),
        ({"arms": {"simclr": {"pretrain": {"temperature": None}}}}, ["arms.simclr.pretrain.temperature = None"]),
        ({"defaults": {"data": {"split": {"fractions": [0.7, "b", 0.1]}}}}, ["defaults.data.split.fractions.1 = 'b'"]),
        ({"arms": {"simclr": {"pretrain": {"a\nb": 1}}}}, ["arms.simclr.pretrain.a\\nb: unknown key"]),
        ({"seeds": ["x" * 10_000]}, ["seeds.0 = 'xxx", "..."]),
        ({"arms": {"simclr": {"probe": {"select": "first"}}}}, ["simclr.probe.select = 'first'", "best, last, arb"]),
        ({"arms": {"simclr": {"pretrain": {"select": 0}}}}, ["arms.simclr.pretrain.select = 0", "an epoch, from 1"]),
        ({"arms": {"simclr": {"pretrain": {"select": 99}}}}, ["arms.simclr.pretrain.select 99", "at most epochs 12"]),
        ({"defaults": {"probe": {"select": 99}}}, ["defaults.probe.select 99", "at most epochs 30"]),
        ({"defaults": {"pretrain": {"keep_epochs": [0]}}}, ["defaults.pretrain.keep_epochs = [0]", "all or a list"]),
        ({"profiles": {"sample": {"probe": None}}}, ["profiles.sample.probe"]),
        ({"profiles": {"small": {}}}, ["profiles.small.data is missing; add `data: {}`"]),
    ],
)  # fmt: skip
def test_an_invalid_setting_is_named(
    change: dict[str, Any], names: list[str], tree: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ParamsError) as caught:
        load(merge(tree, change), tmp_path)
    assert all(text in str(caught.value) for text in names), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_arm_need_not_go_together_with_a_profile_that_it_does_not_run_with(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["profiles"] = {"brief": merge(tree["profiles"]["sample"], {"pretrain": {"epochs": 1}})}
    params = load(tree | {"profile": "brief"}, tmp_path)
    with pytest.raises(ParamsError, match=r"arms\.simclr_epoch_2\.pretrain\.select 2 must be at most epochs 1"):
        settings.resolve(params, "brief", "simclr_epoch_2")
    with pytest.raises(ParamsError, match="simclr_epoch_2"):
        load(tree | {"profile": "brief", "run": ["baseline", "simclr_epoch_2"]}, tmp_path)


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "a: 1\na: 2", "1: 2", "\x00", "a: &a [*a]"])
def test_a_file_that_is_not_a_params_yaml_is_one_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(ParamsError):
        load(text, tmp_path)


def test_floats_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("learning_rate: 3.0e-4", "learning_rate: 3e-4")
    assert settings.resolve(load(text, tmp_path), "mlrsnet", "simclr").pretrain.learning_rate == 3e-4


@pytest.mark.parametrize("scalar", ["010", "0o10", "1:30", "yes", "Off"])
def test_a_value_that_dvc_would_read_otherwise_is_refused_with_its_line(scalar: str, tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("seeds: [0]", f"seeds: [{scalar}]")
    line = next(i for i, row in enumerate(text.splitlines(), 1) if row.startswith("seeds:"))
    with pytest.raises(ParamsError, match=rf"{scalar} means different things.* line {line}"):
        load(text, tmp_path)
    load(text.replace(f"[{scalar}]", "[8]"), tmp_path)


def test_few_settings_are_changed_by_nothing(tree: dict[str, Any]) -> None:
    """A setting that no profile, arm or page of the documentation changes should be a constant in the code."""
    docs = "".join(path.read_text() for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
    changed = {key for table in ("profiles", "arms") for one in tree[table].values() for key, _ in leaves(one, ".")}
    keys = [key for key, _ in leaves(tree["defaults"], ".")]
    unchanged = [key for key in keys if key not in changed and key.split(".")[-1] not in docs]
    assert len(unchanged) <= 15, unchanged


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text("ab", max_size=2)
trees = st.recursive(scalars, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3))
mappings = trees.filter(lambda tree: isinstance(tree, dict))


@given(mappings, mappings)
def test_merge_keeps_the_change_and_leaves_its_arguments_alone(base: Any, change: Any) -> None:
    before = copy.deepcopy((base, change))
    merged = merge(base, change)
    assert repr((base, change)) == repr(before)
    assert merge(merged, change) == merged
    assert set(merged) == set(base) | set(change)
