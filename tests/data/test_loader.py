import hashlib
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from ffcv.fields.rgb_image import encode_jpeg
from PIL import Image
from scipy import stats
from torchvision.transforms import functional as F

from dhel_kcl.config import AugmentationConfig, CropConfig, DataConfig
from dhel_kcl.data import loader as loader_module
from dhel_kcl.data.beton import write_beton
from dhel_kcl.data.loader import OneViewLoader, TwoViewLoader
from dhel_kcl.data.sources import open_source, read_image
from dhel_kcl.errors import InputError

DIGITS_TRAIN = 1437


def two_views(path: Path, augmentation: AugmentationConfig, **options: object) -> TwoViewLoader:
    arguments = {"batch_size": 128, "image_size": 8, "seed": 0, "shuffle": True} | options
    return TwoViewLoader(path, augmentation=augmentation, **arguments)


def epoch_digest(loader: TwoViewLoader) -> str:
    digest = hashlib.sha256()
    for batch in loader:
        for tensor in batch:
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread is not threading.main_thread()]


@contextmanager
def finished_within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


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


class TestDeterminism:
    def test_two_epochs_are_equal_for_any_workers_and_in_another_process(
        self, digits_beton: Path, simclr: AugmentationConfig
    ) -> None:
        one = two_views(digits_beton, simclr, num_workers=1)
        expected = [epoch_digest(one), epoch_digest(one)]
        assert expected[0] != expected[1]
        for num_workers in (2, 3):
            loader = two_views(digits_beton, simclr, num_workers=num_workers)
            assert [epoch_digest(loader), epoch_digest(loader)] == expected
        script = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from pathlib import Path\n"
            "from dhel_kcl.config import AugmentationConfig\n"
            "from test_loader import epoch_digest, two_views\n"
            "augmentation = AugmentationConfig.model_validate_json(sys.argv[3])\n"
            "loader = two_views(Path(sys.argv[2]), augmentation, num_workers=2)\n"
            "print(epoch_digest(loader), epoch_digest(loader))"
        )
        arguments = [str(Path(__file__).parent), str(digits_beton), simclr.model_dump_json()]
        result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        assert result.stdout.split() == expected

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


class TestAugmentationRates:
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


class TestRobustness:
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

        monkeypatch.setattr(loader_module, "make_views", fail)
        with finished_within(5), pytest.raises(ArithmeticError, match="kernel failed"):
            list(two_views(digits_beton, simclr, num_workers=2))
        assert loader_threads() == []

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_the_death_of_ffcv_s_thread_is_noticed(
        self, digits_beton: Path, simclr: AugmentationConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*_: object) -> None:
            raise ArithmeticError

        monkeypatch.setattr(loader_module.EpochIterator, "run_pipeline", die)
        with finished_within(5), pytest.raises(RuntimeError, match="thread ended"):
            list(two_views(digits_beton, simclr))

    @pytest.mark.parametrize("batches", [1, 2, 10, 11])
    def test_leaving_the_loop_early_leaves_no_thread(
        self, digits_beton: Path, simclr: AugmentationConfig, batches: int
    ) -> None:
        with finished_within(5):
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
        digests = [hashlib.sha256(), hashlib.sha256()]
        loaders = [two_views(digits_beton, simclr, seed=seed, num_workers=2) for seed in (0, 1)]
        for pair in zip(*loaders, strict=True):
            for digest, batch in zip(digests, pair, strict=True):
                for tensor in batch:
                    digest.update(tensor.contiguous().numpy().tobytes())
        assert [digest.hexdigest() for digest in digests] == expected

    def test_one_loader_can_be_iterated_twice_at_once(self, digits_beton: Path, simclr: AugmentationConfig) -> None:
        loader = two_views(digits_beton, simclr)
        for left, right in zip(loader, loader, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
