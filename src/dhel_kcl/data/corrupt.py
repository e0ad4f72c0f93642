"""Five of the common image corruptions of CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019).

As in CIFAR-10-C, the noise is independent for each channel, contrast is scaled about each channel's mean, brightness is
added to the value of HSV, and every result is an 8-bit image. There are two differences: levels are rounded instead of
truncated, and the noise is a function of the seed and the image instead of the state of one generator.
"""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dhel_kcl.seeding import derive_seed

Images = npt.NDArray[np.uint8]
"""(B, H, W, 3), RGB."""

SEVERITIES: Mapping[str, tuple[float, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, for levels in [0, 1]
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation in pixels of a 32x32 image
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to HSV's value in [0, 1]
    "jpeg": (80, 65, 58, 50, 40),  # quality
}
"""Strength at severities 1 to 5.

Source: `ImageNet-C/create_c/make_cifar_c.py` of github.com/hendrycks/robustness, which made CIFAR-10-C from images of
32x32 pixels. For larger images the blur is wider in proportion, so that it spans the same part of the image. Smaller
images get the blur for 32x32, because a blur much narrower than a pixel would not change them. All other corruptions
are as for 32x32.
"""

REFERENCE_SIZE = 32


def corrupt(images: Images, indices: npt.ArrayLike, corruption: str, severity: int, seed: int) -> Images:
    """Corrupt images.

    The result for an image depends on its pixels, its index and the other arguments, not on the rest of the batch.

    Args:
        images: ``(B, H, W, 3)``, RGB.
        indices: ``(B,)``, indices of the images in the data set; the noise is derived from them.
        corruption: a key of `SEVERITIES`.
        severity: 1 to 5.
        seed: seed of the noise.

    Returns:
        New images of the same shape.

    Raises:
        ValueError: the corruption or the severity is unknown, or the images are not as described.
    """
    if corruption not in SEVERITIES:
        raise ValueError(f"corruption {corruption!r} is unknown; there are {', '.join(SEVERITIES)}")
    if severity not in range(1, 1 + len(SEVERITIES[corruption])):
        raise ValueError(
            f"severity {severity} of {corruption} is unknown; there are 1 to {len(SEVERITIES[corruption])}"
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are uint8 of shape (B, H, W, 3); these are {images.dtype} of shape {images.shape}")
    strength = SEVERITIES[corruption][severity - 1]
    if corruption == "jpeg":
        return np.stack([_through_jpeg(image, int(strength)) for image in images])
    x = images.astype(np.float32) / 255
    match corruption:
        case "gaussian_noise":
            for image, index in zip(x, np.asarray(indices), strict=True):
                random = np.random.default_rng(derive_seed(seed, "corruption/gaussian_noise", severity, int(index)))
                image += strength * random.standard_normal(image.shape, np.float32)
        case "gaussian_blur":
            width = strength * max(1.0, max(images.shape[1:3]) / REFERENCE_SIZE)
            from scipy.ndimage import gaussian_filter  # slow to import, and others read the severities alone

            x = gaussian_filter(x, sigma=(0, width, width, 0), mode="nearest")
        case "contrast":
            mean = x.mean(axis=(1, 2), keepdims=True)
            x = mean + strength * (x - mean)
        case "brightness":
            x = _with_higher_value(x, strength)
    levels: Images = np.rint(255 * x.clip(0, 1)).astype(np.uint8)
    return levels


def _with_higher_value(x: npt.NDArray[Any], amount: float) -> npt.NDArray[Any]:
    """Add to HSV's value, the largest channel; scaling all channels by one factor preserves hue and saturation."""
    value = x.max(axis=3, keepdims=True)
    higher = (value + amount).clip(0, 1)
    brighter: npt.NDArray[Any] = np.where(value > 0, x * higher / np.where(value > 0, value, 1), higher)
    return brighter


def _through_jpeg(image: Images, quality: int) -> Images:
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file, formats=["JPEG"]))
