"""Corruptions of images against other libraries and formulas."""

import io

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image, ImageFilter
from scipy.stats import kstest, norm
from sklearn.datasets import load_sample_image
from torchvision.transforms.functional import adjust_contrast

from dhel_kcl.data.corrupt import SEVERITIES, Images, corrupt
from dhel_kcl.data.sources import open_source
from dhel_kcl.experiment.config import DataConfig

SEVERITY = range(1, 6)


def photographs(size: int, count: int = 40) -> Images:
    """Parts of scikit-learn's two photographs."""
    random = np.random.default_rng(0)
    whole = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    corners = random.integers(0, 427 - size, (count, 2))
    return np.stack([whole[k % 2][y : y + size, x : x + size] for k, (y, x) in enumerate(corners)])


@pytest.fixture(scope="module")
def images() -> Images:
    return photographs(32)


def grey_digits() -> Images:
    source = open_source(DataConfig(kind="digits"), "test")
    return np.stack([source[index][0] for index in range(40)])


def apply(images: Images, corruption: str, severity: int, seed: int = 0) -> Images:
    return corrupt(images, np.arange(len(images)), corruption, severity, seed)


@pytest.mark.parametrize("severity", SEVERITY)
def test_noise_is_normal_with_the_published_standard_deviation_in_each_channel(severity: int) -> None:
    grey = np.full((50, 32, 32, 3), 128, np.uint8)
    noise = (apply(grey, "gaussian_noise", severity).astype(float) - 128) / 255
    std = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    random = np.random.default_rng(0).uniform(-0.5, 0.5, noise.shape) / 255  # takes the steps of 8 bits out
    assert kstest((noise + random).ravel(), norm(scale=std).cdf).statistic < 0.01
    assert noise.std(axis=(0, 1, 2)) == pytest.approx([std] * 3, rel=0.02)
    assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.02


@pytest.mark.parametrize("severity", SEVERITY)
@pytest.mark.parametrize("size", [32, 96])
def test_blur_is_a_sum_over_neighbours_that_is_wider_for_larger_images(severity: int, size: int) -> None:
    """Against the sum written out, and against Pillow's approximation of a Gaussian."""
    images = photographs(size, 2)
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1] * size / 32
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-((np.arange(-radius, radius + 1) / sigma) ** 2) / 2)
    padded = np.pad(images / 255, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="edge")
    expected = np.zeros(images.shape)
    for dy, dx in np.ndindex(len(weights), len(weights)):
        expected += weights[dy] * weights[dx] * padded[:, dy : dy + size, dx : dx + size]
    expected *= 255 / weights.sum() ** 2
    blurred = apply(images, "gaussian_blur", severity)
    assert np.abs(blurred - expected).max() <= 0.51
    pillow = Image.fromarray(images[0]).filter(ImageFilter.GaussianBlur(sigma))
    assert np.abs(blurred[0] - np.asarray(pillow, float)).mean() < 2.5


def test_images_below_32_pixels_get_the_blur_of_32() -> None:
    spot = np.zeros((1, 8, 8, 3), np.uint8)
    spot[0, 4, 4] = 255
    large = np.zeros((1, 32, 32, 3), np.uint8)
    large[0, 16, 16] = 255
    for severity in SEVERITY:
        blurred = apply(large, "gaussian_blur", severity)[:, 12:20, 12:20]
        np.testing.assert_array_equal(apply(spot, "gaussian_blur", severity)[:, 1:, 1:], blurred[:, 1:, 1:])


@pytest.mark.parametrize("severity", SEVERITY)
def test_contrast_is_torchvisions_of_each_channel_alone(images: Images, severity: int) -> None:
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    channels = torch.from_numpy(images / 255).permute(0, 3, 1, 2)
    expected = torch.stack([torch.stack([adjust_contrast(c[None], factor)[0] for c in image]) for image in channels])
    expected = 255 * expected.permute(0, 2, 3, 1).numpy()
    assert np.abs(apply(images, "contrast", severity) - expected).max() <= 0.51


