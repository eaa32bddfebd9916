"""Views a second on one core, against the paper's transform and lightly's: `python benchmarks/views.py`.

Both sides start from decoded images, one torch thread, taking turns; times are the process's own, so that a
busy machine does not count. The rows "with decoding" add the JPEG decoding that a loop without a tile store
pays in each epoch. Tiles: UC Merced where SATCLR_DATA has it, else smooth random pictures.
"""

import io
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import common
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T  # noqa: N812

from satclr.pretrain import views

MEAN, STD = (0.48, 0.49, 0.45), (0.22, 0.2, 0.2)
TILES, ROUNDS = 32, 5


def jpegs() -> list[bytes]:
    """256 px tiles as they lie on disk."""
    root = Path(os.environ.get("SATCLR_DATA", "../shared/data"))
    paths = sorted((root / "ucmerced" / "Images").glob("*/*.jpg"))
    if paths:
        return [path.read_bytes() for path in paths[:: len(paths) // TILES][:TILES]]
    rng = np.random.default_rng(0)
    return [
        encode(Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((256, 256)))
        for _ in range(TILES)
    ]


def encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "jpeg", quality=90)
    return file.getvalue()


def decode(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg)).convert("RGB")


def paper(crop_px: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Callable[[Image.Image], Tensor]:
    """The paper's transform as it describes it, in torchvision on PIL images."""
    jitter = T.ColorJitter(0.4, 0.4, 0.4, 0.1)
    cubic = T.InterpolationMode.BICUBIC
    one = T.Compose(
        [
            T.RandomResizedCrop(crop_px, scale=(0.08, 1.0), ratio=(1.0, 1.0), interpolation=cubic),
            T.RandomHorizontalFlip(),
            T.RandomApply([jitter], p=0.8),
            T.RandomGrayscale(p=0.2),
            T.GaussianBlur(23, (0.1, 2.0)),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )
    return lambda image: torch.stack([one(image), one(image)])


def lightly(crop_px: int) -> Callable[[Image.Image], Tensor]:
    """lightly's SimCLR transform set to the same probabilities and ranges."""
    from lightly.transforms import SimCLRTransform

    two = SimCLRTransform(
        input_size=crop_px,
        cj_prob=0.8,
        cj_strength=1.0,
        cj_bright=0.4,
        cj_contrast=0.4,
        cj_sat=0.4,
        cj_hue=0.1,
        min_scale=0.08,
        random_gray_scale=0.2,
        gaussian_blur=1.0,
        sigmas=(0.1, 2.0),
        hf_prob=0.5,
        normalize={"mean": list(MEAN), "std": list(STD)},
    )
    return lambda image: torch.stack(two(image))


def rows() -> list[dict[str, str | float]]:
    """Views a second: ours, theirs, ours over theirs, a row a rival and size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for crop_px, tile_px in ((224, 256), (64, 96)) for row in compare(crop_px, tile_px)]
    finally:
        torch.set_num_threads(threads)


def compare(crop_px: int, tile_px: int) -> list[dict[str, str | float]]:
    encoded = jpegs()
    images = [decode(jpeg).resize((tile_px, tile_px), Image.Resampling.BICUBIC) for jpeg in encoded]
    tiles = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    settings = common.run("simclr", {"views": {"crop_px": crop_px}}).settings.views  # the paper's
    generator = torch.Generator().manual_seed(0)

    def ours() -> None:
        for _ in range(4):  # a batch of 32 tiles is over too soon for the clock
            parameters = views.draw(generator, 2 * len(tiles), settings, tile_px=tile_px)
            views.render(tiles, parameters, crop_px=crop_px, mean=MEAN, std=STD)

    found: list[dict[str, str | float]] = []
    for name, transform in (("the paper's transform", paper(crop_px)), ("lightly", lightly(crop_px))):

        def theirs(transform: Callable[[Image.Image], Tensor] = transform) -> None:
            torch.stack([transform(image) for image in images])

        def theirs_decoding(transform: Callable[[Image.Image], Tensor] = transform) -> None:
            torch.stack([transform(decode(jpeg)) for jpeg in encoded])

        for suffix, rival in (("", theirs), (" with decoding", theirs_decoding)):
            mine, other = duel(ours, rival)
            ours_s, theirs_s = 4 * 2 * len(tiles) / mine, 2 * len(tiles) / other
            found.append(
                {
                    "name": f"views at {crop_px} px against {name}{suffix}",
                    "ours": round(ours_s, 1),
                    "theirs": round(theirs_s, 1),
                    "ratio": round(ours_s / theirs_s, 2),
                    "unit": "views/s a core",
                }
            )
    return found


def duel(a: Callable[[], None], b: Callable[[], None]) -> tuple[float, float]:
    """Median seconds of a and of b, taking turns after one warm-up each."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for side, run in enumerate((a, b)):
            start = time.process_time()
            run()
            if turn:
                times[side].append(time.process_time() - start)
    return float(np.median(times[0])), float(np.median(times[1]))


if __name__ == "__main__":
    print(json.dumps(rows(), indent=2))
