import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from dhel_kcl.config import AugmentationConfig, BlurConfig, CropConfig, DataConfig, JitterConfig
from dhel_kcl.data.beton import write_beton
from dhel_kcl.data.sources import open_source


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    """Small colour photographs: crops of two real ones, of several shapes."""
    images = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    boxes = [(0, 0, 427, 427), (100, 50, 400, 250), (300, 100, 420, 420), (200, 200, 296, 296)]
    sides = [(32, 32), (96, 64), (48, 128), (57, 57)]
    return [
        np.array(image.crop(box).resize(side, Image.Resampling.LANCZOS))
        for image in images
        for box, side in zip(boxes, sides, strict=True)
    ]


@pytest.fixture(scope="session")
def simclr() -> AugmentationConfig:
    """Every operation, as for CIFAR."""
    return AugmentationConfig(
        crop=CropConfig(),
        flip_probability=0.5,
        jitter=JitterConfig(probability=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        grayscale_probability=0.2,
        blur=BlurConfig(probability=0.5),
    )


@pytest.fixture(scope="session")
def digits_beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "train.beton"
    write_beton(open_source(DataConfig(kind="digits"), "train"), path)
    return path


@pytest.fixture(scope="session")
def imagenet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One hundred ImageNet photographs, one of each of a hundred classes, as a train/test image folder."""
    folder = os.environ.get("DHEL_KCL_TEST_DATA")
    if folder is None:
        pytest.skip("DHEL_KCL_TEST_DATA does not name the folder with imagenet_sample.tar.gz")
    root = tmp_path_factory.mktemp("imagenet")
    with tarfile.open(Path(folder) / "imagenet_sample.tar.gz") as archive:
        archive.extractall(root, filter="data")
    root = root / "imagenet_sample"
    if not (root / "test").exists():
        (root / "test").symlink_to(root / "train")
    return root


def jpeg_bytes(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def photo_folder(tmp_path: Path, photographs: list[np.ndarray]) -> Path:
    """An image folder of JPEGs of several sizes: two classes, four images each, in both splits."""
    for split in ("train", "test"):
        for number, image in enumerate(photographs):
            folder = tmp_path / "photos" / split / ("china", "flower")[number // 4]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.jpg").write_bytes(jpeg_bytes(image))
    return tmp_path / "photos"
