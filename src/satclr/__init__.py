"""Does contrastive pretraining help multi-label tagging of overhead images, by how much, and why?

Tiles and label tables enter; a table of arms with intervals, a report and a registered probe leave. `cli` runs one
stage after another, in the order of the packages: `data` makes the tile store, `pretrain` an encoder, `evaluation` its
probe and scores, `study` sets the arms side by side, `tracking` shows them in MLflow and serves the best.

Start with `params.py` (what may be set), `project.py` (which file is where) and `pretrain/train.py` (the loop).
"""
