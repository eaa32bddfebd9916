"""The long run: `python -m tests.fuzz [--seed N] [--share 1.0]` prints what was tried and what became of it."""

import argparse
import tempfile
import time
from pathlib import Path

from . import ACCEPTED, REFUSED, Fuzzer, files, pictures, settings, stores, tables

# name, fuzzer, cases of the long run and of the short one, and what some cases of the latter come to
FUZZERS: tuple[tuple[str, Fuzzer, int, int, set[str]], ...] = (
    ("label tables, sound, however saved", tables.run, 2000, 40, {ACCEPTED}),
    ("label tables, with a fault", tables.run_faulty, 2000, 80, {REFUSED}),
    ("label tables, damaged bytes", tables.run_edited, 2000, 40, {ACCEPTED, REFUSED}),
    ("names, through prepare to the store", stores.run, 300, 6, {ACCEPTED}),
    ("image files, cut off at every 512th byte", pictures.run_truncated, 10_000, 250, {REFUSED}),
    ("image files, damaged bytes", pictures.run_edited, 3000, 100, {ACCEPTED, REFUSED}),
    ("params.yaml, a setting at its edge", settings.run, 1500, 30, {ACCEPTED, REFUSED}),
    ("params.yaml, damaged bytes", settings.run_edited, 500, 15, {REFUSED}),
    ("model files and archives, damaged bytes", files.run, 3000, 100, {ACCEPTED, REFUSED}),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the long run's cases")
    chosen = parser.parse_args()
    lines = [f"seed {chosen.seed}"]
    for name, fuzzer, cases, *_ in FUZZERS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            outcomes = fuzzer(max(1, round(cases * chosen.share)), chosen.seed, Path(folder))
        told = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
        lines.append(f"{name}: {outcomes.total():,} cases in {time.monotonic() - started:.0f} s: {told}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
