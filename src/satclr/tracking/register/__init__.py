"""The registry: the best probe becomes a version of `satclr-<profile>`, gated, with the alias `champion`.

In: the stage outputs of every arm and seed, their arm runs in MLflow. Out: reports/<profile>/champion.json,
one more line in reports/<profile>/promotions.csv, a model version.

    satclr register --profile sample
    satclr promote VERSION
    satclr rollback
    satclr predict TILE...
    satclr export FILE
"""

from satclr.tracking.register.export import export
from satclr.tracking.register.gate import Contrast, contrast
from satclr.tracking.register.predict import Prediction, as_json, champion, predict, write_csv
from satclr.tracking.register.registry import Decision, model_name, promote, restore, rollback, run
from satclr.tracking.register.sources import Source, find

__all__ = [
    "Contrast",
    "Decision",
    "Prediction",
    "Source",
    "as_json",
    "champion",
    "contrast",
    "export",
    "find",
    "model_name",
    "predict",
    "promote",
    "restore",
    "rollback",
    "run",
    "write_csv",
]
