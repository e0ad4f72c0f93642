import itertools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from scipy.ndimage import gaussian_filter
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from dhel_kcl.data import augment as kernels
from dhel_kcl.seeding import derive_seed

DRAWS = 4000
SIGNIFICANCE = 1e-3
PIL_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def keys(epoch: int = 0, view: int = 0, first_image: int = 0) -> list[np.uint64]:
    epoch_key = np.uint64(derive_seed(0, "augmentation", epoch))
    images = range(first_image, first_image + DRAWS)
    return [np.uint64(kernels.view_key(epoch_key, np.uint64(image), np.uint64(view))) for image in images]


KEYS = keys()


def difference(ours: np.ndarray, theirs: object) -> np.ndarray:
    return np.abs(ours.astype(int) - np.asarray(theirs).astype(int))


def assert_within_one_level(ours: np.ndarray, theirs: object, overshoots: bool) -> None:
    """Where a bicubic pass overshoots black or white, what is cut off depends on which pass comes first."""
    levels = difference(ours, theirs)
    assert (levels > 1).mean() <= (0.01 if overshoots else 0)
    assert levels.max() <= (8 if overshoots else 1)


def to_planes(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def from_planes(planes: np.ndarray) -> np.ndarray:
    return planes.transpose(1, 2, 0)


def changed(operation: Callable[..., None], image: np.ndarray, *arguments: object) -> np.ndarray:
    """An image after a kernel that works in place."""
    planes = to_planes(image)
    operation(planes, *arguments)
    return from_planes(planes)


def resized(image: np.ndarray, height: int, width: int, resampling: str) -> np.ndarray:
    planes = np.empty((3, height, width), np.uint8)
    kernels.resize_window(image, height, width, 0, 0, kernels.FILTERS[resampling], planes)
    return from_planes(planes)


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def from_tensor(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


class TestRandomNumbers:
    def test_splitmix64_gives_the_published_sequence(self) -> None:
        # First outputs for seed 1234567, from the reference implementation's test vectors.
        expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
        assert [int(kernels.splitmix64(np.uint64(1234567), np.uint64(n))) for n in range(3)] == expected

    @pytest.mark.parametrize("operation", [kernels.CROP, kernels.FLIP, kernels.BLUR_SIGMA])
    def test_draws_are_uniform(self, operation: int) -> None:
        draws = [kernels.uniform(key, operation, 0) for key in KEYS]
        assert stats.kstest(draws, "uniform").pvalue > SIGNIFICANCE

    def test_streams_of_operations_views_images_and_epochs_are_uncorrelated(self) -> None:
        streams = [
            [kernels.uniform(key, operation, 0) for key in of_keys]
            for of_keys, operation in [
                (KEYS, kernels.FLIP),
                (KEYS, kernels.HUE),
                (keys(view=1), kernels.FLIP),
                (keys(epoch=1), kernels.FLIP),
                (keys(first_image=1), kernels.FLIP),
            ]
        ]
        correlations = np.corrcoef(streams)[np.triu_indices(len(streams), 1)]
        assert np.abs(correlations).max() < 4 / math.sqrt(DRAWS)


class TestShift:
    @pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -2), (-4, 4), (15, -15), (1, 0)])
    def test_it_is_a_crop_of_the_image_padded_by_its_reflection(
        self, photographs: list[np.ndarray], down: int, right: int
    ) -> None:
        image = resized(photographs[0], 16, 16, "bicubic")
        padded = F.pad(as_tensor(image), [15], padding_mode="reflect")
        theirs = F.crop(padded, 15 - down, 15 - right, 16, 16)
        assert np.array_equal(changed(kernels.shift_reflected, image, down, right), from_tensor(theirs))

    @pytest.mark.parametrize("axis", [0, 1])
    def test_every_shift_is_as_likely_as_any_other(self, axis: int) -> None:
        offsets = [int(kernels.shift_offset(key, axis, 4)) for key in KEYS]
        counts = np.bincount(np.array(offsets) + 4, minlength=9)
        assert len(counts) == 9
        assert stats.chisquare(counts).pvalue > SIGNIFICANCE

    def test_rows_and_columns_shift_independently(self) -> None:
        offsets = [[kernels.shift_offset(key, axis, 4) for key in KEYS] for axis in (0, 1)]
        assert abs(np.corrcoef(offsets)[0, 1]) < 4 / math.sqrt(DRAWS)


