"""Near-duplicate tiles: found by perceptual hash, confirmed by comparing thumbnails.

In: the tile store's pixels. Out: the group of each tile, which `split.by: group` keeps in one split. Two tiles are
near-duplicates when their hashes are close and their thumbnails agree; such pairs connect the tiles of a group. Rotated
and mirrored copies have other hashes and are not found.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import numpy.typing as npt
from PIL import Image

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
HASHES_AT_ONCE = 1 << 12  # they stay in a cache


def pairs(pixels: Tiles) -> Rows:
    """The pairs of near-duplicates, (2,P), at least one for each row of (N,H,W,3) uint8, possibly a memory map."""
    digests, found = hashes(pixels)
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    unique = np.sort(first)
    confirmed = [np.stack((np.arange(len(pixels)), first[inverse]))]  # equal pixels need no second look
    for left, right in candidates(found[unique], DISTANCE_BITS):
        rows, position = np.unique(np.concatenate((unique[left], unique[right])), return_inverse=True)
        gray = _gray((pixels[row] for row in rows), Image.Resampling.BOX)
        thumbnails = gray.reshape(len(rows), -1).astype(np.float32)
        thumbnails -= thumbnails.mean(1, keepdims=True)  # now a dot product is a correlation
        thumbnails /= np.maximum(np.linalg.norm(thumbnails, axis=1, keepdims=True), 1e-6)
        for start in range(0, len(left), CHUNK * 16):
            a, b = position.reshape(2, -1)[:, start : start + CHUNK * 16]
            same = (thumbnails[a] * thumbnails[b]).sum(1) >= CORRELATION_MIN
            confirmed.append(np.stack((rows[a[same]], rows[b[same]])))
    return np.concatenate(confirmed, axis=1)


def connected(edges: Rows, count: int) -> Rows:
    """The first row of each row's group, (count,), from pairs (2,P); pairs with a row from `count` on do not count."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = edges[:, (edges < count).all(0)]
    graph = coo_array((np.ones(edges.shape[1], bool), tuple(edges)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.intp)


def follow(edges: Rows, group: Rows, count: int, tested: Rows) -> Rows:
    """The groups of all `count` rows, from those of the labelled ones, which come first and keep theirs.

    group: (n,) of the labelled rows; tested: the validation and test rows. Another row joins the group of a tested row
    that pairs connect it to, however indirectly, or else of the first row.
    """
    first = connected(edges, count)
    own = np.concatenate((group, np.arange(len(group), count)))[first]
    of_tested = np.full(count, -1)
    of_tested[first[tested[::-1]]] = group[tested[::-1]]
    joined = np.where(of_tested[first] < 0, own, of_tested[first])
    return np.concatenate((group, joined[len(group) :]))


def hashes(pixels: Tiles) -> tuple[Hashes, Hashes]:
    """64-bit digest of the pixels (N,) and 64-bit perceptual hash (N,) of each tile, in parallel.

    The hash is the signs of the lowest 8×8 DCT coefficients of the gray tile about their median (imagehash.phash).
    """
    from scipy.fft import dct

    def chunk(start: int) -> tuple[Hashes, Hashes]:
        tiles = pixels[start : start + CHUNK]
        exact = b"".join(hashlib.blake2b(tile.tobytes(), digest_size=8).digest() for tile in tiles)
        gray = _gray(tiles, Image.Resampling.LANCZOS)
        low = dct(dct(gray, axis=1), axis=2)[:, :8, :8].reshape(len(gray), HASH_BITS)
        bits = low > np.median(low, axis=1, keepdims=True)
        return np.frombuffer(exact, np.uint64), np.packbits(bits, axis=1).view(np.uint64).ravel()

    parts = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress.bar("hash tiles", len(pixels)) as advance:
        for part in pool.map(chunk, range(0, len(pixels), CHUNK)):
            parts.append(part)
            advance(len(part[0]))
    exact, perceptual = zip(*parts, strict=True)
    return np.concatenate(exact), np.concatenate(perceptual)


def candidates(found: Hashes, distance_bits: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield the pairs (i < j) of hashes at most `distance_bits` apart, each pair once, in blocks.

    Of `distance_bits + 2` bands of bits, two such hashes agree in at least two (pigeonhole), so only hashes that share
    two bands are compared: multi-index hashing, Norouzi et al. 2012, arXiv:1307.2982. One band would do with fewer
    passes, but its buckets are so large that the time grows with the square of N.
    """
    bands = distance_bits + 2
    bits = [sum(1 << bit for bit in range(band, HASH_BITS, bands)) for band in range(bands)]
    masks = [np.uint64(a | b) for a, b in combinations(bits, 2)]
    for number, mask in enumerate(masks):
        for left, right in _close(found, mask, distance_bits):
            new = np.ones(len(left), dtype=bool)
            for earlier in masks[:number]:  # where an earlier mask agrees, the pair has been yielded
                new &= (found[left] ^ found[right]) & earlier != 0
            if new.any():
                yield left[new], right[new]


def _close(found: Hashes, mask: np.uint64, distance_bits: int) -> Iterator[tuple[Rows, Rows]]:
    """The pairs that agree in `mask`: sorted by it, a hash is compared with the next, the next but one, and so on."""
    order = np.argsort(found & mask, kind="stable")
    values = found[order]
    keys = values & mask
    left = np.searchsorted(keys, keys, side="right") - np.arange(len(keys))  # of each bucket, the hash included
    for start in range(0, len(keys), HASHES_AT_ONCE):
        block = values[start : start + HASHES_AT_ONCE]
        near: list[Rows] = []
        for offset in range(1, left[start : start + HASHES_AT_ONCE].max()):
            following = values[start + offset : start + offset + HASHES_AT_ONCE]
            i = start + np.flatnonzero(np.bitwise_count(block[: len(following)] ^ following) <= distance_bits)
            if len(i):
                i = i[left[i] > offset]
                near.append(np.stack((order[i], order[i + offset])))
        if near:
            yield tuple(np.concatenate(near, axis=1))


def _gray(tiles: Iterable[Tiles], resampling: Image.Resampling) -> Tiles:
    """Gray thumbnails of tiles, (n,32,32)."""
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    return np.array([np.asarray(Image.fromarray(tile).convert("L").resize(size, resampling)) for tile in tiles])
