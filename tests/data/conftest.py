import io
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from dhel_kcl.data.beton import sidecar_path, write_beton
from dhel_kcl.data.sources import open_source
from dhel_kcl.experiment.config import (
    AugmentationConfig,
    BlurConfig,
    CropConfig,
    DataConfig,
    JitterConfig,
    SolarisationConfig,
)


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
    """Every operation, with the strengths for CIFAR."""
    return AugmentationConfig(
        crop=CropConfig(),
        flip_probability=0.5,
        jitter=JitterConfig(probability=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        grayscale_probability=0.2,
        blur=BlurConfig(probability=0.5),
        solarisation=SolarisationConfig(probability=0.2),
    )


@pytest.fixture
def digits_copy(digits_beton: Path, tmp_path: Path) -> Path:
    """A beton with its sidecar, to be damaged."""
    path = tmp_path / "copy.beton"
    shutil.copy(digits_beton, path)
    shutil.copy(sidecar_path(digits_beton), sidecar_path(path))
    return path


def unpack(name: str, to: Path, wanted: Callable[[Path], bool] = lambda _: True) -> Path:
    """Unpack those files of an archive of the test data that are wanted; skip the test where there is no archive."""
    folder = os.environ.get("DHEL_KCL_TEST_DATA")
    if folder is None:
        pytest.skip(f"DHEL_KCL_TEST_DATA does not name the folder with {name}")
    with tarfile.open(Path(folder) / name) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
        archive.extractall(to, (file for file in archive if wanted(Path(file.name))))
    return to


@pytest.fixture(scope="session")
def imagenet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One hundred ImageNet photographs, one of each of a hundred classes, as a train/test image folder."""
    root = unpack("imagenet_sample.tar.gz", tmp_path_factory.mktemp("imagenet")) / "imagenet_sample"
    if not (root / "test").exists():
        (root / "test").symlink_to(root / "train")
    return root


@pytest.fixture(scope="session")
def cifar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first hundred training images of each class of CIFAR-10 in the archive, as a train/test image folder."""
    taken: Counter[str] = Counter()

    def wanted(path: Path) -> bool:
        if path.suffix != ".jpg" or "train" not in path.parts:
            return False
        taken[path.parent.name] += 1
        return taken[path.parent.name] <= 100

    root = unpack("cifar10_jpeg.tar.gz", tmp_path_factory.mktemp("cifar"), wanted) / "cifar10"
    (root / "test").symlink_to(root / "train")
    return root


@pytest.fixture(scope="session")
def cifar_images(cifar_folder: Path) -> np.ndarray:
    """(1000, 32, 32, 3) real CIFAR-10 images."""
    return np.stack([np.array(Image.open(path)) for path in sorted((cifar_folder / "train").rglob("*.jpg"))])


@pytest.fixture(scope="session")
def cifar_beton(cifar_folder: Path) -> Path:
    path = cifar_folder / "train.beton"
    write_beton(open_source(DataConfig(kind="imagefolder", root=cifar_folder), "train"), path, num_workers=2)
    return path


@pytest.fixture(scope="session")
def imagenet_beton(imagenet_folder: Path) -> Path:
    path = imagenet_folder / "train.beton"
    source = open_source(DataConfig(kind="imagefolder", root=imagenet_folder), "train")
    write_beton(source, path, storage="jpg", num_workers=2)
    return path


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
