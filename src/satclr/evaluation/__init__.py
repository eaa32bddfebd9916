"""From an encoder to the scores and numbers of one run: embed, probe, evaluate, robustness, maps."""

from satclr.progress import Log

__all__ = ["Log"]
