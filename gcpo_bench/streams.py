"""Named random streams: the same name gives the same numbers, whatever ran before or beside it.

A draw is addressed by (seed, stream, item, index), never by the order of calls. So a resumed run needs no generator
state, a sample does not depend on batch size, shard or rank, and every variant of a comparison sees the same noise at
the same step (common random numbers).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def generator(seed: int, stream: str, *address: str | int) -> np.random.Generator:
    """A counter-based generator for one address; creating it costs about 20 microseconds."""
    text = "\x1f".join([str(seed), stream, *map(str, address)])
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def uniforms(seed: int, stream: str, item: str, index: int, count: int) -> npt.NDArray[np.float32]:
    """`count` float32 numbers in [0, 1) for one image: `item` is the prompt's id, `index` the image's place."""
    return generator(seed, stream, item, index).random(count, dtype=np.float32)
