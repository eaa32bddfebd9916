"""What a stage must not import: torch takes seconds to start, torchvision and torch's compiler several more."""

import subprocess
import sys

from tests.conftest import ROOT

HEAVY = ("torch", "torchvision", "torch._dynamo", "sympy", "sklearn", "umap", "matplotlib", "plotly", "mlflow")

STEP = """
import numpy as np, torch
from types import SimpleNamespace as Fake
from satclr.evaluation import probe
config = Fake(batch_norm="frozen", epochs=1, batch_size=4, learning_rate=0.1)
run = Fake(seed=0, settings=Fake(probe=config, evaluate=Fake(undefined_ap="exclude")))
store = Fake(targets=np.eye(8, 3, dtype=np.uint8), rows=lambda split: np.arange(8))
measured = list(probe.train(probe.new_layer(5, 3, seed=0), store, np.eye(8, 5, dtype=np.float32), run=run))
assert len(measured) == 1
"""


def imported(code: str) -> set[str]:
    """The heavy modules that a new Python has loaded after `code`."""
    code += f"\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_what_works_on_numbers_imports_no_torch() -> None:
    stages = ("evaluation.evaluate", "evaluation.maps", "study.compare", "data.audit", "data.importing")
    assert imported("".join(f"import satclr.{name}\n" for name in stages)) == set()


def test_the_arms_are_shown_without_torch() -> None:
    code = f"import os; os.chdir({str(ROOT)!r}); from satclr import cli; cli.app(['arms'], standalone_mode=False)"
    assert imported(f"{code}\nprint()") == set()


def test_a_probe_trains_without_torchvision_and_torchs_compiler() -> None:
    assert imported(STEP) == {"torch"}
