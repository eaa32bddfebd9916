"""The linear probe: features → models/<profile>/<arm>-s<seed>/probe.safetensors and its curves.

In: features.npy, the store's labels. Out: the linear layer of the selected epoch, with the thresholds and the
temperature fitted on validation tiles; probe.csv with training and validation loss and validation mAP per epoch.

    satclr probe --profile sample --arm simclr --seed 0
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.optim.adam import adam

from satclr import files, machine, progress, randomness
from satclr.data import tiles
from satclr.evaluation import metrics
from satclr.evaluation.linear import LinearProbe
from satclr.evaluation.metrics import decisions
from satclr.progress import Log
from satclr.project import ProjectError, Run

COLUMNS = ("epoch", "train_loss", "val_loss", "val_mAP")


def run(run: Run, log: Log) -> None:
    """Train one linear layer, D features → K labels, by binary cross-entropy, and keep the selected epoch's.

    Raises `tiles.TileError` when the features are not those of the run's tile store.
    """
    config = run.settings.probe
    store = tiles.open_store(run.store).learning(config.near_duplicates)
    features = tiles.load_features(run.features, store)
    layer = new_layer(features.shape[1], len(store.labels), seed=run.seed)
    curve: list[dict[str, float]] = []
    layers: list[list[npt.NDArray[np.float32]]] = []  # weight and bias after each epoch
    with progress.bar("probe", config.epochs, "epochs") as advance:
        for epoch, measured in enumerate(train(layer, store, features, run=run), 1):
            curve.append(measured)
            layers.append([value.detach().numpy().copy() for value in (layer.weight, layer.bias)])
            log(epoch, measured)
            advance(1)
    best_epoch = randomness.epoch(config.select, [-row["val_mAP"] for row in curve], run.seed, "probe")
    weight, bias = layers[best_epoch - 1]
    facts = {name: json.loads(text) for name, text in files.load_facts(run.encoder).items()}
    untuned, best = np.zeros(len(store.labels)), curve[best_epoch - 1]["val_mAP"]
    probe = LinearProbe(weight, bias, store.labels, untuned, 1.0, best_epoch, best, facts)
    val = store.rows("val")
    logits, targets = probe.logits(features[val]), store.targets[val]
    thresholds = decisions.tune_thresholds(decisions.sigmoid(logits).astype(np.float32), targets)
    temperature = decisions.fit_temperature(logits, targets)
    replace(probe, thresholds=thresholds, temperature=temperature).save(run.probe)
    rows = [[epoch, *row.values()] for epoch, row in enumerate(curve, 1)]
    files.write_csv(run.results / "probe.csv", COLUMNS, rows)


def train(
    layer: nn.Linear, store: tiles.TileStore, features: npt.NDArray[np.float32], *, run: Run
) -> Iterator[dict[str, float]]:
    """Train `layer` in place on features (N,D); yields train_loss, val_loss and val_mAP after each epoch.

    The optimizer is `torch.optim.Adam(fused=True)` by its functional form: the class imports torch's compiler,
    which takes longer than the training.
    """
    config, undefined, encoder = run.settings.probe, run.settings.evaluate.undefined_ap, None
    if config.batch_norm == "batch":  # features depend on the batch, so they are computed anew for each one
        from satclr.evaluation import embed

        encoder = embed.load_encoder(run)
    targets = torch.from_numpy(store.targets).float()
    train_rows, val_rows = store.rows("train"), store.rows("val")
    val_features, val_targets = torch.from_numpy(features[val_rows]), targets[val_rows]
    parameters = [layer.weight, layer.bias]
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    steps = [torch.tensor(0.0) for _ in parameters]
    for epoch in range(config.epochs):
        order = train_rows[randomness.permutation(len(train_rows), run.seed, "probe order", epoch).numpy()]
        losses = []
        for rows in tiles.split_batches(order, config.batch_size, smallest=1 if encoder is None else 2):
            x = features[rows] if encoder is None else encoder(torch.from_numpy(store.pixels[rows]))
            loss = F.binary_cross_entropy_with_logits(layer(torch.from_numpy(x)), targets[rows])
            gradients = list(torch.autograd.grad(loss, parameters))
            with torch.no_grad():
                adam(
                    parameters, gradients, means, squares, [], steps, fused=True, amsgrad=False, maximize=False,
                    beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, lr=config.learning_rate,
                )  # fmt: skip
            losses.append(loss.item() * len(rows))
        with torch.inference_mode():
            logits = layer(val_features)
            val_loss = F.binary_cross_entropy_with_logits(logits, val_targets).item()
        yield {
            "train_loss": math.fsum(losses) / len(order),
            "val_loss": val_loss,
            "val_mAP": metrics.mean_average_precision(logits, val_targets, undefined=undefined),
        }


def new_layer(width: int, labels: int, *, seed: int) -> nn.Linear:
    """The probe before training, D features → K labels, as drawn for a run's seed."""
    with randomness.seeded(randomness.derive(seed, "probe")):
        return nn.Linear(width, labels)


def fingerprint(run: Run) -> str:
    """SHA-256 of the encoder, the settings of embedding and probing, and the seed.

    Raises `ProjectError` without an encoder.
    """
    settings = run.settings
    if not run.encoder.is_file():  # before MLflow has a run of it
        raise ProjectError(f"{run.encoder} does not exist; run `satclr pretrain` first")
    encoder = files.sha256(run.encoder)
    facts = [settings.probe.model_dump(mode="json"), settings.evaluate.undefined_ap, run.seed, encoder]
    facts.append(machine.precision(settings.embed.precision)[0])
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
