"""One rule for every random draw: it is a function of (seed, purpose, counters)."""

import hashlib


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """Derive an independent 63-bit seed for one named stream.

    Hashing, unlike `seed + epoch`, keeps streams of neighbouring seeds and epochs unrelated:
    seed 1 at epoch 2 shares nothing with seed 2 at epoch 1.

    Args:
        seed: the run's seed, any integer.
        purpose: the stream's name, such as ``"initialisation"``, ``"order"`` or ``"augmentation"``.
        counters: further coordinates, such as the epoch.

    Returns:
        An integer in [0, 2^63).
    """
    key = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
