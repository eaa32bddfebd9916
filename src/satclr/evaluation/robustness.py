"""How much mAP survives what weather and sensor do: test tiles corrupted, encoded and scored again.

In: the tile store, encoder.safetensors, probe.safetensors. Out: robustness.json, in results/<profile>/<arm>-s<seed>/.

    satclr robustness --profile sample --arm simclr --seed 0

`robustness.corruptions: []` skips it and leaves an empty robustness.json.
"""

import numpy as np

from satclr import files, progress
from satclr.data import tiles
from satclr.evaluation import corruptions, embed, metrics
from satclr.evaluation.linear import LinearProbe
from satclr.project import Run


def run(run: Run, _log: object) -> None:
    """Score the test tiles untouched and under every corruption and strength, and write the mAPs.

    `relative_drop` is a fraction of the clean mAP. Raises `files.FileError` when the probe is not this store's.
    """
    settings = run.settings.robustness
    clean = mean = drop = None
    tested: dict[str, dict[str, float]] = {}
    if settings.corruptions:
        store = tiles.open_store(run.store)
        probe, encoder = LinearProbe.load(run.probe, labels=store.labels), embed.load_encoder(run)

        def mean_ap(corruption: str = "", strength: int = 0) -> float:
            logits, batches = [], embed.split_batches(store, "test", run)
            for rows, batch in tiles.stream(store, batches, encoder.device):
                pixels = batch
                if corruption:
                    names = [store.names[row] for row in rows]
                    pixels = corruptions.corrupt(batch, corruption, strength=strength, keys=names)
                logits.append(probe.logits(encoder(pixels)))
            scores, targets = np.concatenate(logits), store.targets[np.concatenate(batches)]
            undefined = run.settings.evaluate.undefined_ap
            return metrics.mean_average_precision(scores, targets, undefined=undefined)

        rounds = [(name, strength) for name in settings.corruptions for strength in settings.strengths]
        with progress.bar("robustness", len(rounds) + 1, "rounds") as advance:
            clean = mean_ap()
            advance(1)
            for name, strength in rounds:
                tested.setdefault(name, {})[str(strength)] = mean_ap(name, strength)
                advance(1)
        mean = float(np.mean([value for each in tested.values() for value in each.values()]))
        drop = 1 - mean / clean
        print(f"{run.key}: test mAP {clean:.4f}, {mean:.4f} under corruption ({-drop:+.1%})")
    result = {"clean_mAP": clean, "mean_corruption_mAP": mean, "relative_drop": drop, "corruptions": tested}
    files.write_json(run.results / "robustness.json", result)
