"""What a pretraining looks like from inside, measured after each epoch on a few fixed training tiles.

In: the model in training. Out: numbers for pretrain.csv and MLflow, and one warning if its projections collapse.
A measurement changes nothing of the training. Its views come from a generator of their own, the same in every epoch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from satclr import machine, progress, randomness
from satclr.data import tiles
from satclr.params import WITHOUT_LABELS
from satclr.pretrain import views
from satclr.pretrain.encoder import BatchNorm, Input
from satclr.project import Run

TILES, SHARE, MIN_TILES = 256, 32, 32  # at most 256 and one in 32, for a cost below 3 % of an epoch; at least 32
COLLAPSED = 0.12  # of the possible rank; healthy runs were seen to keep 0.25 and more, collapsed ones below 0.06
BATCH = 64
KNN_TILES = 4096  # at most, of each split
NEIGHBOURS, TEMPERATURE = 20, 0.07  # as `evaluate` has them

Rows = npt.NDArray[np.int64]


@torch.no_grad()
def after_epoch(
    model: nn.Sequential, store: tiles.TileStore, run: Run, inputs: Input, former: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Measure `model`, an encoder and its projection head, in training; `former` are the earlier epochs' values.

    Warns in the first epoch whose projections have collapsed.
    """
    config, epoch = run.settings.pretrain, len(former) + 1
    rows = _some(store, "train", max(MIN_TILES, min(TILES, len(store.rows("train")) // SHARE)), run)
    with _still(model):
        h, z = _encode_views(model, store, rows, run, inputs)
    values = measure(h, z, model)
    if config.knn_every_epochs and (epoch % config.knn_every_epochs == 0 or epoch == config.epochs):
        model.eval()  # with BatchNorm's running statistics, as the encoder will be used
        values["knn_val_mAP"] = _knn_map(model[0], run, inputs)
        model.train()
    by_labels = config.objective not in WITHOUT_LABELS  # it asks for no more directions than there are labels
    possible = min(*z.shape, len(store.labels)) if by_labels else min(z.shape)
    *earlier, rank = [row["projection_rank"] for row in (*former, values)]
    if rank < COLLAPSED * possible <= min(earlier, default=math.inf):
        progress.say(
            f"warning: the projections collapse: effective rank {rank:.1f} of {possible} in epoch {epoch}. "
            "Try a lower learning_rate, a temperature of 0.1 to 0.5, or schedule: cosine with warmup_epochs"
        )
    return values


def measure(h: Tensor, z: Tensor, model: nn.Module) -> dict[str, float]:
    """Describe features h (2N,D) and projections z (2N,P), rows i and i+N views of tile i, and the last gradient.

    alignment, uniformity: of z at unit length (Wang & Isola, arXiv:2005.10242, α = t = 2); lower is better.
    effective_rank, projection_rank: of h and z (RankMe, arXiv:2210.02885). z_std: mean standard deviation of a
    dimension of z at unit length; 1/√P where z fills the sphere, 0 where it is a point. positive_similarity,
    negative_similarity: mean cosine of the views of a tile, and of different tiles. gradient_norm: of the last step.
    """
    first, second = F.normalize(z.double(), dim=1).chunk(2)
    apart = ~torch.eye(len(first), dtype=torch.bool, device=z.device)
    among = torch.cat([(view @ view.T)[apart] for view in (first, second)])
    values = {
        "alignment": (first - second).square().sum(1).mean(),
        "uniformity": (4 * (among - 1)).exp().mean().log(),  # ‖a - b‖² = 2 - 2 cos
        "effective_rank": effective_rank(h),
        "projection_rank": effective_rank(z),
        "z_std": torch.cat([first, second]).std(0).mean(),
        "positive_similarity": (first * second).sum(1).mean(),
        "negative_similarity": (first @ second.T)[apart].mean(),
        "gradient_norm": torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm(),
    }
    return {name: float(value) for name, value in values.items()}


def effective_rank(x: Tensor) -> Tensor:
    """The exponential of the entropy of the singular values of x (N,D), a scalar in [1, min(N,D)]."""
    singular = torch.linalg.svdvals(x.double())
    rank: Tensor = torch.special.entr(singular / singular.sum()).sum().exp()
    return rank


def knn_scores(queries: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    """The share of each query's nearest neighbours that have a label, weighted as `evaluate.knn` does: (M,K)."""
    cosine = F.normalize(queries) @ F.normalize(features).T
    near, rows = cosine.topk(min(NEIGHBOURS, len(features)))
    return torch.einsum("mk,mkl->ml", (near / TEMPERATURE).softmax(1), targets[rows])


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """No dropout, and BatchNorm by the batch: its running statistics lag behind in the first epochs, and stay."""
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    model.eval()
    for norm in norms:
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, (mean, var) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, var
        model.train()


def _encode_views(
    model: nn.Sequential, store: tiles.TileStore, rows: Rows, run: Run, inputs: Input
) -> tuple[Tensor, Tensor]:
    """Features h (2N,D) and z (2N,P), float32, of two views of each of N tiles."""
    source = randomness.generator(run.seed, "diagnostics views")
    drawn = views.draw(source, 2 * len(rows), run.settings.views, tile_px=store.pixels.shape[1])
    parts: list[tuple[Tensor, Tensor]] = []
    first = 0
    for batch, pixels in _batches(store, rows):
        both = [drawn[i : i + len(batch)] for i in (first, first + len(rows))]
        h = inputs.encode(model[0], torch.cat([inputs.render(pixels, p) for p in both]))
        z = model[1](h).float()
        if run.settings.pretrain.objective == "mulcon":
            z = z[:, : len(store.labels)]  # the logits: all that it says of a tile as a whole
        parts.append((h.unflatten(0, (2, -1)), z.unflatten(0, (2, -1))))
        first += len(batch)
    features, projections = (torch.cat(found, 1).flatten(0, 1) for found in zip(*parts, strict=True))
    return features, projections


def _knn_map(encoder: nn.Module, run: Run, inputs: Input) -> float:
    """Macro mAP of a nearest-neighbour tagger from training to validation tiles, over labels that have positives."""
    from sklearn.metrics import average_precision_score

    store = tiles.open_store(run.store).learning(run.settings.pretrain.near_duplicates)  # without unlabelled tiles
    h, y = {}, {}
    for split in ("train", "val"):
        rows = _some(store, split, KNN_TILES, run)
        encoded = [inputs.encode(encoder, inputs.whole(pixels)) for _, pixels in _batches(store, rows)]
        h[split], y[split] = torch.cat(encoded).cpu(), torch.from_numpy(store.targets[rows]).float()
    known = y["val"].any(0)
    scores = knn_scores(h["val"], h["train"], y["train"])
    return float(average_precision_score(y["val"][:, known], scores[:, known]))


def _batches(store: tiles.TileStore, rows: Rows) -> Iterator[tuple[Rows, Tensor]]:
    return tiles.stream(store, np.array_split(rows, -(-len(rows) // BATCH)), machine.device())


def _some(store: tiles.TileStore, split: str, count: int, run: Run) -> Rows:
    """At most `count` rows of a split, drawn by the seed, in random order: a batch holds tiles of any kind."""
    rows = store.rows(split)
    chosen: Rows = rows[randomness.permutation(len(rows), run.seed, "diagnostics", split)[:count].numpy()]
    return chosen
