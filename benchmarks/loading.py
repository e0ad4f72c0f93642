"""Measure pairs of views per second, time to the first batch and memory of the loader, against other loaders."""

import queue
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import psutil
import torch
import typer
from measure import interleaved, isolated, machine, rate_ratios
from PIL import Image
from rich.progress import track
from sklearn.datasets import load_sample_image
from torch.utils.data import ConcatDataset, DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from dhel_kcl.data.beton import write_beton
from dhel_kcl.data.sources import open_source
from dhel_kcl.experiment.config import AugmentationConfig, DataConfig, built_in_augmentations
from dhel_kcl.files import atomic_path, write_json
from dhel_kcl.seeding import derive_seed

OURS = "dhel-kcl"
FREE = "same kernels, not deterministic"
TORCHVISION = "torchvision"
LIGHTLY = "lightly"
STOCK = "FFCV's own crop and flip"
COLUMNS = [
    *["images", "image_size", "workers", "implementation", "rounds", "pairs_per_second", "ratio", "ratio_low"],
    *["ratio_high", "first_batch_seconds", "memory_mib"],
]
IMAGENET_BLUR_PIXELS = 23


@dataclass(frozen=True)
class Case:
    """What is loaded: images, size of the views, batch size and augmentation."""

    images: str
    folder: Path
    beton: Path
    image_size: int
    batch_size: int
    augmentation: str

    @property
    def config(self) -> AugmentationConfig:
        """The augmentation of this name."""
        return built_in_augmentations()[self.augmentation]


@dataclass(frozen=True)
class Measurement:
    """One run of one implementation."""

    pairs_per_second: float
    first_batch_seconds: float
    memory_mib: float


def ours(case: Case, workers: int) -> Iterator[Any]:
    """Yield batches of this package's loader, epoch after epoch."""
    from dhel_kcl.data.loader import TwoViewLoader

    loader = TwoViewLoader(
        case.beton,
        batch_size=case.batch_size,
        image_size=case.image_size,
        augmentation=case.config,
        seed=0,
        num_workers=workers,
    )
    while True:
        yield from loader


def free_running(case: Case, workers: int) -> Iterator[Any]:
    """Run the same kernels in threads that draw random images and keys, and yield batches as they come.

    This is for raw images. There are no order, no epochs and no checks.
    """
    from dhel_kcl.data.augment import LEVELS, make_views
    from dhel_kcl.data.decoder import view_parameters

    layout, pixels, offsets, sides = _raw_images(case)
    parameters = view_parameters(case.config, case.image_size)
    batches: queue.Queue[torch.Tensor] = queue.Queue(3)
    stopped = threading.Event()

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        while not stopped.is_set():
            chosen = generator.integers(layout, size=case.batch_size)
            views = torch.empty((2, case.batch_size, case.image_size, case.image_size, 3))
            heights = widths = sides[chosen]
            key = np.uint64(generator.integers(2**63))
            arguments = pixels, offsets[chosen], heights, widths, chosen, key, parameters, LEVELS["float32"]
            make_views(*arguments, views.numpy(), 0)
            while not stopped.is_set():
                with suppress(queue.Full):
                    batches.put(views, timeout=0.1)
                    break

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while True:
            views = batches.get()
            yield views[0].permute(0, 3, 1, 2), views[1].permute(0, 3, 1, 2), None, None
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def _raw_images(case: Case) -> tuple[int, Any, Any, Any]:
    from dhel_kcl.data.ffcv_import import importing_ffcv

    with importing_ffcv():
        from ffcv.reader import Reader
    images = Reader(str(case.beton)).metadata["f0"]
    mapped = np.asarray(np.memmap(case.beton, "uint8", mode="r"))
    return len(images), mapped, images["data_ptr"].astype(np.int64), images["height"].astype(np.int64)


class _Twice:
    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> list[Any]:
        return [self.transform(image), self.transform(image)]


