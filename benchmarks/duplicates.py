"""How long near-duplicate groups take at MLRSNet's size: 109,161 tiles.

    python benchmarks/duplicates.py

Hashing is timed on a few thousand synthetic tiles of 256 px and scaled up; the search is timed at full size,
on hashes as `imagehash.phash` makes them (half the bits set), evenly spread and, worse, clustered.
"""

import time

import numpy as np
import numpy.typing as npt

from satclr.data import duplicates

TILES = 109_161
HASHED = 2_048


def balanced(rng: np.random.Generator, count: int) -> npt.NDArray[np.uint64]:
    """Hashes with 32 of 64 bits set."""
    bits = rng.permuted(np.tile(np.repeat([False, True], 32), (count, 1)), axis=1)
    return np.packbits(bits, axis=1).view(np.uint64).ravel()


def clustered(rng: np.random.Generator, count: int, *, centres: int) -> npt.NDArray[np.uint64]:
    """Hashes about a few centres, 16 bits off: scenes of one kind look alike."""
    flips = np.zeros(count, dtype=np.uint64)
    for _ in range(16):
        flips ^= np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
    return np.asarray(balanced(rng, centres)[rng.integers(0, centres, count)] ^ flips)


def main() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (HASHED, 256, 256, 3), dtype=np.uint8)
    start = time.perf_counter()
    duplicates.hashes(tiles)
    hashing_s = (time.perf_counter() - start) * TILES / HASHED
    print(f"hash: {hashing_s:.0f} s for {TILES:,} tiles, from {HASHED:,}")
    for name, hashes in (("spread", balanced(rng, TILES)), ("46 clusters", clustered(rng, TILES, centres=46))):
        planted = rng.choice(TILES, 1000, replace=False)
        hashes[planted[500:]] = hashes[planted[:500]] ^ np.uint64(0b1011)
        start = time.perf_counter()
        pairs = sum(len(left) for left, _ in duplicates.candidates(hashes, duplicates.DISTANCE_BITS))
        print(f"search, {name}: {time.perf_counter() - start:.1f} s, {pairs:,} candidate pairs")


if __name__ == "__main__":
    main()
