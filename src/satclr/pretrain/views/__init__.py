"""Views: random crops of tiles with flips, colour jitter, grayscale and blur, drawn and rendered apart.

uint8 tiles (N,H,W,3) and a generator enter; normalised float views (count,3,S,S) leave, on the tiles' device:

    parameters = views.draw(torch.Generator().manual_seed(0), 2 * len(tiles), settings, tile_px=256)
    x = views.render(tiles, parameters, crop_px=224, mean=mean, std=std)  # rows i, i+N: views of tile i

Crop and blur are banded matrices, two a view. Colour is a chain of blends around one hue rotation, so that
every row keeps its own random order while the whole batch runs through the same few tensor operations.
"""

from satclr.pretrain.views.parameters import Parameters, Settings, draw
from satclr.pretrain.views.rendering import evaluation_view, render
from satclr.pretrain.views.sheet import contact_sheet

__all__ = ["Parameters", "Settings", "contact_sheet", "draw", "evaluation_view", "render"]
