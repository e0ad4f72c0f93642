import faulthandler
import hashlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields.rgb_image import RGBImageField, encode_jpeg
from PIL import Image
from scipy import stats
from torchvision.transforms import functional as F

from dhel_kcl.data import decoder
from dhel_kcl.data import loader as loader_module
from dhel_kcl.data.beton import write_beton
from dhel_kcl.data.loader import OneViewLoader, TwoViewLoader
from dhel_kcl.data.sources import ImageSource, open_source, read_image
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import (
    AugmentationConfig,
    BlurConfig,
    CropConfig,
    DataConfig,
    JitterConfig,
    SolarisationConfig,
)

DIGITS_TRAIN = 1437


def two_views(path: Path, augmentation: AugmentationConfig, **options: object) -> TwoViewLoader:
    arguments = {"batch_size": 128, "image_size": 8, "seed": 0, "shuffle": True} | options
    return TwoViewLoader(path, augmentation=augmentation, **arguments)


def digest_of(*batches: Sequence[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in batch:
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def epoch_digest(loader: TwoViewLoader) -> str:
    return digest_of(*loader)


def loader_threads() -> list[threading.Thread]:
    """All but the main one and multiprocessing's, which serves tensors of tests that ran before."""
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    return [thread for thread in others if "_serve" not in thread.name]


PATIENCE = 300
"""Seconds after which something hangs, on however busy a machine."""


@contextmanager
def no_hang() -> Iterator[None]:
    """End the process with every thread's traceback if this block hangs."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def photo_beton(tmp_path_factory: pytest.TempPathFactory, photographs: list[np.ndarray]) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "test"):
        (root / split / "all").mkdir(parents=True)
        for number, image in enumerate(photographs):
            Image.fromarray(image).save(root / split / "all" / f"{number}.png")
    path = root / "train.beton"
    write_beton(open_source(DataConfig(kind="imagefolder", root=root), "train"), path, storage="jpg", jpeg_quality=95)
    return path


class TestBatches:
    def test_types_shapes_ranges_and_memory_format(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        loader = two_views(digits_beton, simclr, batch_size=100)
        assert len(loader) == 14
        assert (loader.num_images, loader.classes) == (DIGITS_TRAIN, [str(digit) for digit in range(10)])
        view1, view2, label, index = next(iter(loader))
        for view in (view1, view2):
            assert view.shape == (100, 3, 8, 8)
            assert view.dtype == torch.float32
            assert view.is_contiguous(memory_format=torch.channels_last)
            assert view.min() >= 0
            assert 0.5 < view.max() <= 1
        assert label.dtype == index.dtype == torch.int64
        assert label.shape == index.shape == (100,)

    def test_batches_are_the_caller_s_to_keep(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        loader = two_views(digits_beton, simclr)
        kept, copies = [], []
        for batch in loader:
            kept.append(batch)
            copies.append([tensor.clone() for tensor in batch])
        for batch, copied in zip(kept, copies, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, copied, strict=True))

    def test_every_image_comes_once_in_an_epoch_with_its_label(
        self, digits_beton: Path, simclr: AugmentationConfig
    ) -> None:
        loader = two_views(digits_beton, simclr, drop_last=False)
        labels = open_source(DataConfig(kind="digits"), "train").labels
        for _ in range(2):
            index, label = (torch.cat(part) for part in list(zip(*loader, strict=True))[:1:-1])
            assert sorted(index.tolist()) == list(range(DIGITS_TRAIN))
            np.testing.assert_array_equal(labels[index], label)

    def test_drop_last_drops_only_the_incomplete_batch(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        sizes = [len(label) for _, _, label, _ in two_views(digits_beton, simclr, batch_size=1000)]
        assert sizes == [1000]
        loader = two_views(digits_beton, simclr, batch_size=1000, drop_last=False)
        assert [len(label) for _, _, label, _ in loader] == [1000, 437]
        assert len(loader) == 2

    def test_without_operations_both_views_are_the_image(self, digits_beton: Path) -> None:
        source = open_source(DataConfig(kind="digits"), "train")
        for view1, view2, _, index in two_views(digits_beton, AugmentationConfig()):
            images = np.stack([source[i][0] for i in index.tolist()])
            np.testing.assert_array_equal((view1 * 255).permute(0, 2, 3, 1).round().to(torch.uint8), images)
            assert torch.equal(view1, view2)


SIZES = {"digits": (128, 8), "cifar": (128, 32), "imagenet": (24, 48)}
"""Batch size and image size for each beton of real images."""


@pytest.fixture(params=list(SIZES))
def real_images(request: pytest.FixtureRequest, simclr: AugmentationConfig) -> Callable[..., TwoViewLoader]:
    """Makes loaders of real images: grey raw, colour raw, and JPEG photographs of several sizes."""
    path = request.getfixturevalue(f"{request.param}_beton")
    batch_size, image_size = SIZES[request.param]
    arguments = {"batch_size": batch_size, "image_size": image_size}
    make = partial(two_views, path, simclr, **arguments)
    make.path, make.arguments = path, arguments
    return make


def in_another_process(
    make: Callable[..., TwoViewLoader], augmentation: AugmentationConfig, *options: dict[str, object]
) -> list[str]:
    """Digests of two epochs of a loader with each of the options, the first resumed at a `state` among them."""
    script = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from dhel_kcl.experiment.config import AugmentationConfig\n"
        "from test_loader import epoch_digest, two_views\n"
        "augmentation = AugmentationConfig.model_validate_json(sys.argv[3])\n"
        "for options in json.loads(sys.argv[4]):\n"
        "    state = options.pop('state', None)\n"
        "    loader = two_views(Path(sys.argv[2]), augmentation, **options)\n"
        "    if state: loader.load_state_dict(state)\n"
        "    print(epoch_digest(loader), epoch_digest(loader))"
    )
    arguments = [str(Path(__file__).parent), str(make.path), augmentation.model_dump_json()]
    arguments.append(json.dumps([make.arguments | each for each in options]))
    outcome = subprocess.run([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return outcome.stdout.split()


def drop_from_the_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class TestDeterminism:
    def test_two_epochs_are_equal_for_any_workers_in_separate_processes_and_however_the_file_is_read(
        self, real_images: Callable[..., TwoViewLoader], simclr: AugmentationConfig
    ) -> None:
        one = real_images(num_workers=1)
        expected = [epoch_digest(one), epoch_digest(one)]
        assert expected[0] != expected[1]
        drop_from_the_page_cache(real_images.path)
        for options in ({"num_workers": 2}, {"num_workers": 4}, {"num_workers": 2, "os_cache": False}):
            loader = real_images(**options)
            assert [epoch_digest(loader), epoch_digest(loader)] == expected
        others = [
            {"num_workers": number, "os_cache": os_cache} for number, os_cache in ((1, False), (2, True), (4, True))
        ]
        assert in_another_process(real_images, simclr, *others) == expected * len(others)

    @pytest.mark.parametrize("stop_after", [0, 1, 3])
    def test_a_resumed_epoch_goes_on_with_the_same_bytes(
        self, real_images: Callable[..., TwoViewLoader], stop_after: int
    ) -> None:
        def rest(loader: TwoViewLoader) -> list[str]:
            return [digest_of(batch) for batch in loader]

        whole = real_images()
        first, second = rest(whole), rest(whole)
        interrupted = real_images()
        state = interrupted.state_dict()
        for number, _ in enumerate(interrupted, start=1):
            if number > stop_after:
                break
            state = interrupted.state_dict()
        resumed = real_images(num_workers=3, os_cache=False)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert resumed.state_dict() == state
        assert rest(resumed) == first[stop_after:]
        assert rest(resumed) == second

    def test_another_process_resumes_in_mid_epoch_and_after_one_with_the_same_bytes(
        self, real_images: Callable[..., TwoViewLoader], simclr: AugmentationConfig
    ) -> None:
        loader = real_images()
        first, second, third = (list(loader) for _ in range(3))
        mid_epoch, after_one = real_images(), real_images()
        for number, _ in enumerate(mid_epoch, start=1):
            if number == 2:
                break
        for _ in after_one:
            pass
        states = [each.state_dict() for each in (mid_epoch, after_one)]
        assert [(state["epoch"], state["batch"]) for state in states] == [(0, 2), (1, 0)]
        resumed = in_another_process(real_images, simclr, *({"num_workers": 2, "state": state} for state in states))
        assert resumed == [digest_of(*batches) for batches in (first[2:], second, second, third)]

    def test_after_the_last_batch_the_state_is_the_next_epoch(
        self, digits_beton: Path, simclr: AugmentationConfig
    ) -> None:
        loader = two_views(digits_beton, simclr)
        for number, _ in enumerate(loader, start=1):
            state = loader.state_dict()
            assert (state["epoch"], state["batch"]) == ((1, 0) if number == len(loader) else (0, number))
        assert loader.state_dict() == state

    def test_an_epoch_can_be_resumed_on_more_ranks(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        loader = two_views(digits_beton, simclr)
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
        expected = next(batches)
        batches.close()
        ranks = [two_views(digits_beton, simclr, rank=rank, world_size=2) for rank in range(2)]
        for rank in ranks:
            rank.load_state_dict(state)
        shares = [next(iter(rank)) for rank in ranks]
        for part, whole in zip(zip(*shares, strict=True), expected, strict=True):
            assert torch.equal(torch.cat(part), whole)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"batch_size": 64}, "saved with another batch_size"),
            ({"seed": 1, "shuffle": False}, "another seed, another shuffle"),
            ({"augmentation": AugmentationConfig()}, "another augmentation"),
        ],
    )
    def test_a_state_of_other_settings_is_refused(
        self, digits_beton: Path, simclr: AugmentationConfig, change: dict[str, object], message: str
    ) -> None:
        augmentation = change.pop("augmentation", simclr)
        other = two_views(digits_beton, augmentation, **change)
        with pytest.raises(InputError, match=message):
            two_views(digits_beton, simclr).load_state_dict(other.state_dict())

    @pytest.mark.parametrize(
        "damage", [{"batch": 11}, {"batch": -1}, {"epoch": -1}, {"epoch": "x"}, {"settings": None}]
    )
    def test_a_damaged_state_is_refused(
        self, digits_beton: Path, simclr: AugmentationConfig, damage: dict[str, object]
    ) -> None:
        loader = two_views(digits_beton, simclr)
        with pytest.raises(InputError, match="state"):
            loader.load_state_dict(loader.state_dict() | damage)

    def test_set_epoch_resumes_at_that_epoch(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        loader = two_views(digits_beton, simclr)
        _, second, third = (epoch_digest(loader) for _ in range(3))
        resumed = two_views(digits_beton, simclr)
        resumed.set_epoch(1)
        assert [epoch_digest(resumed), epoch_digest(resumed)] == [second, third]

    def test_an_abandoned_epoch_is_repeated(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        loader = two_views(digits_beton, simclr)
        for _ in loader:
            break
        assert epoch_digest(loader) == epoch_digest(two_views(digits_beton, simclr))

    def test_a_view_does_not_depend_on_batch_size_or_order(
        self, digits_beton: Path, simclr: AugmentationConfig
    ) -> None:
        def by_index(**options: object) -> torch.Tensor:
            views, indices = [], []
            for view1, _, _, index in two_views(digits_beton, simclr, drop_last=False, **options):
                views.append(view1)
                indices.append(index)
            return torch.cat(views)[torch.cat(indices).argsort()]

        expected = by_index()
        assert torch.equal(by_index(batch_size=77), expected)
        assert torch.equal(by_index(shuffle=False), expected)

    def test_views_epochs_and_seeds_all_differ(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        def views(seed: int, epoch: int) -> list[torch.Tensor]:
            loader = two_views(digits_beton, simclr, seed=seed, shuffle=False, batch_size=512)
            loader.set_epoch(epoch)
            return list(next(iter(loader))[:2])

        # Seed 0 in epoch 1 against seed 1 in epoch 0 is the pair that `seed + epoch` would make equal.
        made = [view for seed in (0, 1) for epoch in (0, 1) for view in views(seed, epoch)]
        for number, view in enumerate(made):
            for other in made[:number]:
                same = (view == other).flatten(1).all(1).float().mean()
                assert same < 0.02

    def test_orders_of_seeds_and_epochs_are_unrelated(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        def order(seed: int, epoch: int) -> torch.Tensor:
            loader = two_views(digits_beton, AugmentationConfig(), seed=seed, drop_last=False)
            loader.set_epoch(epoch)
            return torch.cat([index for _, _, _, index in loader])

        orders = torch.stack([order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]).numpy()
        correlations = np.corrcoef(orders)[np.triu_indices(4, 1)]
        assert np.abs(correlations).max() < 4 / np.sqrt(DIGITS_TRAIN)

    def test_switching_one_operation_off_leaves_the_others_draws_alone(
        self, digits_beton: Path, simclr: AugmentationConfig
    ) -> None:
        crop_only = AugmentationConfig(crop=simclr.crop)
        flipped = AugmentationConfig(crop=simclr.crop, flip_probability=1.0)
        batches = [next(iter(two_views(digits_beton, augmentation))) for augmentation in (crop_only, flipped)]
        assert torch.equal(batches[0][0].flip(3), batches[1][0])


class TestRanks:
    @pytest.mark.parametrize("world_size", [2, 4])
    def test_step_by_step_the_ranks_together_load_the_batch_of_one_process(
        self, real_images: Callable[..., TwoViewLoader], world_size: int
    ) -> None:
        ranks = [real_images(rank=rank, world_size=world_size) for rank in range(world_size)]
        whole = real_images()
        assert {len(rank) for rank in ranks} == {len(whole)}
        for batch, *shares in zip(whole, *ranks, strict=True):
            for complete, parts in zip(batch, zip(*shares, strict=True), strict=True):
                assert {len(part) for part in parts} == {len(complete) // world_size}
                assert torch.equal(torch.cat(parts), complete)

    def test_evaluation_on_ranks_sees_every_image_once(self, digits_beton: Path) -> None:
        ranks = [OneViewLoader(digits_beton, batch_size=200, image_size=8, rank=r, world_size=4) for r in range(4)]
        seen = [index for rank in ranks for _, _, index in rank]
        assert sorted(torch.cat(seen).tolist()) == list(range(DIGITS_TRAIN))

    @pytest.mark.parametrize(
        ("rank", "world_size", "message"), [(2, 2, "rank 2"), (-1, 2, "rank -1"), (0, 3, "3 ranks")]
    )
    def test_an_impossible_share_is_refused(
        self, digits_beton: Path, simclr: AugmentationConfig, rank: int, world_size: int, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            two_views(digits_beton, simclr, rank=rank, world_size=world_size)


class TestAugmentationRates:
    @pytest.mark.parametrize("probability", [0.2, 0.8])
    @pytest.mark.parametrize("operation", ["jitter", "blur", "solarisation"])
    def test_operations_happen_at_their_rate(self, cifar_beton: Path, operation: str, probability: float) -> None:
        always_visible = {
            "jitter": JitterConfig(probability=probability, hue=0.5, brightness=0.8),
            "blur": BlurConfig(probability=probability, sigma=(2.0, 2.0)),
            "solarisation": SolarisationConfig(probability=probability, threshold=0),
        }
        augmentation = AugmentationConfig(**{operation: always_visible[operation]})
        plain, changed = (
            next(iter(two_views(cifar_beton, a, batch_size=1000, image_size=32, shuffle=False)))[0]
            for a in (AugmentationConfig(), augmentation)
        )
        differs = int((plain != changed).flatten(1).any(1).sum())
        assert stats.binomtest(differs, len(plain), probability).pvalue > 1e-3

    @pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
    def test_flips_happen_at_their_rate_independently_in_both_views(
        self, digits_beton: Path, probability: float
    ) -> None:
        plain = two_views(digits_beton, AugmentationConfig(), shuffle=False, drop_last=False, batch_size=DIGITS_TRAIN)
        image, _, _, _ = next(iter(plain))
        augmentation = AugmentationConfig(flip_probability=probability)
        loader = two_views(digits_beton, augmentation, shuffle=False, batch_size=DIGITS_TRAIN)
        view1, view2, _, _ = next(iter(loader))
        uneven = (image != image.flip(3)).flatten(1).any(1)
        flips = [(view != image).flatten(1).any(1)[uneven].numpy() for view in (view1, view2)]
        for flipped in flips:
            assert stats.binomtest(int(flipped.sum()), len(flipped), probability).pvalue > 1e-3
        both = int((flips[0] & flips[1]).sum())
        assert stats.binomtest(both, len(flips[0]), probability**2).pvalue > 1e-3

    def test_grey_views_come_at_their_rate(self, photo_beton: Path) -> None:
        loader = TwoViewLoader(
            photo_beton,
            batch_size=8,
            image_size=8,
            augmentation=AugmentationConfig(crop=CropConfig(), grayscale_probability=0.2),
            seed=0,
        )
        views = [torch.cat([view1, view2]) for _ in range(150) for view1, view2, _, _ in loader]
        grey = torch.cat([(view[:, :1] == view).flatten(1).all(1) for view in views])
        assert stats.binomtest(int(grey.sum()), len(grey), 0.2).pvalue > 1e-3


class TestPhotographs:
    def test_jpegs_of_several_sizes_are_equal_for_any_workers(
        self, photo_beton: Path, simclr: AugmentationConfig
    ) -> None:
        digests = {
            epoch_digest(two_views(photo_beton, simclr, image_size=32, batch_size=3, num_workers=n, drop_last=False))
            for n in (1, 2, 5)
        }
        assert len(digests) == 1

    def test_evaluation_view_is_resize_and_centre_crop(self, photo_beton: Path, photographs: list[np.ndarray]) -> None:
        for size, shorter_side in ((32, 32), (96, 110)):
            views = torch.cat([view for view, _, _ in OneViewLoader(photo_beton, batch_size=3, image_size=size)])
            for view, photograph in zip(views, photographs, strict=True):
                expected = Image.open(io.BytesIO(encode_jpeg(photograph, 95).tobytes()))
                if photograph.shape != (size, size, 3):
                    resized = F.resize(expected, shorter_side, F.InterpolationMode.BICUBIC)
                    expected = F.center_crop(resized, [size, size])
                # FFCV decodes JPEG with a faster, less exact transform than PIL.
                assert (view * 255 - torch.from_numpy(np.array(expected)).permute(2, 0, 1)).abs().mean() < 3

    def test_evaluation_keeps_the_order_and_every_image(self, digits_beton: Path) -> None:
        loader = OneViewLoader(digits_beton, batch_size=500, image_size=8)
        assert torch.cat([index for _, _, index in loader]).tolist() == list(range(DIGITS_TRAIN))
        first, again = (torch.cat([view for view, _, _ in loader]) for _ in range(2))
        assert torch.equal(first, again)

    def test_one_random_view_changes_with_the_epoch(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        loader = OneViewLoader(digits_beton, batch_size=500, image_size=8, augmentation=simclr, seed=1)
        first, second = (torch.cat([view for view, _, _ in loader]) for _ in range(2))
        assert not torch.equal(first, second)

    def test_imagenet_photographs(self, imagenet_folder: Path, tmp_path: Path, simclr: AugmentationConfig) -> None:
        source = open_source(DataConfig(kind="imagefolder", root=imagenet_folder), "train")
        path = tmp_path / "imagenet.beton"
        info = write_beton(source, path, storage="jpg", max_resolution=256, num_workers=2)
        assert info.num_images == len(source)
        assert max(info.max_size) == 256
        for view1, view2, label, index in two_views(path, simclr, image_size=96, batch_size=32, num_workers=2):
            assert torch.isfinite(view1).all()
            assert torch.isfinite(view2).all()
            assert not torch.equal(view1, view2)
            np.testing.assert_array_equal(source.labels[index], label)
        views = torch.cat([view for view, _, _ in OneViewLoader(path, batch_size=50, image_size=96)])
        for number in range(0, len(source), 10):
            image = Image.fromarray(read_image(Path(source.names[number])))
            resized = F.resize(image, 110, F.InterpolationMode.BICUBIC)
            expected = torch.from_numpy(np.array(F.center_crop(resized, [96, 96]))).permute(2, 0, 1)
            assert (views[number] * 255 - expected).abs().mean() < 6


class TestStoredJpegs:
    """A record may be wrong about a JPEG that is sound."""

    @pytest.mark.parametrize("os_cache", [True, False])
    @pytest.mark.parametrize(
        ("height", "width"), [(12, 24), (24, 12), (12, 12), (25, 24), (24, 25), (48, 48), (23, 24), (200, 200)]
    )
    def test_one_of_another_size_than_its_record_is_named(
        self, height: int, width: int, os_cache: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encode = RGBImageField.encode

        def lie(self: RGBImageField, record: Any, image: np.ndarray, malloc: Any) -> None:
            is_other = bool(image[0, 0, 0])
            encode(self, record, np.resize(image, (height, width, 3)) if is_other else image, malloc)
            if is_other:
                record["height"], record["width"] = image.shape[:2]

        monkeypatch.setattr(RGBImageField, "encode", lie)
        images = [np.full((24, 24, 3), 255 * (number == 2), np.uint8) for number in range(4)]
        source = ImageSource(["a"], np.zeros(4, np.int64), "memory", list("0123"), lambda index: images[index])
        path = tmp_path / "lying.beton"
        write_beton(source, path, storage="jpg")
        message = rf"lying\.beton: image 2 of the beton is a JPEG of {width}x{height} pixels, recorded as 24x24; delete"
        with pytest.raises(InputError, match=message):
            list(OneViewLoader(path, batch_size=4, image_size=8, os_cache=os_cache))

    @pytest.mark.parametrize("quality", [1, 50, 90, 100])
    def test_those_that_the_writer_makes_are_read(
        self, quality: int, photographs: list[np.ndarray], tmp_path: Path
    ) -> None:
        names = [str(number) for number in range(len(photographs))]
        labels = np.zeros(len(photographs), np.int64)
        source = ImageSource(["a"], labels, "memory", names, lambda index: photographs[index])
        write_beton(source, tmp_path / "photos.beton", storage="jpg", jpeg_quality=quality)
        (indices,) = (index for _, _, index in OneViewLoader(tmp_path / "photos.beton", batch_size=8, image_size=8))
        assert len(indices) == len(photographs)

    @pytest.mark.parametrize(
        "head",
        [
            b"\xff\xd8",
            b"\xff\xd8\xff\xff\xe0\x00\x04\x00\x00\xff\xc0\x00\x11\x08\x00\x01\x00\x01",  # a byte of filling
            b"\xff\xd8\xff\xd0\x00\x02\xff\xc0\x00\x11\x08\x00\x01\x00\x01",  # a marker without a length
            b"\xff\xd8\xff\xe0\x00\x02\x00\xff\xc0\x00\x11\x08\x00\x01\x00\x01",  # no marker after the segment
            b"\xff\xd8\xff\xc4\x00\x11\x08\x00\x01\x00\x01",  # tables, not a frame
        ],
    )
    def test_a_size_is_read_from_a_plain_header_only(self, head: bytes) -> None:
        plain = b"\xff\xd8\xff\xe0\x00\x04\x00\x00\xff\xc0\x00\x11\x08\x00\x03\x01\x02" + bytes(20)
        assert decoder._jpeg_size(memoryview(plain)) == (3, 258)
        assert decoder._jpeg_size(memoryview(head)) is None

    def test_blurred_views_of_one_pixel_are_that_pixel(self, digits_beton: Path) -> None:
        blurred = AugmentationConfig(blur=BlurConfig(probability=1))
        views, plain = (
            torch.cat(
                [view for view, _, _ in OneViewLoader(digits_beton, batch_size=500, image_size=1, augmentation=each)]
            )
            for each in (blurred, None)
        )
        assert torch.equal(views, plain)


class TestRobustness:
    def test_a_beton_that_changed_after_the_loader_was_made_is_refused(
        self, digits_copy: Path, simclr: AugmentationConfig
    ) -> None:
        loader = two_views(digits_copy, simclr)
        with pytest.raises(InputError, match="changed after it was written"):  # noqa: PT012
            for number, _ in enumerate(loader):
                if number == 5:
                    with digits_copy.open("r+b") as file:
                        file.seek(-1000, os.SEEK_END)
                        file.write(b"\xff")
        with no_hang(), pytest.raises(InputError, match="changed after it was written"):
            next(iter(loader))
        digits_copy.unlink()
        with no_hang(), pytest.raises(InputError, match="no such beton"):
            next(iter(loader))
        assert loader_threads() == []

    def test_a_beton_that_is_truncated_while_it_is_read_is_an_error(
        self, digits_copy: Path, simclr: AugmentationConfig
    ) -> None:
        batches = iter(two_views(digits_copy, simclr, batch_size=32))
        next(batches)
        os.truncate(digits_copy, 1 << 21)  # the first page, which holds the images, begins there
        with no_hang(), pytest.raises(InputError, match="truncated while it was being read"):
            list(batches)
        assert loader_threads() == []

    @pytest.mark.parametrize("os_cache", [True, False])
    def test_ctrl_c_ends_a_process(self, digits_beton: Path, simclr: AugmentationConfig, os_cache: bool) -> None:
        script = (
            "import itertools, json, signal, sys; sys.path.insert(0, sys.argv[1])\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a background job does not inherit
            "from pathlib import Path\n"
            "from dhel_kcl.experiment.config import AugmentationConfig\n"
            "from test_loader import two_views\n"
            "augmentation = AugmentationConfig.model_validate_json(sys.argv[3])\n"
            "loader = two_views(Path(sys.argv[2]), augmentation, num_workers=2, os_cache=json.loads(sys.argv[4]))\n"
            "for epoch in itertools.count():\n"
            "    for batch in loader: pass\n"
            "    print(epoch, flush=True)"
        )
        arguments = [str(Path(__file__).parent), str(digits_beton), simclr.model_dump_json(), json.dumps(os_cache)]
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "0\n"
            process.send_signal(signal.SIGINT)
            try:
                _, errors = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired as expired:
                # Python drops an interrupt that comes while it runs the callback of a weak reference.
                if b"Exception ignored in" not in (expired.stderr or b""):
                    raise
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        assert process.returncode in (1, -signal.SIGINT)
        # FFCV's iterator may complain after it if the interrupt met its constructor.
        assert "\nKeyboardInterrupt\n" in errors

    def test_after_a_fork_a_new_loop_works_and_the_old_one_says_why_not(
        self, digits_beton: Path, simclr: AugmentationConfig
    ) -> None:
        loader = two_views(digits_beton, simclr, num_workers=2)
        expected = epoch_digest(two_views(digits_beton, simclr))
        batches = iter(loader)
        next(batches)

        def in_child(answers: "multiprocessing.Queue[str]") -> None:
            try:
                next(batches)
            except RuntimeError as error:
                answers.put(str(error))
            answers.put(epoch_digest(loader))

        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        child = context.Process(target=in_child, args=(answers,))
        with no_hang():
            child.start()
            assert "began before the fork" in answers.get(timeout=PATIENCE)
            assert answers.get(timeout=PATIENCE) == expected
            child.join()
        assert child.exitcode == 0
        assert len(list(batches)) == len(loader) - 1
        assert loader_threads() == []

    def test_without_the_os_cache_leaving_early_leaves_no_thread(
        self, digits_beton: Path, simclr: AugmentationConfig
    ) -> None:
        for _ in two_views(digits_beton, simclr, num_workers=2, os_cache=False):
            break
        assert loader_threads() == []

    def test_a_batch_larger_than_the_data_is_refused(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        with pytest.raises(InputError, match=r"2048.*1437"):
            two_views(digits_beton, simclr, batch_size=2048)

    def test_a_damaged_beton_is_refused(self, tmp_path: Path, simclr: AugmentationConfig) -> None:
        with pytest.raises(InputError, match=r"none\.beton"):
            two_views(tmp_path / "none.beton", simclr)

    def test_an_exception_in_a_worker_reaches_the_caller(
        self, digits_beton: Path, simclr: AugmentationConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise ArithmeticError("kernel failed")

        monkeypatch.setattr(decoder, "make_views", fail)
        with no_hang(), pytest.raises(ArithmeticError, match="kernel failed"):
            list(two_views(digits_beton, simclr, num_workers=2))
        assert loader_threads() == []

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_the_death_of_ffcv_s_thread_is_noticed(
        self, digits_beton: Path, simclr: AugmentationConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*_: object) -> None:
            raise ArithmeticError

        monkeypatch.setattr(loader_module.EpochIterator, "run_pipeline", die)
        with no_hang(), pytest.raises(RuntimeError, match="thread ended"):
            list(two_views(digits_beton, simclr))

    @pytest.mark.parametrize("batches", [1, 2, 10, 11])
    def test_leaving_the_loop_early_leaves_no_thread(
        self, digits_beton: Path, simclr: AugmentationConfig, batches: int
    ) -> None:
        with no_hang():
            for number, _ in enumerate(two_views(digits_beton, simclr, num_workers=2), start=1):
                if number == batches:
                    break
        assert loader_threads() == []

    def test_a_finished_epoch_leaves_no_thread(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        list(two_views(digits_beton, simclr, num_workers=2))
        assert loader_threads() == []

    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_torch_keeps_its_thread_count(self, digits_beton: Path, simclr: AugmentationConfig, threads: int) -> None:
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            for _ in two_views(digits_beton, simclr, num_workers=2):
                assert torch.get_num_threads() == threads
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)

    def test_importing_keeps_torch_s_thread_count(self) -> None:
        script = (
            "import torch; torch.set_num_threads(3); import dhel_kcl.data.loader; "
            "assert torch.get_num_threads() == 3, torch.get_num_threads()"
        )
        subprocess.run([sys.executable, "-c", script], check=True)

    def test_two_loaders_can_take_turns(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        expected = [epoch_digest(two_views(digits_beton, simclr, seed=seed)) for seed in (0, 1)]
        loaders = [two_views(digits_beton, simclr, seed=seed, num_workers=2) for seed in (0, 1)]
        pairs = list(zip(*loaders, strict=True))
        assert [digest_of(*batches) for batches in zip(*pairs, strict=True)] == expected

    def test_one_loader_can_be_iterated_twice_at_once(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        loader = two_views(digits_beton, simclr)
        for left, right in zip(loader, loader, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("stop_after", [None, 3])
def test_cuda_batches_are_those_of_the_cpu(
    digits_beton: Path, simclr: AugmentationConfig, stop_after: int | None
) -> None:
    on_gpu = two_views(digits_beton, simclr, device="cuda", num_workers=2)
    for number, (ours, theirs) in enumerate(zip(on_gpu, two_views(digits_beton, simclr), strict=True)):
        assert on_gpu.state_dict()["batch"] == (number + 1) % len(on_gpu)
        for a, b in zip(ours, theirs, strict=True):
            assert a.device.type == "cuda"
            torch.testing.assert_close(a.cpu(), b, rtol=1e-7, atol=0)
        if number == stop_after:
            break
    assert loader_threads() == []
