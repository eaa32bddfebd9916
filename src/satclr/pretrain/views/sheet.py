"""A contact sheet: what each augmentation does to a tile, like Figure 3 of the paper.

In: image files of tiles. Out: one PNG, a sheet per tile below the other.

    satclr views data/sample/Images/*/*_00000.jpg --out views.png
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from satclr import files, randomness
from satclr.data import pixels
from satclr.data.tiles import TileError
from satclr.params import Settings, Views
from satclr.pretrain import views

ROWS = ("crop", "flip", "jitter", "grayscale", "blur", "all")
COLUMNS = 8
_BLACK, _WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
_GAP_PX, _LABEL_PX = 4, 88


def write(tiles: Sequence[Path], out: Path, settings: Settings, *, seed: int) -> None:
    """Draw the sheets of several tiles one below the other. Raises `TileError` for a file that is not a tile."""
    sheets = []
    for i, path in enumerate(tiles):
        try:
            tile = torch.from_numpy(pixels.decode(path, settings.data.tile_px, scale=settings.data.scale).copy())
        except TileError as error:
            raise TileError(f"{path}: {error}") from None
        sheet = contact_sheet(tile, settings.views, generator=randomness.generator(seed, "sheet", i))
        sheets.append(np.asarray(sheet))
    with files.replacing(out) as part:
        Image.fromarray(np.concatenate(sheets)).save(part, "PNG")


def contact_sheet(tile: Tensor, settings: Views, *, generator: torch.Generator) -> Image.Image:
    """Draw views of a tile: a labelled row per augmentation, then all together; each row begins with the tile.

    tile uint8 (H,H,3). An augmentation's own row applies it to every view; the last row keeps probabilities.
    """
    side_px = settings.crop_px
    step_px = side_px + _GAP_PX
    sheet = Image.new("RGB", (_LABEL_PX + (COLUMNS + 1) * step_px, _GAP_PX + len(ROWS) * step_px), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    original = views.evaluation_view(tile[None], crop_px=side_px, mean=_BLACK, std=_WHITE)
    for row, name in enumerate(ROWS):
        top = _GAP_PX + row * step_px
        pen.text((_GAP_PX, top + side_px // 2), name, fill="black", font=font, anchor="lm")
        parameters = _only(name, views.draw(generator, COLUMNS, settings, tile_px=len(tile)), tile_px=len(tile))
        drawn = views.render(tile[None], parameters, crop_px=side_px, mean=_BLACK, std=_WHITE)
        for column, view in enumerate(torch.cat([original, drawn])):
            pixels = view.permute(1, 2, 0).mul(255).round().clamp(0, 255).byte().cpu().numpy()
            sheet.paste(Image.fromarray(pixels), (_LABEL_PX + column * step_px, top))
    return sheet


def _only(name: str, parameters: views.Parameters, *, tile_px: int) -> views.Parameters:
    """The same draws with one augmentation on in every row and the others off; "all" leaves them as drawn."""
    if name == "all":
        return parameters
    only: dict[str, Any] = {row: torch.full_like(parameters.flip, name == row) for row in ROWS[1:-1]}
    if name != "crop":
        only["boxes"] = torch.tensor([0, 0, tile_px, tile_px]).expand_as(parameters.boxes)
    return replace(parameters, **only)
