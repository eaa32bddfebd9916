"""The test: features and probe → scores, metrics with intervals, AP of each label.

Out, in results/<profile>/<arm>-s<seed>/: details.json, per_class_ap.csv, scores.npz, and metrics.json, the numbers that
`dvc metrics show` and `dvc exp show` print.

    satclr evaluate --profile sample --arm simclr --seed 0

The headline, test_mAP, is the paper's probe. Beside it on the same features: a probe trained to convergence, nearest
neighbours, and probes on few labels. Thresholds, temperature and regularisation are chosen on validation tiles.
"""

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from satclr import files, randomness
from satclr.data import tiles
from satclr.evaluation import logistic, metrics, references
from satclr.evaluation.linear import LinearProbe
from satclr.evaluation.metrics import Bools, Floats, decisions
from satclr.evaluation.metrics import mean_average_precision as mean_ap
from satclr.project import Run

BOOTSTRAP_RESAMPLES = 1000
LABEL_FRACTIONS = (0.01, 0.1)  # of the training tiles, for probes on few labels
NEIGHBOURS, TEMPERATURE = 20, 0.07  # of k-NN, as DINO sets them, arXiv:2104.14294
BLOCK = 256  # k-NN queries at a time
SHOWN = (
    "test_mAP", "test_mAP_lo", "test_mAP_hi", "val_mAP", "best_epoch", "test_micro_mAP", "test_within_category_mAP",
    "test_converged_mAP", "test_knn_mAP",
)  # fmt: skip
PER_CLASS = ("label", "positives", "prevalence", "AP", "AP_lo", "AP_hi", "threshold", "precision", "recall", "F1")

Scores = npt.NDArray[np.floating[Any]]  # (N,K)
Targets = npt.NDArray[np.uint8]  # (N,K)


def run(run: Run, _log: object) -> None:
    """Score validation and test tiles, write the results and print the test mAP.

    Raises `tiles.TileError` or `files.FileError` when features or probe are not those of the run's tile store.
    """
    undefined = run.settings.evaluate.undefined_ap
    whole = tiles.open_store(run.store)
    store = whole.learning(run.settings.probe.near_duplicates)
    features = tiles.load_features(run.features, store)
    probe = LinearProbe.load(run.probe, labels=store.labels)
    val, test = store.rows("val"), store.rows("test")
    logits, targets = probe.logits(features[test]), store.targets[test]
    scores = decisions.sigmoid(logits).astype(np.float32)
    categories = [store.categories[row] for row in test]
    yes = scores >= probe.thresholds
    headline, samples = _mean_ap("test_mAP", scores, targets, undefined)
    others, other_scores = _other_taggers(run, store, features)
    result = {
        "profile": run.profile,
        "arm": run.arm,
        "seed": run.seed,
        **headline,
        "test_mAP_bias": metrics.jackknife_bias(scores, targets, undefined=undefined),
        "test_within_category_mAP": mean_ap(scores, targets, categories=categories),
        "test_micro_mAP": mean_ap(scores.reshape(-1, 1), targets.reshape(-1, 1)),
        "val_mAP": probe.val_mAP,
        "best_epoch": probe.best_epoch,
        "train_tiles": len(store.rows("train")),
        "test_tiles": len(test),
        "labels": len(store.labels),
        "labels_without_positives": [store.labels[k] for k in np.flatnonzero(~targets.any(0))],
        **_decisions(logits, scores, targets, yes, probe.temperature),
        **others,
        "references": {  # the same for every arm
            name: {"mAP": mean_ap(s, targets), "within_category_mAP": mean_ap(s, targets, categories=categories)}
            for name, s in references.without_images(whole).items()
        },
    }
    files.write_csv(run.results / "per_class_ap.csv", PER_CLASS, _per_class(scores, targets, samples, probe, yes))
    arrays: dict[str, Any] = {f"test_{name}_scores": s.astype(np.float32) for name, s in other_scores.items()}
    with files.replacing(run.results / "scores.npz") as part, part.open("wb") as file:
        np.savez(
            file,
            labels=np.array(store.labels),
            val_tiles=np.array([store.names[row] for row in val]),
            val_scores=decisions.sigmoid(probe.logits(features[val])).astype(np.float32),
            val_targets=store.targets[val],
            test_tiles=np.array([store.names[row] for row in test]),
            test_scores=scores,
            test_targets=targets,
            thresholds=probe.thresholds,
            **arrays,
        )
    files.write_json(run.results / "details.json", _without_nan(result))
    low, high = headline["test_mAP_ci95"]
    flat = result | {"test_mAP_lo": low, "test_mAP_hi": high}
    shown = {name: flat[name] for name in (*SHOWN, *map(_at, LABEL_FRACTIONS))}
    files.write_json(run.results / "metrics.json", _without_nan(shown))
    print(f"{run.key}: test mAP {headline['test_mAP']:.4f} [{low:.4f}, {high:.4f}]")


