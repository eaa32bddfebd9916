"""Nearest neighbours as a tagger: features (N,D) and the training tiles' targets in, scores out.

It learns nothing, so it says what the features are worth before any probe.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

BLOCK = 1024  # queries at a time


@torch.inference_mode()
def scores(queries: Tensor, features: Tensor, targets: Tensor, *, k: int, temperature: float) -> Tensor:
    """The share of its k nearest neighbours that have a label, each weighted exp(cosine / temperature): (M,K).

    queries (M,D); features (N,D) with targets (N,K) of 0 and 1. With fewer than k training tiles all of them
    vote. Scores lie in [0, 1]. Raises ValueError on k < 1 or a temperature that is not positive.
    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4; DINO, arXiv:2104.14294, sets k 20 and 0.07.
    """
    if k < 1 or not temperature > 0:
        raise ValueError(f"k is {k} and temperature {temperature}; both must be positive")
    known = F.normalize(features.float(), dim=1)
    labels = targets.float()
    parts = []
    for block in F.normalize(queries.float(), dim=1).split(BLOCK):
        similarity, nearest = (block @ known.T).topk(min(k, len(known)), dim=1)
        weight = torch.softmax(similarity / temperature, dim=1)
        parts.append(torch.einsum("mk,mkl->ml", weight, labels[nearest]))
    return torch.cat(parts)
