"""What each arm's pretraining goes on from: params.yaml → build/<profile>/lineage/<arm>.json.

    satclr lineage --profile sample

DVC depends on files, and an arm's `pretrain.from` names an arm. The file of an arm holds the pretraining settings
of the arms that it goes on from, the nearest first ([] for most), so that a change there makes it stale too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from satclr.params import Pretrain


def run(out: Path, pretrainings: Mapping[str, Pretrain]) -> None:
    """Write `out`/<arm>.json for each arm, whose settings `pretrainings` holds."""
    out.mkdir(parents=True, exist_ok=True)
    for arm in pretrainings:
        text = json.dumps(ancestors(arm, pretrainings), indent=1) + "\n"
        (out / f"{arm}.json").write_text(text, encoding="utf-8")


def ancestors(arm: str, pretrainings: Mapping[str, Pretrain]) -> list[dict[str, object]]:
    """The settings that decide the encoder that `arm` goes on from, nearest first.

    Without the number of processes, which decides nothing. `params` has checked that no arm leads back to itself.
    """
    found: list[dict[str, object]] = []
    start = pretrainings[arm].from_
    while start is not None:
        how = pretrainings[start]
        found.append(
            {"arm": start, "pretrain": how.model_dump(mode="json", by_alias=True, exclude={"processes"})}
        )
        start = how.from_
    return found
