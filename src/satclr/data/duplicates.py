"""Near-duplicate tiles: found by perceptual hash, confirmed by comparing thumbnails.

In: the tile store's pixels. Out: the group of each tile, which `split.by: group` keeps in one split. Two tiles are
near-duplicates when their hashes are close and their thumbnails agree; such pairs connect the tiles of a group. Rotated
and mirrored copies have other hashes and are not found.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt

from satclr import progress

Tiles = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.intp]

HASH_BITS = 64
# On UC Merced, re-encoding, resizing, blur, noise, 20% brightness and shifts of 2 px stay within 8 bits for 99% of
# tiles. Within 8 bits are three pairs: one image twice, two overlapping shots of a beach, and two different airplanes,
# which the thumbnails tell apart (correlations 1.00, 0.99, 0.40). From 10 bits on, runways merely look alike.
DISTANCE_BITS = 8
CORRELATION_MIN = 0.8
THUMBNAIL_PX = 32
CHUNK = 1024
PAIRS_AT_ONCE = 1 << 20


def groups(pixels: Tiles, *, distance_bits: int = DISTANCE_BITS, correlation_min: float = CORRELATION_MIN) -> Rows:
    """Group near-duplicates: (N,H,W,3) uint8, possibly a memory map → the first row of each row's group, (N,).

    distance_bits: the Hamming distance up to which two tiles' hashes make them candidates, 0 to 63. correlation_min:
    the correlation of their gray thumbnails that confirms it, -1 to 1.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    digests, found = hashes(pixels)
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    unique = np.sort(first)
    pairs = [np.stack((np.arange(len(pixels)), first[inverse]))]  # equal pixels need no second look
    for left, right in candidates(found[unique], distance_bits):
        rows, position = np.unique(np.concatenate((unique[left], unique[right])), return_inverse=True)
        thumbnails = _thumbnails(pixels, rows)
        for start in range(0, len(left), CHUNK * 16):
            a = position[: len(left)][start : start + CHUNK * 16]
            b = position[len(left) :][start : start + CHUNK * 16]
            same = (thumbnails[a] * thumbnails[b]).sum(1) >= correlation_min
            pairs.append(np.stack((rows[a[same]], rows[b[same]])))
    edges = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(edges.shape[1], bool), tuple(edges)), shape=(len(pixels), len(pixels)))
    _, first, inverse = np.unique(
        connected_components(graph, directed=False)[1], return_index=True, return_inverse=True
    )
    return np.asarray(first[inverse], dtype=np.intp)


def hashes(pixels: Tiles) -> tuple[Hashes, Hashes]:
    """64-bit digest of the pixels (N,) and 64-bit perceptual hash (N,) of each tile, in parallel.

    The hash is the signs of the lowest 8×8 DCT coefficients of the gray tile about their median (imagehash.phash).
    """
    parts = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress.bar("hash tiles", len(pixels)) as advance:
        for part in pool.map(partial(_hash_chunk, pixels), range(0, len(pixels), CHUNK)):
            parts.append(part)
            advance(len(part[0]))
    exact, perceptual = zip(*parts, strict=True)
    return np.concatenate(exact), np.concatenate(perceptual)


def candidates(found: Hashes, distance_bits: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield the pairs (i < j) of hashes at most `distance_bits` apart, each pair once, in blocks.

    Two such hashes agree in at least one of `distance_bits + 1` bands of bits (pigeonhole), so only hashes that share a
    band are compared: multi-index hashing, Norouzi et al. 2012, arXiv:1307.2982.
    """
    bands = distance_bits + 1
    masks = [np.uint64(sum(1 << bit for bit in range(band, HASH_BITS, bands))) for band in range(bands)]
    for band, mask in enumerate(masks):
        for left, right in _close(found, mask, distance_bits):
            new = np.ones(len(left), dtype=bool)
            for earlier in masks[:band]:  # where an earlier band agrees, the pair has been yielded
                new &= (found[left] ^ found[right]) & earlier != 0
            if new.any():
                yield left[new], right[new]


def _hash_chunk(pixels: Tiles, start: int) -> tuple[Hashes, Hashes]:
    import imagehash
    from PIL import Image

    tiles = pixels[start : start + CHUNK]
    exact = b"".join(hashlib.blake2b(tile.tobytes(), digest_size=8).digest() for tile in tiles)
    bits = np.array([imagehash.phash(Image.fromarray(tile)).hash.ravel() for tile in tiles])
    return np.frombuffer(exact, np.uint64), np.packbits(bits, axis=1).view(np.uint64).ravel()


def _close(found: Hashes, mask: np.uint64, distance_bits: int) -> Iterator[tuple[Rows, Rows]]:
    keys = found & mask
    order = np.argsort(keys, kind="stable")
    buckets = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
    for bucket in (bucket for bucket in buckets if len(bucket) > 1):
        step = max(1, PAIRS_AT_ONCE // len(bucket))
        values = found[bucket]
        for start in range(0, len(bucket) - 1, step):
            rest = values[start + 1 :]  # a row is compared with those after it
            near = np.bitwise_count(values[start : start + step, None] ^ rest) <= distance_bits
            i, j = np.nonzero(np.triu(near))
            if len(i):
                yield bucket[start + i], bucket[start + 1 + j]


def _thumbnails(pixels: Tiles, rows: Rows) -> npt.NDArray[np.float32]:
    """Gray thumbnails about their mean, of norm 1, so that their dot product is a correlation."""
    from PIL import Image

    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    tiles = (Image.fromarray(pixels[row]).convert("L").resize(size, Image.Resampling.BOX) for row in rows)
    result = np.array([np.asarray(tile, dtype=np.float32).ravel() for tile in tiles])
    result -= result.mean(1, keepdims=True)
    result /= np.maximum(np.linalg.norm(result, axis=1, keepdims=True), 1e-6)
    return result
