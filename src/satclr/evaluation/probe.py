"""The linear probe: features → models/<profile>/<arm>/probe.safetensors and its curves.

In: features.npy, the store's labels. Out: the linear layer of the chosen epoch, with the thresholds and the
temperature that validation tiles give; probe.csv with training and validation loss and validation mAP an epoch.

    satclr probe --profile sample --arm simclr --seed 0
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from satclr import atomic, progress, randomness, tensorfile
from satclr.data import tiles
from satclr.evaluation import metrics
from satclr.params import Settings
from satclr.pretrain import encoder as enc

Log = Callable[[int, Mapping[str, float]], None]
Encode = Callable[[npt.NDArray[np.int64]], Tensor]  # rows of the store → features (B,D)
NEVER = 2.0
COLUMNS = ("epoch", "train_loss", "val_loss", "val_mAP")


def run(
    store: tiles.TileStore,
    *,
    features: Path,
    encoder: Path,
    out: Path,
    curve: Path,
    settings: Settings,
    seed: int,
    log: Log,
) -> None:
    """Train one linear layer, D features → K labels, by binary cross-entropy; keep one epoch's.

    `log(epoch, metrics)` hears of each epoch as it ends. Raises `tiles.TileError` when the features are not
    those of this store.
    """
    cached = tiles.load_features(features, store)
    frozen = enc.Frozen(encoder, precision=settings.embed.precision, batch_norm=settings.probe.batch_norm)

    def encode(rows: npt.NDArray[np.int64]) -> Tensor:
        if settings.probe.batch_norm == "frozen":
            return torch.from_numpy(cached[rows])
        return torch.from_numpy(frozen(torch.from_numpy(store.pixels[rows])))  # features depend on the batch

    epochs, kept = [], None
    layer = new_layer(cached.shape[1], len(store.labels), seed=seed)
    with progress.bar("probe", settings.probe.epochs) as advance:
        for measured in train(layer, store, encode, cached, settings=settings, seed=seed):
            epochs.append(measured)
            log(len(epochs), measured)
            if kept is None or _better(epochs, settings.probe.select):
                kept = {name: value.detach().clone() for name, value in layer.state_dict().items()}
                best_epoch = len(epochs)
            advance(1)
    if kept is None:
        raise ValueError("probe.epochs is 0")
    facts = enc.metadata(encoder) | {"labels": store.labels, "best_epoch": best_epoch}
    facts |= decisions(kept, cached[store.rows("val")], store.targets[store.rows("val")])
    tensorfile.save(out, kept, val_mAP=epochs[best_epoch - 1]["val_mAP"], **facts)
    with atomic.replacing(curve) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([i, *(row[name] for name in COLUMNS[1:])] for i, row in enumerate(epochs, 1))


def decisions(
    layer: Mapping[str, Tensor], features: npt.NDArray[np.float32], targets: npt.NDArray[np.uint8]
) -> dict[str, Any]:
    """What turns scores into decisions, tuned on validation tiles: thresholds (K) of probabilities, temperature.

    layer: weight (K,D) and bias (K,); features (N,D), targets (N,K). A label without positives is never said:
    its threshold is NEVER, above any probability.
    """
    weight, bias = (layer[name].double().numpy() for name in ("weight", "bias"))
    logits = features.astype(float) @ weight.T + bias
    best = metrics.tune_thresholds(metrics.sigmoid(logits).astype(np.float32), targets)
    return {
        "thresholds": np.where(np.isinf(best), NEVER, best).tolist(),
        "temperature": metrics.fit_temperature(logits, targets),
    }


def fingerprint(settings: Settings, seed: int, encoder: Path) -> str:
    """Stands for the encoder and all that is set about embedding and probing."""
    facts = [settings.embed.model_dump(mode="json"), settings.probe.model_dump(mode="json"), seed]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    if encoder.exists():  # where it is missing, `run` says so
        digest.update(encoder.read_bytes())
    return digest.hexdigest()


def train(
    layer: nn.Linear,
    store: tiles.TileStore,
    encode: Encode,
    cached: npt.NDArray[np.float32],  # (N,D)
    *,
    settings: Settings,
    seed: int,
) -> Iterator[dict[str, float]]:
    """Train `layer` in place; yields train_loss, val_loss and val_mAP after each epoch."""
    how = settings.probe
    targets = torch.from_numpy(store.targets).float()
    train_rows, val_rows = store.rows("train"), store.rows("val")
    val_features, val_targets = torch.from_numpy(cached[val_rows]), targets[val_rows]
    optimizer = torch.optim.Adam(layer.parameters(), lr=how.learning_rate, fused=True)
    for epoch in range(how.epochs):
        order = train_rows[randomness.permutation(len(train_rows), seed, "probe order", epoch).numpy()]
        losses = []
        for rows in tiles.split_batches(order, how.batch_size):
            loss = F.binary_cross_entropy_with_logits(layer(encode(rows)), targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(rows))
        with torch.inference_mode():
            logits = layer(val_features)
            val_loss = F.binary_cross_entropy_with_logits(logits, val_targets).item()
        zero = settings.evaluate.undefined_ap == "zero"
        ap = metrics.average_precision(logits.numpy(), val_targets.numpy())
        yield {
            "train_loss": math.fsum(losses) / len(order),
            "val_loss": val_loss,
            "val_mAP": metrics.mean_average_precision(np.nan_to_num(ap) if zero else ap),
        }


def new_layer(width: int, labels: int, *, seed: int) -> nn.Linear:
    """The probe before training, D features → K labels, as drawn for an arm's seed."""
    with enc.seeded(randomness.derive(seed, "probe")):
        return nn.Linear(width, labels)


def _better(epochs: list[dict[str, float]], select: str) -> bool:
    """Whether the latest epoch is the one to keep so far (on a tie the earlier one stays)."""
    if select == "best":
        return epochs[-1]["val_mAP"] > max(row["val_mAP"] for row in epochs[:-1])
    return select == "last"
