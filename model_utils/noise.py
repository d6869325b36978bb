"""Random numbers that are a pure function of (seed, stream, step): what makes a resumed run exact.

MindSpore's own dropout keeps its generator inside a kernel, out of reach of a checkpoint; the masks
here are drawn on the host instead (0.3 ms for a DANN step) and handed to the network as inputs.
"""

import zlib

import numpy as np


def generator(seed, stream, *counters):
    """A numpy Generator (Philox, counter based) for one purpose and moment.

    Args:
        seed: the run's seed, >= 0.
        stream: what the numbers are for, e.g. "dropout"; different streams are independent.
        counters: non-negative integers, such as phase, step and rank.
    """
    sequence = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), *counters])
    return np.random.Generator(np.random.Philox(sequence))


def keep_mask(rng, shape, drop):
    """Inverted-dropout mask, float32 of `shape`: 0 with probability `drop`, else 1 / (1 - drop).

    Source: Srivastava et al. 2014, "Dropout". `drop` lies in [0, 1).
    """
    if drop == 0.5:
        # One random bit an element is enough, and seven times faster than drawing floats.
        count = int(np.prod(shape))
        bits = np.unpackbits(np.frombuffer(rng.bytes((count + 7) // 8), np.uint8), count=count)
        return (bits.astype(np.float32) * 2).reshape(shape)
    keep = rng.random(shape, dtype=np.float32) >= drop
    return keep.astype(np.float32) / np.float32(1 - drop)