class TestCrop:
    @pytest.mark.parametrize("resampling", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("size", [8, 32, 80])
    def test_resized_crops_equal_pil_s_two_passes(
        self, photographs: list[np.ndarray], resampling: str, size: int
    ) -> None:
        for image, key in itertools.product(photographs, KEYS[:5]):
            top, left, height, width = kernels.crop_box(key, *image.shape[:2], 0.08, 1.0, 3 / 4, 4 / 3)
            box = image[top : top + height, left : left + width]
            ours = resized(box, size, size, resampling)
            theirs = Image.fromarray(np.ascontiguousarray(box))
            # Recent versions of PIL choose the order of the passes by the shape; the classic one is rows first.
            for target in ((size, height), (size, size)):
                theirs = theirs.resize(target, PIL_FILTERS[resampling])
            assert difference(ours, theirs).max() == 0

    @pytest.mark.parametrize("resampling", ["bilinear", "bicubic"])
    def test_resized_images_match_torchvision_on_pil_images_and_tensors(
        self, photographs: list[np.ndarray], resampling: str
    ) -> None:
        for image in photographs:
            ours = resized(image, 32, 32, resampling)
            mode = InterpolationMode(resampling)
            for theirs in (
                np.asarray(F.resize(Image.fromarray(image), [32, 32], mode)),
                from_tensor(F.resize(as_tensor(image), [32, 32], mode, antialias=True)),
            ):
                assert_within_one_level(ours, theirs, overshoots=resampling == "bicubic")

    @pytest.mark.parametrize(("height", "width"), [(32, 32), (300, 400), (40, 200)])
    def test_boxes_are_distributed_as_torchvision_s(self, height: int, width: int) -> None:
        ours = np.array([kernels.crop_box(key, height, width, 0.08, 1.0, 3 / 4, 4 / 3) for key in KEYS])
        torch.manual_seed(0)
        image = torch.empty(3, height, width)
        theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(DRAWS)])
        for of_box in (
            lambda box: box[:, 0],
            lambda box: box[:, 1],
            lambda box: box[:, 2] * box[:, 3] / (height * width),
            lambda box: box[:, 3] / box[:, 2],
        ):
            assert stats.ks_2samp(of_box(ours), of_box(theirs)).pvalue > SIGNIFICANCE

    def test_area_and_ratio_of_boxes_that_always_fit_have_the_stated_laws(self) -> None:
        side = 10_000
        boxes = np.array([kernels.crop_box(key, side, side, 0.1, 0.4, 0.5, 2.0) for key in KEYS])
        area = boxes[:, 2] * boxes[:, 3] / side**2
        log_ratio = np.log2(boxes[:, 3] / boxes[:, 2])
        assert stats.kstest(area, stats.uniform(0.1, 0.3).cdf).pvalue > SIGNIFICANCE
        assert stats.kstest(log_ratio, stats.uniform(-1, 2).cdf).pvalue > SIGNIFICANCE

    @pytest.mark.parametrize(("height", "width"), [(1000, 10), (10, 1000)])
    def test_an_image_that_no_box_fits_gets_the_central_one(self, height: int, width: int) -> None:
        top, left, box_height, box_width = kernels.crop_box(KEYS[0], height, width, 0.9, 1.0, 3 / 4, 4 / 3)
        assert sorted((box_height, box_width)) == [10, 13]
        assert (top, left) == ((height - box_height) // 2, (width - box_width) // 2)

    @pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1)])
    @pytest.mark.parametrize(("ratio_low", "ratio_high"), [(20.0, 30.0), (1 / 30, 1 / 20)])
    def test_the_central_box_of_a_thin_image_has_a_pixel_at_least(
        self, height: int, width: int, ratio_low: float, ratio_high: float
    ) -> None:
        top, left, box_height, box_width = kernels.crop_box(KEYS[0], height, width, 0.9, 1.0, ratio_low, ratio_high)
        assert 1 <= box_height <= height - top
        assert 1 <= box_width <= width - left


class TestEvaluationView:
    @pytest.mark.parametrize("size", [24, 40])
    def test_matches_torchvision_s_resize_and_centre_crop(self, photographs: list[np.ndarray], size: int) -> None:
        for image in photographs:
            shorter_side = size + 5
            ours = np.empty((3, size, size), np.uint8)
            kernels.evaluation_view(image, shorter_side, ours)
            whole = F.resize(Image.fromarray(image), shorter_side, InterpolationMode.BICUBIC)
            assert_within_one_level(from_planes(ours), F.center_crop(whole, [size, size]), overshoots=True)

    def test_leaves_an_image_of_the_right_size_alone(self, photographs: list[np.ndarray]) -> None:
        ours = np.empty((3, 32, 32), np.uint8)
        kernels.evaluation_view(photographs[0], 37, ours)
        np.testing.assert_array_equal(from_planes(ours), photographs[0])