@pytest.mark.parametrize("severity", SEVERITY)
def test_brightness_raises_the_value_of_hsv(images: Images, severity: int) -> None:
    images = np.concatenate([images, grey_digits().repeat(4, axis=1).repeat(4, axis=2)])
    hsv = rgb_to_hsv(images / 255)
    hsv[..., 2] = np.minimum(hsv[..., 2] + (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1], 1)
    assert np.abs(apply(images, "brightness", severity) - 255 * hsv_to_rgb(hsv)).max() <= 0.51


@pytest.mark.parametrize("severity", SEVERITY)
def test_jpeg_stores_the_image_at_the_published_quality(images: Images, severity: int) -> None:
    compressed = apply(images, "jpeg", severity)
    for image, result in zip(images, compressed, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="jpeg", quality=(80, 65, 58, 50, 40)[severity - 1])
        np.testing.assert_array_equal(result, np.asarray(Image.open(file).convert("RGB")))


@pytest.mark.parametrize("corruption", SEVERITIES)
@pytest.mark.parametrize("kind", ["photographs", "grey digits of 8x8"])
def test_a_higher_severity_leaves_less_of_the_image(corruption: str, kind: str) -> None:
    images = photographs(32) if kind == "photographs" else grey_digits()
    distances = [np.square(apply(images, corruption, severity).astype(float) - images).mean() for severity in SEVERITY]
    assert distances[0] > 0
    assert distances == sorted(set(distances)), distances


@pytest.mark.parametrize("corruption", SEVERITIES)
def test_an_image_is_corrupted_the_same_whatever_stands_beside_it(images: Images, corruption: str) -> None:
    indices = np.random.default_rng(0).permutation(1000)[: len(images)]
    whole = corrupt(images, indices, corruption, 3, seed=0)
    assert whole.dtype == np.uint8
    assert whole.shape == images.shape
    one_by_one = [corrupt(images[k : k + 1], indices[k : k + 1], corruption, 3, seed=0) for k in range(len(images))]
    np.testing.assert_array_equal(whole, np.concatenate(one_by_one))


def test_noise_is_another_for_another_seed_severity_or_image() -> None:
    grey = np.full((2, 8, 8, 3), 128, np.uint8)
    first, second = apply(grey, "gaussian_noise", 4).astype(int) - 128
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, apply(grey, "gaussian_noise", 4, seed=1)[0].astype(int) - 128)
    stronger = apply(grey, "gaussian_noise", 5)[0].astype(int) - 128
    assert abs(np.corrcoef(first.ravel(), stronger.ravel())[0, 1]) < 0.3


@pytest.mark.parametrize("corruption", SEVERITIES)
def test_the_images_handed_in_stay_as_they_are(images: Images, corruption: str) -> None:
    before = images.copy()
    apply(images, corruption, 5)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("corruption", [name for name in SEVERITIES if name != "gaussian_noise"])
def test_a_grey_image_stays_grey_but_for_noise(corruption: str) -> None:
    result = apply(grey_digits(), corruption, 5).astype(int)
    assert np.abs(result - result[..., :1]).max() == 0


@pytest.mark.parametrize(
    ("images", "corruption", "severity", "said"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), "snow", 1, "corruption 'snow' is unknown; there are gaussian_noise,"),
        (np.zeros((1, 8, 8, 3), np.uint8), "jpeg", 0, "severity 0 of jpeg is unknown; there are 1 to 5"),
        (np.zeros((1, 8, 8, 3), np.uint8), "jpeg", 6, "severity 6 of jpeg is unknown; there are 1 to 5"),
        (np.zeros((1, 8, 8, 3)), "jpeg", 1, "these are float64 of shape"),
        (np.zeros((1, 3, 8, 8), np.uint8), "jpeg", 1, r"these are uint8 of shape \(1, 3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.uint8), "jpeg", 1, r"these are uint8 of shape \(8, 8, 3\)"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(images: Images, corruption: str, severity: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        apply(images, corruption, severity)
