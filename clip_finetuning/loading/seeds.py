"""Where the chance in an epoch comes from: each draw is a function of whole numbers, so that any batch can be made again.

There are three ways, since a change of one would change the order or the crops of every training that is resumed:

- `generator` (NumPy's SeedSequence and PCG64) shuffles arrays of all samples at once, for the plan of an epoch.
- `sample_seed` (SplitMix64) makes one number for each sample, for its crop and its caption; a SeedSequence takes ten
  times as long, for each picture.
- `reader_random` and `lap_random` (Python's Mersenne Twister, seeded with a text) shuffle lists and the buffer of a
  stream: webdataset's shuffle takes a `random.Random` alone.

A training step has a fourth, `training.step.step_seed`, for torch's own generator (dropout); `training` imports no loading.
"""

import random

import numpy as np


def generator(*numbers: int) -> np.random.Generator:
    """A random generator that depends on these non-negative whole numbers alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(numbers)))


def sample_seed(*numbers: int) -> int:
    """A 64-bit number that looks random and depends on all of these (the finalizer of SplitMix64 over each)."""
    mask, state = (1 << 64) - 1, 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def reader_random(seed: int, epoch: int, reader: int, readers: int) -> random.Random:
    """The chance of one reader of a stream, for its buffer and its views."""
    return random.Random(f"{seed} {epoch} {reader} {readers}")


def lap_random(seed: int, epoch: int, lap: int) -> random.Random:
    """The chance that all readers of a stream share: the order of the shards in a lap over them."""
    return random.Random(f"{seed} {epoch} {lap}")
