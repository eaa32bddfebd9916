"""What encoders the arms have: parameters, feature width and input statistics, for `satclr arms --encoders`."""

from collections.abc import Iterable

from satclr.data import tiles
from satclr.pretrain import architectures
from satclr.project import Run

COLUMNS = ("encoder, weights", "parameters", "width", "crop_px", "normalization")


def table(runs: Iterable[Run]) -> list[tuple[str, ...]]:
    """Each distinct encoder of the runs, by `COLUMNS`, or the reason why it cannot be built. Weights take no memory."""
    rows: dict[tuple[str, str, int, str], tuple[str, ...]] = {}
    for run in runs:
        config, crop_px = run.settings.pretrain, run.settings.views.crop_px
        key = (config.arch, config.weights, crop_px, config.normalization)
        if key not in rows:
            name = f"{config.arch}\n{config.weights}"
            try:
                model = architectures.skeleton(config.arch, crop_px)
                width = architectures.feature_dim(model, config.arch, crop_px)
                count = sum(p.numel() for p in model.parameters())
                statistics = f"{config.normalization}\n{_statistics(run)}"
                rows[key] = (name, f"{count:,}", f"{width:,}", str(crop_px), statistics)
            except architectures.EncoderError as error:
                rows[key] = (name, "", "", str(crop_px), str(error))
    return list(rows.values())


def _statistics(run: Run) -> str:
    try:
        found = architectures.own_statistics(run)
        mean, std = found or tiles.open_store(run.store).statistics(run.settings.pretrain.normalization)
    except tiles.TileError:
        return "run `satclr prepare`"
    return "mean {:.3f} {:.3f} {:.3f}\nstd {:.3f} {:.3f} {:.3f}".format(*mean, *std)
