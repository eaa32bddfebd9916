"""`python -m tools.sample FOLDER`: render the embedded sample data set into FOLDER."""

import argparse
from pathlib import Path

from tools.sample import TILES_PER_CATEGORY, render

parser = argparse.ArgumentParser(prog="python -m tools.sample", description="Render the embedded sample data set.")
parser.add_argument("folder", type=Path, help="gets Images/ and Labels/")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--tiles-per-category", type=int, default=TILES_PER_CATEGORY)
arguments = parser.parse_args()
render(arguments.folder, seed=arguments.seed, tiles_per_category=arguments.tiles_per_category)