def _mean_ap(name: str, scores: Scores, targets: Targets, undefined: str) -> tuple[dict[str, Any], Floats]:
    """Macro mAP, called `name`, and its interval; and AP of each label on each resample (R,K)."""
    ap = metrics.average_precision(scores, targets)
    samples = metrics.paired_bootstrap_average_precision(
        [scores], targets, resamples=BOOTSTRAP_RESAMPLES, seed=randomness.derive(0, "bootstrap") % 2**32
    )[:, 0]
    # `zero` is for the means only: the label's own AP stays undefined
    counted = np.where(np.isnan(ap), 0, samples) if undefined == "zero" else samples
    mean = mean_ap(scores, targets, undefined=undefined)
    interval = metrics.standard_interval(mean, metrics.nan_mean(counted), tiles=len(targets))
    return {name: mean, f"{name}_ci95": list(interval)}, samples


def _decisions(logits: Floats, scores: Scores, targets: Targets, yes: Bools, temperature: float) -> dict[str, Any]:
    """Decisions at the tuned thresholds, calibration, and rankings of each tile's labels."""
    macro = decisions.precision_recall_f1(yes, targets)
    micro = decisions.precision_recall_f1(yes.reshape(-1, 1), targets.reshape(-1, 1))
    result: dict[str, Any] = {}
    for i, name in ((2, "F1"), (0, "precision"), (1, "recall")):
        result |= {f"test_macro_{name}": float(metrics.nan_mean(macro[i])), f"test_micro_{name}": float(micro[i][0])}
    return result | {
        "test_ECE": decisions.expected_calibration_error(decisions.sigmoid(logits), targets),
        "test_ECE_scaled": decisions.expected_calibration_error(decisions.sigmoid(logits / temperature), targets),
        "temperature": temperature,
        "test_LRAP": decisions.label_ranking_average_precision(scores, targets),
        "test_one_error": decisions.one_error(scores, targets),
        "test_coverage": decisions.coverage_error(scores, targets),
    }


def _other_taggers(
    run: Run, store: tiles.TileStore, features: npt.NDArray[np.float32]
) -> tuple[dict[str, Any], dict[str, Scores]]:
    """k-NN, converged probe and few labels on the same features: numbers, and test scores of the first two."""
    undefined = run.settings.evaluate.undefined_ap
    x = {split: np.asarray(features[store.rows(split)]) for split in tiles.SPLITS}
    y = {split: store.targets[store.rows(split)] for split in tiles.SPLITS}
    near = knn(x["test"], x["train"], y["train"], k=NEIGHBOURS, temperature=TEMPERATURE)
    x = dict(zip(x, logistic.standardize(*x.values()), strict=True))  # train comes first
    chosen = logistic.best((x["train"], y["train"]), (x["val"], y["val"]))
    scores: dict[str, Scores] = {"knn": near, "converged": chosen.scores(x["test"])}
    result: dict[str, Any] = {}
    for name, found in scores.items():
        result |= _mean_ap(f"test_{name}_mAP", found, y["test"], undefined)[0]
    result |= {"val_converged_mAP": chosen.val_mAP, "converged_strength": chosen.strength}
    result["label_efficiency"] = rows = []
    count = len(x["train"])
    for fraction in LABEL_FRACTIONS:  # of the training tiles, drawn by the seed: the same for all arms
        size, values = max(1, round(fraction * count)), []
        for subset in range(run.settings.evaluate.labels.subsets):
            drawn = randomness.rng(run.seed, "few labels", subset).permutation(count)[:size]
            few = logistic.best((x["train"][drawn], y["train"][drawn]), (x["val"], y["val"]))
            values.append(mean_ap(few.scores(x["test"]), y["test"], undefined=undefined))
        mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
        rows.append({"fraction": fraction, "tiles": size, "test_mAP": mean, "sd": sd, "subsets": values})
        result |= {_at(fraction): mean, f"{_at(fraction)}_sd": sd}
    whole = result["test_converged_mAP"]
    rows.append({"fraction": 1.0, "tiles": count, "test_mAP": whole, "sd": None, "subsets": [whole]})
    own = _own_heads(run, store) if run.settings.pretrain.objective == "mulcon" else {}
    return result | own, scores


