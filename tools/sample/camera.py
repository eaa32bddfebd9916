"""The camera in the air: relief, light, haze, optics, sensor noise; what an encoder has to see through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from tools.sample.things import ROUGH

if TYPE_CHECKING:
    from tools.sample.canvas import Canvas


def photograph(c: Canvas) -> Image.Image:
    """The tile as a camera in the air sees it: relief, light, haze, optics, sensor noise."""
    fine = c.grain("fine")
    step = (round(-2 * c.sun[1]), round(-2 * c.sun[0]))
    relief = np.roll(fine, step, (0, 1)) - fine + np.float32(0.6) * fine
    rough = ROUGH[np.asarray(c.things)] * relief
    picture = np.asarray(c.image, np.float32) * (1 + rough)[..., None]
    small = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).reduce(2)
    small = small.filter(ImageFilter.GaussianBlur(c.uniform(0.0, 0.75)))
    light = np.asarray(small, np.float32) / 255

    grey = light.mean(axis=2, keepdims=True)
    light = grey + c.uniform(0.55, 1.0) * (light - grey)
    light = 0.42 + c.uniform(0.85, 1.25) * (light - 0.42)
    warm = 0.11 * c.warmth + c.uniform(-0.06, 0.06)
    tone = np.array([1 + warm, 1 + c.uniform(-0.03, 0.03), 1 - warm], np.float32)
    light = light * tone * c.uniform(0.66, 1.2)
    veil = c.uniform(0.0, 0.18) if c.chance(0.72) else c.uniform(0.18, 0.36)
    patches = np.asarray(Image.fromarray(c.grain("coarse")).reduce(2))[..., None]
    veil_map = np.clip(veil * (1 + 0.14 * patches), 0, 0.7)
    haze = np.array([0.66, 0.70, 0.75], np.float32) * c.uniform(0.8, 1.1)
    light = light * (1 - veil_map) + haze * veil_map
    sigma = c.uniform(0.004, 0.022)
    light = light + sigma * c.rng.standard_normal(light.shape, dtype=np.float32)
    return Image.fromarray((np.clip(light, 0, 1) * 255).round().astype(np.uint8))