class TestColour:
    @pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
    @pytest.mark.parametrize("factor", [0.0, 0.2, 0.61, 1.0, 1.4, 1.8])
    def test_enhancements_match_pil_and_tensors(self, photographs: list[np.ndarray], name: str, factor: float) -> None:
        theirs = getattr(F, f"adjust_{name}")
        for image in photographs:
            ours = changed(getattr(kernels, f"adjust_{name}"), image, factor)
            assert difference(ours, theirs(Image.fromarray(image), factor)).max() <= 1
            assert difference(ours, from_tensor(theirs(as_tensor(image), factor))).max() <= 1

    @pytest.mark.parametrize("shift", [-0.5, -0.2, -0.1, -0.003, 0.0, 0.004, 0.05, 0.1, 0.3, 0.5])
    def test_hue_equals_pil(self, photographs: list[np.ndarray], shift: float) -> None:
        for image in photographs:
            ours = changed(kernels.adjust_hue, image, shift)
            assert difference(ours, F.adjust_hue(Image.fromarray(image), shift)).max() == 0

    @pytest.mark.parametrize("shift", [-0.1, 0.0, 0.37])
    def test_hue_of_every_colour_is_pil_s(self, shift: float) -> None:
        # Of all 2^24 colours, 16 fall on a half that PIL rounds up and we down.
        second, third = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
        different = 0
        for red in range(256):
            colours = np.stack([np.full_like(second, red), second, third], axis=2).astype(np.uint8)
            levels = difference(
                changed(kernels.adjust_hue, colours, shift), F.adjust_hue(Image.fromarray(colours), shift)
            )
            assert levels.max() <= 1
            different += int(levels.any(2).sum())
        assert different <= 16

    @pytest.mark.parametrize("shift", [-0.5, -0.1, 0.05, 0.1, 0.3])
    def test_hue_is_within_half_a_level_of_tensors_on_cifar(self, cifar_images: np.ndarray, shift: float) -> None:
        # The tensor version does not round HSV to 8 bits.
        theirs = F.adjust_hue(torch.from_numpy(cifar_images).permute(0, 3, 1, 2), shift).permute(0, 2, 3, 1)
        ours = np.stack([changed(kernels.adjust_hue, image, shift) for image in cifar_images])
        assert difference(ours, theirs).mean() <= 0.5

    def test_grayscale_equals_pil(self, photographs: list[np.ndarray]) -> None:
        for image in photographs:
            ours = changed(kernels.to_grayscale, image)
            assert difference(ours, F.to_grayscale(Image.fromarray(image), 3)).max() == 0

    @pytest.mark.parametrize("threshold", [0, 1, 128, 255, 256])
    def test_solarisation_equals_torchvision(self, photographs: list[np.ndarray], threshold: int) -> None:
        for image in photographs:
            ours = changed(kernels.solarize, image, threshold)
            assert difference(ours, F.solarize(Image.fromarray(image), threshold)).max() == 0
            if threshold <= 255:  # the tensor version refuses more
                assert difference(ours, from_tensor(F.solarize(as_tensor(image), threshold))).max() == 0

    def test_every_order_of_the_four_is_equally_likely(self) -> None:
        orders = [tuple(kernels.jitter_order(key)) for key in KEYS]
        _, counts = np.unique(orders, axis=0, return_counts=True)
        assert len(counts) == math.factorial(4)
        assert stats.chisquare(counts).pvalue > SIGNIFICANCE

    @pytest.mark.parametrize(
        ("operation", "strength", "low", "high"),
        [
            (kernels.BRIGHTNESS, 0.4, 0.6, 1.4),
            (kernels.CONTRAST, 0.8, 0.2, 1.8),
            (kernels.SATURATION, 1.5, 0.0, 2.5),
            (kernels.HUE, 0.1, -0.1, 0.1),
        ],
    )
    def test_factors_are_uniform_as_in_torchvision(
        self, operation: int, strength: float, low: float, high: float
    ) -> None:
        factors = [kernels.jitter_factor(key, operation, strength) for key in KEYS]
        assert stats.kstest(factors, stats.uniform(low, high - low).cdf).pvalue > SIGNIFICANCE


