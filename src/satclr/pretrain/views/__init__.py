"""Views: random crops of tiles with flips, colour jitter, grayscale and blur, faster than one image at a time.

In: uint8 tiles (N,H,W,3) and a generator. Out: normalised float views (count,3,S,S) on the tiles' device.

    parameters = views.draw(torch.Generator().manual_seed(0), 2 * len(tiles), settings, tile_px=256)
    x = views.render(tiles, parameters, crop_px=224, mean=mean, std=std)  # rows i and i+N: views of tile i

torchvision's transforms walk one image at a time through some twenty small operations; on a CPU that costs more than
the encoder. Here deciding (`augmentations.draw`, with torchvision's distributions) and computing are two steps, and a
whole batch goes through a few large operations.

**Crop, resize and flip.** Resizing is linear: a row of the view is a weighted sum of a few rows of the crop. The
weights of all rows form a matrix that is zero away from its diagonal (a banded matrix), so a crop resized along both
axes is `vertical @ pixels @ horizontal.T`; a flip reverses the order of the rows of `horizontal`. A batch is two
`torch.bmm`. On a CPU only the blocks along the diagonal are multiplied (`Bands`), on a GPU the whole matrix.

**Colour.** Brightness, contrast, saturation and grayscale are one formula, a blend of the pixel with black, the view's
mean gray or the pixel's own gray; hue is a rotation. Every view has its own order of these: up to three blends, the
hue, up to three blends, and grayscale. All views take the same eight steps, in which a view's unused blends are the
identity. Sorted by where their hue comes, views skip most of what they do not need.

**Blur.** Two more banded matrices, with the border reflected; without blur, sigma is 0 and the matrix the identity.

**All together: `rendering`.** On a CPU, views are cut into chunks that fit in a core's cache, alike in crop size and
flip, and shared among threads. On a GPU all views take one dense path that never waits for the device.
"""

from satclr.pretrain.views.augmentations import Parameters, draw
from satclr.pretrain.views.rendering import evaluation_view, render

__all__ = ["Parameters", "draw", "evaluation_view", "render"]
