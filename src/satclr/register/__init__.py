"""The registry: the best probe becomes a version of `satclr-<profile>`, gated, with the alias `champion`.

In: the stage outputs of every arm and seed, their arm runs in MLflow. Out: reports/<profile>/champion.json,
one more line in reports/<profile>/promotions.csv, a model version.

    satclr register --profile sample
    satclr promote VERSION
    satclr rollback
    satclr predict TILE...
"""

from satclr.register.gate import Contrast, contrast
from satclr.register.predict import Prediction, champion, predict
from satclr.register.registry import Decision, model_name, promote, rollback, run

__all__ = [
    "Contrast",
    "Decision",
    "Prediction",
    "champion",
    "contrast",
    "model_name",
    "predict",
    "promote",
    "rollback",
    "run",
]