def torchvision(case: Case, workers: int) -> Iterator[Any]:
    """Use torchvision's transforms on PIL images in PyTorch's DataLoader, like the public training code."""
    config = case.config
    crop, jitter = config.crop, config.jitter
    assert crop is not None
    assert jitter is not None
    colour = transforms.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    steps = [
        transforms.RandomResizedCrop(
            case.image_size, crop.scale, crop.ratio, transforms.InterpolationMode(crop.interpolation)
        ),
        transforms.RandomHorizontalFlip(config.flip_probability),
        transforms.RandomApply([colour], jitter.probability),
        transforms.RandomGrayscale(config.grayscale_probability),
    ]
    if config.blur is not None:
        kernel = max(3, 2 * (case.image_size // 20) + 1)
        blur = transforms.GaussianBlur(kernel, config.blur.sigma)
        steps.append(transforms.RandomApply([blur], config.blur.probability))
    yield from _data_loader(case, _Twice(transforms.Compose([*steps, transforms.ToTensor()])), workers)


def lightly(case: Case, workers: int) -> Iterator[Any]:
    """Use Lightly's SimCLR transform with the same strengths in PyTorch's DataLoader."""
    from lightly.transforms import SimCLRTransform

    config = case.config
    assert config.jitter is not None
    transform = SimCLRTransform(
        input_size=case.image_size,
        cj_prob=config.jitter.probability,
        cj_strength=config.jitter.brightness / 0.8,
        random_gray_scale=config.grayscale_probability,
        gaussian_blur=config.blur.probability if config.blur else 0.0,
        normalize=None,
    )
    yield from _data_loader(case, transform, workers)


def _data_loader(case: Case, transform: Callable[[Any], Any], workers: int) -> Iterator[Any]:
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores, on purpose
    folder = ImageFolder(str(case.folder / "train"), transform)
    repeats = -(-20 * case.batch_size // len(folder))  # so that small folders do not keep restarting workers
    images: ConcatDataset[Any] = ConcatDataset([folder] * max(1, repeats))
    loader = DataLoader(
        images, case.batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    while True:
        for (view1, view2, *_), label in loader:
            yield view1, view2, label, None


def stock(case: Case, workers: int) -> Iterator[Any]:
    """Use FFCV with its own crop and flip; it has neither hue nor grayscale, and its output is not reproducible."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline import PipelineSpec
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    size = (case.image_size, case.image_size)
    pipelines = {
        name: PipelineSpec(
            "image",
            decoder=RandomResizedCropRGBImageDecoder(size),
            transforms=[RandomHorizontalFlip(), ToTensor()],
        )
        for name in ("image", "image_again")
    }
    loader = Loader(
        str(case.beton),
        case.batch_size,
        num_workers=workers,
        order=OrderOption.RANDOM,
        seed=0,
        pipelines={**pipelines, "label": None},
    )
    while True:
        for view1, view2 in loader:
            yield view1, view2, None, None


IMPLEMENTATIONS: dict[str, Callable[[Case, int], Iterator[Any]]] = {
    OURS: ours,
    FREE: free_running,
    TORCHVISION: torchvision,
    LIGHTLY: lightly,
    STOCK: stock,
}


def measure(implementation: str, case: Case, workers: int, seconds: float) -> Measurement:
    """Run one implementation for `seconds` after its first batches; imports are not timed.

    Memory is the private memory of this process and its workers at the end, above that of this process before.
    """
    import dhel_kcl.data.loader  # noqa: F401

    process = psutil.Process()
    before = process.memory_full_info().uss
    start = time.perf_counter()
    batches = IMPLEMENTATIONS[implementation](case, workers)
    next(batches)
    first_batch = time.perf_counter() - start
    for _ in range(2):
        next(batches)
    start = time.perf_counter()
    pairs = 0
    while time.perf_counter() - start < seconds:
        pairs += len(next(batches)[0])
    rate = pairs / (time.perf_counter() - start)
    family = [process, *process.children(recursive=True)]
    memory = sum(member.memory_full_info().uss for member in family) - before
    batches.close()  # type: ignore[attr-defined]
    return Measurement(rate, first_batch, memory / 2**20)


def compare(case: Case, workers: int, names: list[str], rounds: int, seconds: float) -> pd.DataFrame:
    """Return the columns of loading.csv for one case; each round runs every implementation once, in random order.

    `ratio` is our pairs per second divided by those of an implementation in the same round.
    """
    seed = derive_seed(0, "order")
    runs = interleaved(names, rounds, lambda name: isolated(measure, name, case, workers, seconds), seed)
    rates = pd.DataFrame({name: [run.pairs_per_second for run in of_name] for name, of_name in runs.items()})
    table = rate_ratios(rates, OURS).assign(
        pairs_per_second=rates.median(),
        first_batch_seconds=pd.Series(
            {name: np.median([run.first_batch_seconds for run in runs[name]]) for name in runs}
        ),
        memory_mib=pd.Series({name: np.median([run.memory_mib for run in runs[name]]) for name in runs}),
    )
    table = table.rename_axis("implementation").reset_index()
    return table.assign(images=case.images, image_size=case.image_size, workers=workers)[COLUMNS]


def write_pieces(folder: Path, count: int, side: int | None) -> Path:
    """Cut scikit-learn's two photographs into an image folder of pieces, `side` pixels square or of any shape."""
    generator = np.random.default_rng(derive_seed(0, "pieces"))
    for name in ("china", "flower"):
        photograph = Image.fromarray(load_sample_image(f"{name}.jpg"))
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
        for number in range(count // 2):
            width, height = (int(length) for length in generator.integers(250, 420, size=2))
            left = int(generator.integers(photograph.width - width + 1))
            top = int(generator.integers(photograph.height - height + 1))
            piece = photograph.crop((left, top, left + width, top + height))
            piece = piece.resize((side, side)) if side else piece
            split = "test" if number == 0 else "train"
            piece.save(folder / split / name / f"{number}.jpg", quality=92)
    return folder


def main(
    output: Annotated[Path, typer.Option(help="Folder for loading.csv.")] = Path("docs/benchmarks"),
    small: Annotated[
        Path | None, typer.Option(help="{train,test}/<class>/*.jpg of 32x32 pixels; default: pieces of photographs.")
    ] = None,
    photographs: Annotated[
        Path | None, typer.Option(help="{train,test}/<class>/*.jpg of any size; default: pieces of photographs.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="One short round of one case: under a minute.")] = False,
) -> None:
    """Measure each case and write loading.csv."""
    start = time.monotonic()
    rounds, seconds = (1, 0.5) if quick else (3, 3.0)
    with tempfile.TemporaryDirectory() as temporary:
        names = {
            "small": "pieces of two photographs, 32x32" if small is None else small.name,
            "photographs": "pieces of two photographs" if photographs is None else photographs.name,
        }
        small = small or write_pieces(Path(temporary) / "small", 600 if quick else 6000, 32)
        photographs = photographs or write_pieces(Path(temporary) / "photographs", 40 if quick else 100, None)
        betons = Path(temporary) / "small.beton", Path(temporary) / "photographs.beton"
        write_beton(open_source(DataConfig(kind="imagefolder", root=small), "train"), betons[0], num_workers=2)
        source = open_source(DataConfig(kind="imagefolder", root=photographs), "train")
        write_beton(source, betons[1], storage="jpg", num_workers=2)
        tiny = Case(names["small"], small, betons[0], 32, 32 if quick else 256, "simclr_cifar")
        large = [
            Case(names["photographs"], photographs, betons[1], side, 32, "simclr_imagenet")
            for side in (64, 96, 160, 224)
        ]
        everyone = [*IMPLEMENTATIONS]
        pair = [OURS, TORCHVISION]
        plan = [(tiny, 2, [name for name in everyone if not (quick and name in (LIGHTLY, STOCK))])]
        if not quick:
            plan += [(tiny, workers, [OURS, TORCHVISION, LIGHTLY]) for workers in (1, 4)]
            plan += [(case, 2, pair) for case in large] + [(large[-1], workers, pair) for workers in (1, 4)]
        parts = [compare(*each, rounds, seconds) for each in track(plan, "measuring")]
    table = pd.concat(parts)
    typer.echo(table.to_string(index=False, float_format="{:.4g}".format))
    with atomic_path(output / "loading.csv") as path:
        table.to_csv(path, index=False, float_format="%.6g")
    minutes = (time.monotonic() - start) / 60
    versions = {name: version(name) for name in ("torchvision", "pillow", "numba", "ffcv")}
    facts = {**machine(), **versions, "measuring the loaders": f"{minutes:.0f} minutes"}
    write_json(output / "loading_machine.json", facts)


if __name__ == "__main__":
    typer.run(main)
