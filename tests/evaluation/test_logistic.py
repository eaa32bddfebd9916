import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from satclr.evaluation import logistic, metrics

Floats = npt.NDArray[np.float32]
Targets = npt.NDArray[np.uint8]
EPSILON = float(np.finfo(np.float32).eps)
rng = np.random.default_rng()


def data(tiles: int = 90, width: int = 12, labels: int = 4) -> tuple[Floats, Targets]:
    """Features whose axes differ a hundredfold in spread, and labels of different frequency."""
    axes = np.linalg.qr(rng.normal(size=(width, width)))[0]
    x = rng.normal(size=(tiles, width)) * np.geomspace(3, 0.03, width) @ axes
    truth = rng.normal(size=(width, labels))
    y = x @ truth + rng.normal(size=(tiles, labels)) > np.linspace(0, 2, labels)
    y[:2] = [[0], [1]]  # both kinds of every label
    return x.astype(np.float32), y.astype(np.uint8)


def loss(x: Floats, y: Targets, weight: npt.ArrayLike, bias: float, strength: float) -> float:
    """Mean cross-entropy of one label + λ/2 |w|², in float64."""
    w = np.asarray(weight, float)
    z = x.astype(float) @ w + bias
    return float(np.mean(np.logaddexp(0, z) - y * z) + strength / 2 * w @ w)


@pytest.mark.parametrize(("tiles", "width"), [(90, 12), (20, 40)])
def test_every_strength_is_scikit_learns_minimum(tiles: int, width: int) -> None:
    """Also with more features than tiles, and although each strength starts where the one before ended."""
    x, y = data(tiles, width)
    for strength, weight, bias in logistic.fit(x, y, strengths=(1.0, 0.1, 0.01)):
        for k in range(y.shape[1]):
            theirs = LogisticRegression(C=1 / (strength * tiles), tol=1e-10, max_iter=10_000)
            theirs.fit(x.astype(float), y[:, k])
            least = loss(x, y[:, k], theirs.coef_[0], theirs.intercept_[0], strength)
            # L-BFGS stops where float32 has no more to give; the loss is flat there, so weights may differ by more.
            assert loss(x, y[:, k], weight[k], bias[k], strength) == pytest.approx(least, rel=16 * EPSILON)


def test_the_best_on_validation_is_chosen_and_scores_as_it_validated() -> None:
    x, y = data(tiles=200)
    train, val = (x[:120], y[:120]), (x[120:], y[120:])
    chosen = logistic.best(train, val)
    fits = logistic.fit(*train, strengths=logistic.STRENGTHS)
    each = [metrics.average_precision(val[0] @ w.T + b, val[1]).mean() for _, w, b in fits]
    tried = 1
    while tried < len(each) and tried - 1 - int(np.argmax(each[:tried])) < logistic.PATIENCE:
        tried += 1
    assert chosen.val_mAP == pytest.approx(max(each[:tried]), abs=1e-6)
    assert metrics.mean_average_precision(chosen.scores(val[0]), val[1]) == pytest.approx(chosen.val_mAP, abs=1e-6)


def test_one_tile_and_labels_of_one_kind_train() -> None:
    x, y = data(tiles=20)
    y[:, 1], y[:, 2] = 0, 1
    for count in (1, 19):
        found = logistic.best((1e4 * x[:count], y[:count]), (1e4 * x, y))
        assert np.isfinite(found.scores(x)).all()
        assert np.isfinite(found.val_mAP)
    constant = logistic.best((0 * x, y), (0 * x, y))
    np.testing.assert_allclose(constant.scores(x).std(0), 0, atol=1e-5)


def test_standardize_is_scikit_learns_fitted_on_train_only() -> None:
    x = rng.normal(3, rng.uniform(0.1, 9, size=7), size=(60, 7))
    x[:, 2] = 5.0
    scaler = StandardScaler().fit(x[:40])
    train, rest = logistic.standardize(x[:40], x[40:])
    np.testing.assert_allclose(train, scaler.transform(x[:40]), atol=1e-9)
    np.testing.assert_allclose(rest, scaler.transform(x[40:]), atol=1e-9)
