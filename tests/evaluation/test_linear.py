from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satclr.evaluation.linear import LinearProbe
from satclr.files import FileError, load_tensors, save_tensors


def probe() -> LinearProbe:
    rng = np.random.default_rng()
    weight, bias = rng.normal(size=(2, 5)).astype(np.float32), rng.normal(size=2).astype(np.float32)
    facts = {"arch": "resnet18", "mean": [0.1, 0.2, 0.3], "weights_sha256": None}
    return LinearProbe(weight, bias, ["sea", "sandy shore"], np.array([0.25, 2.0]), 1.5, 3, 0.75, facts)


def test_a_saved_probe_is_read_back(tmp_path: Path) -> None:
    saved, path = probe(), tmp_path / "probe.safetensors"
    saved.save(path)
    loaded = LinearProbe.load(path, labels=["sea", "sandy shore"])
    np.testing.assert_equal(vars(loaded), vars(saved))
    x = np.random.default_rng().normal(size=(7, 5))
    for i, k in np.ndindex(7, 2):
        expected = sum(x[i] * saved.weight[k].astype(float)) + float(saved.bias[k])
        assert loaded.logits(x)[i, k] == pytest.approx(expected)
    before = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["sea", "sea"]}, "do not fit 1 distinct labels"),
        ({"thresholds": np.array([0.5])}, r"thresholds \(1,\) do not fit 2"),
        ({"bias": np.zeros(3, np.float32)}, r"bias \(3,\)"),
        ({"weight": np.full((2, 5), np.nan, np.float32)}, "not finite in weight"),
    ],
)
def test_a_probe_whose_parts_do_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    replace(probe(), **change).save(tmp_path / "probe.safetensors")
    with pytest.raises(FileError, match=message):
        LinearProbe.load(tmp_path / "probe.safetensors")


def test_what_is_no_probe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "probe.safetensors"

    def refused(message: str, labels: list[str] | None = None) -> None:
        with pytest.raises(FileError, match=message):
            LinearProbe.load(path, labels=labels)

    refused("run `satclr probe` first")
    probe().save(path)
    refused("2 labels that are not the tile store's", labels=["sandy shore", "sea"])
    save_tensors(path, load_tensors(path)[0], labels=["sea", "sandy shore"])
    refused(r"not a linear probe \(KeyError\('thresholds'\)\)")
    path.write_bytes(path.read_bytes()[:-3])
    refused("not a complete safetensors file")
