"""Which test images a classifier got right, one bit an image, as a text that fits into JSON and a table."""

import base64
import binascii

import numpy as np
from numpy.typing import NDArray


def pack_hits(hits: NDArray[np.bool_]) -> str:
    """Return the base64 of `numpy.packbits`: big-endian bits, the last byte filled up with zeros.

    Args:
        hits: (n,) Booleans, n >= 1, whether each image was classified correctly.

    Returns:
        ASCII text of 4 ceil(n / 24) characters.

    Raises:
        ValueError: if `hits` are not Booleans of shape (n,) with n >= 1.
    """
    if hits.ndim != 1 or hits.size == 0 or hits.dtype != np.bool_:
        raise ValueError(f"hits must be Booleans of shape (n,) with n >= 1, got {hits.dtype} of shape {hits.shape}")
    return base64.b64encode(np.packbits(hits).tobytes()).decode("ascii")


def unpack_hits(text: str, images: int) -> NDArray[np.bool_]:
    """Return what `pack_hits` has packed.

    Args:
        text: the packed hits.
        images: n, their number, >= 1.

    Returns:
        (n,) Booleans.

    Raises:
        ValueError: if the text is not what `pack_hits` returns for n images.
    """
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"packed hits are not base64: {error}") from error
    if packed.size != -(-images // 8):
        raise ValueError(f"packed hits of {images} images take {-(-images // 8)} bytes, these are {packed.size}")
    bits = np.unpackbits(packed).astype(np.bool_)
    if bits[images:].any() or pack_hits(bits[:images]) != text:
        raise ValueError(f"packed hits have a bit beyond the last of {images} images")
    return bits[:images]
