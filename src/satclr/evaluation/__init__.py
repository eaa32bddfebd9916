"""From an encoder to the scores and numbers of one run: embed, probe, evaluate, robustness, maps."""

from collections.abc import Callable, Mapping

Log = Callable[[int, Mapping[str, float]], None]  # epoch, metrics
