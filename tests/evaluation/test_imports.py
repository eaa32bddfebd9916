"""What a stage must not import: torch takes seconds to start, torchvision and torch's compiler several more."""

import subprocess
import sys

import pytest

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


STAGES = ("evaluation.evaluate", "evaluation.maps", "study.compare", "data.audit", "data.importing")
ARMS = f"import os; os.chdir({str(ROOT)!r}); from satclr import cli; cli.app(['arms'], standalone_mode=False)"


@pytest.mark.parametrize(
    ("code", "expected"),
    [("".join(f"import satclr.{name}\n" for name in STAGES), set()), (ARMS, set()), (STEP, {"torch"})],
    ids=["stages on numbers", "satclr arms", "probe"],
)
def test_heavy_modules_are_imported_only_where_needed(code: str, expected: set[str]) -> None:
    code += f"\nimport sys\nprint('\\n', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert set(done.stdout.splitlines()[-1].split()) == expected