class TestBlurAndFlip:
    @pytest.mark.parametrize(("size", "expected"), [(8, 3), (32, 3), (64, 7), (96, 9), (224, 23)])
    def test_kernel_is_a_tenth_of_the_image_and_odd(self, size: int, expected: int) -> None:
        assert kernels.blur_kernel_size(size) == expected

    @pytest.mark.parametrize("kernel_size", [3, 9, 23])
    @pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
    def test_matches_torchvision(self, photographs: list[np.ndarray], kernel_size: int, sigma: float) -> None:
        for image in photographs:
            ours = changed(kernels.gaussian_blur, image, kernel_size, sigma)
            theirs = F.gaussian_blur(as_tensor(image), [kernel_size, kernel_size], [sigma, sigma])
            assert difference(ours, from_tensor(theirs)).max() <= 1

    @pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1)])
    def test_a_side_of_one_pixel_is_its_own_reflection(
        self, photographs: list[np.ndarray], height: int, width: int
    ) -> None:
        image = photographs[0][:height, :width]
        expected = gaussian_filter(image.astype(float), sigma=(2.0, 2.0, 0), mode="mirror", radius=(1, 1, 0))
        for _ in range(3):  # what was in the memory before must not matter
            np.full(1000, 255, np.float32)
            assert difference(changed(kernels.gaussian_blur, image, 3, 2.0), np.rint(expected)).max() <= 1

    @pytest.mark.parametrize("kind", ["float32", "uint8"])
    @pytest.mark.parametrize("mirrored", [False, True])
    def test_interleaving_mirrors_and_translates_levels(
        self, photographs: list[np.ndarray], kind: str, mirrored: bool
    ) -> None:
        image, levels = photographs[0], kernels.LEVELS[kind]
        out = np.empty(image.shape, levels.dtype)
        kernels.interleave(to_planes(image), mirrored, levels, out)
        expected = image[:, ::-1] if mirrored else image
        np.testing.assert_array_equal(out, expected if kind == "uint8" else expected / np.float32(255))


class TestCache:
    """Where compiled kernels are kept; what is there is unpickled, so nobody else may have put it there."""

    PROGRAM = (
        "import sys, numba\n"
        "from dhel_kcl.errors import InputError\n"
        "try:\n"
        "    from dhel_kcl.data import augment as kernels\n"
        "except InputError as error:\n"
        "    sys.exit(f'error: {error}')\n"
        "kernels.splitmix64(1, 2)\n"
        "print(kernels.__file__, kernels.splitmix64._cache.cache_path, sep='\\n')\n"
    )

    @pytest.fixture
    def package(self, tmp_path: Path) -> Path:
        """A folder with a copy of the package, which nothing was compiled from."""
        source = Path(kernels.__file__).parents[1]
        shutil.copytree(source, tmp_path / "src" / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / "home").mkdir()
        (tmp_path / "tmp").mkdir()
        return tmp_path / "src"

    def compiled(self, package: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Import the kernels of the copy and compile one, by a user who cannot write where it is forbidden."""
        command = [sys.executable, "-c", self.PROGRAM]
        if os.geteuid() == 0:
            if shutil.which("setpriv") is None:
                pytest.skip("root may write everywhere, and there is no setpriv to take that away")
            command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
        folder = package.parent
        inherited = {name: os.environ[name] for name in os.environ if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
        own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(package)}
        return subprocess.run(
            command,
            cwd=folder,
            env=inherited | own | {"PYTHONDONTWRITEBYTECODE": "1"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def forbid(self, *folders: Path) -> None:
        for folder in folders:
            for path in (folder, *folder.rglob("*")):
                path.chmod(path.stat().st_mode & 0o555)

    def test_it_is_beside_the_code_where_that_can_be_written(self, package: Path) -> None:
        outcome = self.compiled(package)
        assert outcome.stdout.splitlines() == [
            str(package / "dhel_kcl" / "data" / "augment.py"),
            str(package / "dhel_kcl" / "data" / "__pycache__"),
        ], outcome.stderr

    def test_it_is_the_users_where_the_code_is_read_only(self, package: Path) -> None:
        self.forbid(package)
        outcome = self.compiled(package)
        assert outcome.stdout.splitlines()[1].startswith(f"{package.parent}/home/.cache/numba/"), outcome.stderr

    def test_without_a_home_as_well_it_is_a_folder_that_nobody_else_can_use(self, package: Path) -> None:
        self.forbid(package, package.parent / "home")
        outcome = self.compiled(package)
        folder = package.parent / "tmp" / f"dhel-kcl-numba-{os.geteuid()}"
        assert outcome.stdout.splitlines()[1].startswith(f"{folder}/"), outcome.stderr
        assert list(folder.rglob("augment.splitmix64*.nbc"))
        folder.chmod(0o777)
        outcome = self.compiled(package)
        assert outcome.stderr.startswith(f"error: {folder}: must be a folder")
        assert outcome.stderr.count("\n") == 1

    def test_a_folder_that_the_user_names_is_used_or_refused_in_one_line(self, package: Path) -> None:
        chosen = package.parent / "chosen"
        outcome = self.compiled(package, NUMBA_CACHE_DIR=str(chosen))
        assert outcome.stdout.splitlines()[1].startswith(f"{chosen}/"), outcome.stderr
        self.forbid(chosen)
        outcome = self.compiled(package, NUMBA_CACHE_DIR=str(chosen))
        assert outcome.stderr == (
            f"error: {chosen}: NUMBA_CACHE_DIR cannot be written (Permission denied); name another\n"
        )
