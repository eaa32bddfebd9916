"""Model files and archives with damaged bytes: refused in one message, without taking memory for what they claim."""

import io
import resource
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from hypothesis import strategies as st

from satclr import files, randomness
from satclr.data import labels
from satclr.data.importing import SourceError, archives
from satclr.pretrain import architectures, encoder

from ..data import downloads
from . import ACCEPTED, REFUSED, Outcomes, edited, explore
from .pictures import encoded, noise

GROWTH_MAX_KB = 1_000_000  # of the process, by all cases together


@cache
def _weights() -> dict[str, torch.Tensor]:
    with randomness.seeded(0):
        model, _ = encoder.build("squeezenet1_1")
    first = list(model.state_dict().items())[:2]
    return {k: v[:2, :1].contiguous() if v.ndim > 1 else v[:2].contiguous() for k, v in first}


@cache
def samples() -> dict[str, bytes]:
    """A small sound file of each format."""
    saved, arrays = io.BytesIO(), io.BytesIO()
    torch.save(_weights(), saved)
    np.savez(arrays, test_scores=np.zeros((3, 2), np.float32), labels=np.array(["a", "b"]))
    tile = encoded(noise(16), "PNG")
    return {
        ".safetensors": safetensors.torch.save(_weights(), {"arch": "squeezenet1_1"}),
        ".pth": saved.getvalue(),
        ".npz": arrays.getvalue(),
        ".xlsx": downloads.xlsx({"a.jpg": [0, 1, 0, 1]}),
        ".zip": downloads.zipped({"set/sea/a.png": tile, "set/labels.csv": b"image,sea\na.png,1\n"}),
        ".tar.gz": downloads.tarred({f"set/sea/{'a' * 200}.png": tile}),  # such a name needs a pax header
        ".rar": downloads.rarred({"set/sea/a.png": tile}),
    }


def read(path: Path) -> None:
    """Read a file as the product does; raises the product's own errors."""
    if path.name.endswith(".npz"):
        files.load_npz(path)
    elif path.name.endswith(".xlsx"):
        labels.sheets(path)
    elif path.name.endswith((".zip", ".tar.gz", ".rar")):
        scratch = path.with_name("scratch")
        shutil.rmtree(scratch, ignore_errors=True)
        archives.members(path, scratch)
    else:
        architectures.read_weights(path)


def run(cases: int, seed: int, folder: Path) -> Outcomes:
    """Damaged files are refused by their path, or read; none takes the memory that its header claims."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusals = (encoder.EncoderError, files.FileError, labels.LabelError, SourceError)

    def check(case: tuple[str, bytes]) -> str:
        suffix, raw = case
        path = folder / f"damaged{suffix}"
        path.write_bytes(raw)
        try:
            read(path)
        except refusals as error:
            assert "damaged" in str(error) or "set/" in str(error), str(error)
            return REFUSED
        return ACCEPTED

    def damaged(suffix: str) -> st.SearchStrategy[tuple[str, bytes]]:
        return st.tuples(st.just(suffix), edited(st.just(samples()[suffix])))

    outcomes = explore(st.sampled_from(sorted(samples())).flatmap(damaged), check, cases=cases, seed=seed)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < GROWTH_MAX_KB, f"memory grew by {grown:,} kB"
    return outcomes
