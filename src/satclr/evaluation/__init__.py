"""From an encoder to the scores and numbers of one run: embed, probe, evaluate, robustness, maps."""