def knn(queries: Scores, features: Scores, targets: Targets, *, k: int, temperature: float) -> npt.NDArray[np.float32]:
    """The share of its k nearest neighbours that have a label, each weighted exp(cosine / temperature): (M,K).

    queries (M,D); features (N,D) with targets (N,K) of 0 and 1. With fewer than k training tiles all of them vote; of
    equally near tiles the first. Source: Wu et al. 2018, arXiv:1805.01978, section 3.4.
    """
    queries, known = (x.astype(np.float32) for x in (queries, features))
    queries, known = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, known))
    labels, k = targets.astype(np.float32), min(k, len(features))
    result = np.empty((len(queries), labels.shape[1]), np.float32)
    for start in range(0, len(queries), BLOCK):
        for i, row in enumerate(queries[start : start + BLOCK] @ known.T, start):
            near = np.flatnonzero(row >= np.partition(row, -k)[-k])  # the k nearest, and ties with the last of them
            near = near[np.argsort(-row[near], kind="stable")[:k]]
            weight = np.exp((row[near] - row[near[0]]) / temperature)
            result[i] = weight @ labels[near] / weight.sum()
    return result


def _own_heads(run: Run, store: tiles.TileStore) -> dict[str, Any]:
    """What MulCon's own heads, trained with the encoder, reach; nothing where another epoch's encoder is tested."""
    logits = files.load_tensors(run.encoder, "heads.")[0]
    if not logits:
        return {}
    undefined = run.settings.evaluate.undefined_ap
    val, test = (logits[f"heads.{split}_logits"] for split in ("val", "test"))
    headline, _ = _mean_ap("test_own_heads_mAP", test, store.targets[store.rows("test")], undefined)
    return headline | {"val_own_heads_mAP": mean_ap(val, store.targets[store.rows("val")], undefined=undefined)}


def _at(fraction: float) -> str:
    return f"test_mAP_at_{100 * fraction:g}_percent"


def _per_class(scores: Scores, targets: Targets, samples: Floats, probe: LinearProbe, yes: Bools) -> list[list[Any]]:
    """The rows of per_class_ap.csv; what is undefined without a positive in the test split is empty."""
    ap, count = metrics.average_precision(scores, targets), targets.sum(0)
    ends = [metrics.standard_interval(a, column, tiles=len(targets)) for a, column in zip(ap, samples.T, strict=True)]
    numbers = [ap, *np.transpose(ends), probe.thresholds, *decisions.precision_recall_f1(yes, targets)]
    rows = zip(probe.labels, count.tolist(), np.transpose([count / len(targets), *numbers]).tolist(), strict=True)
    return [[label, n, *("" if np.isnan(value) else value for value in row)] for label, n, row in rows]


def _without_nan(tree: Any) -> Any:
    """`tree` with null for numbers that are not finite: JSON has no nan."""
    return json.loads(json.dumps(tree), parse_constant=lambda _: None)
