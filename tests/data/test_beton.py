import errno
import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ffcv.writer
import numpy as np
import pytest
import torch
from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dhel_kcl.artifacts import sha256_file
from dhel_kcl.config import DataConfig
from dhel_kcl.data import beton
from dhel_kcl.data.beton import open_beton, sidecar_path, write_beton
from dhel_kcl.data.loader import OneViewLoader
from dhel_kcl.data.sources import ImageSource, open_source, read_image
from dhel_kcl.errors import InputError
from dhel_kcl.plan import _JPEG_BYTES, _JPEG_SIDE


def folder_source(root: Path) -> ImageSource:
    return open_source(DataConfig(kind="imagefolder", root=root), "train")


class TestWriting:
    @pytest.mark.parametrize("num_workers", [1, 2, 3])
    def test_the_same_images_give_the_same_bytes(self, digits_beton: Path, tmp_path: Path, num_workers: int) -> None:
        path = tmp_path / "again.beton"
        write_beton(open_source(DataConfig(kind="digits"), "train"), path, num_workers=num_workers)
        assert path.read_bytes() == digits_beton.read_bytes()
        assert sidecar_path(path).read_bytes() == sidecar_path(digits_beton).read_bytes()

    def test_jpeg_bytes_do_not_depend_on_workers(self, photo_folder: Path, tmp_path: Path) -> None:
        for num_workers in (1, 3):
            write_beton(
                folder_source(photo_folder), tmp_path / f"{num_workers}.beton", storage="jpg", num_workers=num_workers
            )
        assert (tmp_path / "1.beton").read_bytes() == (tmp_path / "3.beton").read_bytes()

    def test_the_sidecar_describes_the_beton(self, photo_folder: Path, tmp_path: Path) -> None:
        path = tmp_path / "photos.beton"
        info = write_beton(folder_source(photo_folder), path, storage="jpg", jpeg_quality=80, max_resolution=64)
        assert info.num_images == 8
        assert info.class_counts == {"china": 4, "flower": 4}
        assert (info.storage, info.jpeg_quality, info.max_resolution) == ("jpg", 80, 64)
        assert (info.min_size, info.max_size) == ((32, 24), (64, 64))
        assert info.bytes == path.stat().st_size
        assert info.skipped == []
        assert info.versions["ffcv"] == "1.0.2"
        assert info.fields == {"image": "RGBImageField", "label": "IntField"}
        assert open_beton(path) == info
        assert json.loads((tmp_path / "photos.beton.json").read_text(encoding="utf-8"))["sha256"] == info.sha256

    def test_one_progress_bar_and_only_on_stderr(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        write_beton(open_source(DataConfig(kind="digits"), "test"), tmp_path / "digits.beton")
        out, err = capfd.readouterr()
        assert out == ""
        assert len(err.strip().splitlines()) == 1
        assert "digits.beton" in err
        assert "360/360" in err

    def test_raw_storage_refuses_several_sizes(self, photo_folder: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"32x32.*96x64.*storage: jpg"):
            write_beton(folder_source(photo_folder), tmp_path / "raw.beton")

    def test_an_image_larger_than_ffcv_s_page_fits(self, tmp_path: Path) -> None:
        large = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
        for storage in ("raw", "jpg"):
            source = ImageSource(["only"], np.zeros(2, np.int64), "noise", ["0", "1"], lambda _: large)
            info = write_beton(source, tmp_path / "large.beton", storage=storage, jpeg_quality=100)
            assert info.max_size == (1000, 1000)

    def test_unlabelled_images_are_counted_apart(self, tmp_path: Path) -> None:
        image = np.zeros((4, 4, 3), np.uint8)
        source = ImageSource(["a", "b"], np.array([-1, 0, -1]), "none", ["0", "1", "2"], lambda _: image)
        info = write_beton(source, tmp_path / "some.beton")
        assert info.class_counts == {"a": 1, "b": 0, beton.UNLABELLED: 2}


class TestBrokenImages:
    @pytest.fixture
    def broken(self, photo_folder: Path) -> Path:
        whole = (photo_folder / "train" / "china" / "1.jpg").read_bytes()
        (photo_folder / "train" / "china" / "1.jpg").write_bytes(whole[: len(whole) // 2])
        (photo_folder / "train" / "flower" / "empty.png").write_bytes(b"")
        return photo_folder

    @pytest.mark.parametrize("num_workers", [1, 2])
    def test_all_are_named_and_nothing_is_written(self, broken: Path, tmp_path: Path, num_workers: int) -> None:
        with pytest.raises(InputError, match=r"2 of 9 images.*china/1\.jpg.*flower/empty\.png") as caught:
            write_beton(
                folder_source(broken), tmp_path / "out" / "photos.beton", storage="jpg", num_workers=num_workers
            )
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_they_can_be_skipped_and_are_recorded(self, broken: Path, tmp_path: Path) -> None:
        path = tmp_path / "photos.beton"
        info = write_beton(folder_source(broken), path, storage="jpg", on_corrupt="skip")
        assert info.num_images == 7
        assert info.class_counts == {"china": 3, "flower": 4}
        assert [skipped.split(" ")[0].rsplit("/", 1)[1] for skipped in info.skipped] == ["1.jpg", "empty.png"]

    def test_nothing_left_is_refused(self, tmp_path: Path) -> None:
        def fail(_: int) -> np.ndarray:
            raise OSError("broken")

        source = ImageSource(["a"], np.zeros(1, np.int64), "nowhere", ["0"], fail)
        with pytest.raises(InputError, match="no image to write"):
            write_beton(source, tmp_path / "none.beton", on_corrupt="skip")


class TestInterruptedWriting:
    def failing_source(self, error: BaseException) -> ImageSource:
        reads = iter(range(100))

        def read(_: int) -> np.ndarray:
            if next(reads) >= 15:
                raise error
            return np.zeros((4, 4, 3), np.uint8)

        return ImageSource(["a"], np.zeros(10, np.int64), "nowhere", [str(i) for i in range(10)], read)

    def test_a_full_disk_is_said_and_leaves_nothing(self, tmp_path: Path) -> None:
        source = self.failing_source(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(InputError, match="no space left"):
            write_beton(source, tmp_path / "full.beton")
        assert list(tmp_path.iterdir()) == []

    def test_a_failed_rewrite_leaves_the_old_beton(self, tmp_path: Path) -> None:
        path = tmp_path / "digits.beton"
        info = write_beton(open_source(DataConfig(kind="digits"), "test"), path)
        with pytest.raises(KeyboardInterrupt):
            write_beton(self.failing_source(KeyboardInterrupt()), path)
        assert open_beton(path) == info


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-24])


def change_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_a_byte_of_the_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[16] ^= 1
    path.write_bytes(content)


class TestGuard:
    @pytest.fixture
    def copy(self, digits_copy: Path) -> Path:
        open_beton(digits_copy)
        return digits_copy

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda path: path.unlink(), r"copy\.beton: no such beton"),
            (lambda path: path.write_bytes(b""), r"copy\.beton: the beton is empty"),
            (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" * 1000), r"copy\.beton: not an FFCV beton"),
            (lambda path: path.write_bytes(b"\x02"), r"copy\.beton: not an FFCV beton"),
            (truncate, r"copy\.beton: the beton has .* bytes but its sidecar says"),
            (change_one_byte, r"copy\.beton: the beton changed"),
            (change_a_byte_of_the_header, r"copy\.beton: the beton changed"),
            (lambda path: sidecar_path(path).unlink(), r"copy\.beton\.json: the beton's sidecar is missing"),
            (
                lambda path: sidecar_path(path).write_text("{}", encoding="utf-8"),
                r"copy\.beton\.json: not a beton's sidecar",
            ),
            (lambda path: sidecar_path(path).write_text("{", encoding="utf-8"), r"copy\.beton\.json: not valid JSON"),
        ],
    )
    def test_damage_is_named_with_its_remedy(self, copy: Path, damage: Callable[[Path], object], message: str) -> None:
        damage(copy)
        with pytest.raises(InputError, match=message) as caught:
            open_beton(copy)
        assert "\n" not in str(caught.value)
        assert "again" in str(caught.value) or "run the command" in str(caught.value)

    def test_a_folder_is_not_a_beton(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not a file"):
            open_beton(tmp_path)

    def test_an_unchanged_file_is_hashed_once(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(beton, "sha256_file", lambda _: pytest.fail("hashed again"))
        open_beton(copy)


def sign(path: Path) -> None:
    """Have the sidecar vouch for whatever the file now holds."""
    values = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
    values |= {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    sidecar_path(path).write_text(json.dumps(values), encoding="utf-8")


def overwrite(path: Path, offset: int, value: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)


@dataclass(frozen=True)
class Places:
    """Where things are in a beton, read with FFCV's own types."""

    record: int
    table: int

    @classmethod
    def of(cls, path: Path) -> "Places":
        header = np.fromfile(path, HeaderType, count=1)[0]
        return cls(HeaderType.itemsize + 2 * FieldDescType.itemsize, int(header["alloc_table_ptr"]))


def eight_bytes(value: int) -> bytes:
    return value.to_bytes(8, "little")


class TestStructure:
    """A sidecar can vouch for a file that FFCV cannot read; then the guard still has to notice."""

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda path, at: overwrite(path, 8, eight_bytes(5)), "counts 5 images instead of 1437"),
            (lambda path, at: overwrite(path, 4, eight_bytes(12345)[:4]), "page size 12345 is not a power of two"),
            (lambda path, at: overwrite(path, 4, eight_bytes(1 << 25)[:4]), "the sidecar gives another page size"),
            (lambda path, at: overwrite(path, 16, eight_bytes(1 << 62)), "allocation table is not where"),
            (lambda path, at: truncate(path), "allocation table is not where"),
            (lambda path, at: overwrite(path, 24, b"\x05"), "fields are not an image and a label"),
            (lambda path, at: overwrite(path, at.record, b"\x09"), "not stored as raw|size of an image|not where"),
            (lambda path, at: overwrite(path, at.table, eight_bytes(7)), "does not list the images in their order"),
            (
                lambda path, at: overwrite(path, at.table + 8, eight_bytes(1 << 63)),
                "not where the allocation table says",
            ),
            (lambda path, at: overwrite(path, at.table + 16, eight_bytes(1 << 63)), "lies outside of the pages"),
            (
                lambda path, at: overwrite(path, at.table + 16, eight_bytes(191)),
                "more or fewer bytes than its pixels need",
            ),
            (
                lambda path, at: overwrite(path, at.table + 16, eight_bytes(500)),
                "outside of its page or over another one",
            ),
        ],
    )
    def test_a_vouched_for_file_that_ffcv_would_choke_on_is_refused(
        self, digits_copy: Path, damage: Callable[[Path, Places], None], message: str
    ) -> None:
        damage(digits_copy, Places.of(digits_copy))
        sign(digits_copy)
        with pytest.raises(InputError, match=message):
            open_beton(digits_copy)

    def test_a_jpeg_that_is_cut_off_is_an_error_not_the_image_before_it(
        self, photo_folder: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "photos.beton"
        write_beton(folder_source(photo_folder), path, storage="jpg")
        first = int(np.fromfile(path, ALLOC_TABLE_TYPE, offset=Places.of(path).table)[3]["ptr"])
        overwrite(path, first, bytes(200))
        sign(path)
        with pytest.raises(InputError, match="image 3 of the beton is not a whole JPEG"):
            list(OneViewLoader(path, batch_size=4, image_size=32))


def edits(size: int, places: Places) -> st.SearchStrategy[list[tuple[int, bytes]]]:
    """Offsets, most of them where FFCV reads numbers, and what to write there."""
    offset = st.one_of(
        st.integers(0, 40),
        st.integers(places.record, places.record + 400),
        st.integers(places.table, size - 1),
        st.integers(0, size - 1),
    )
    numbers = st.sampled_from([0, 1, 3, 1 << 12, 1 << 16, size, 1 << 31, 1 << 63, (1 << 64) - 1]).map(eight_bytes)
    return st.lists(st.tuples(offset, st.one_of(numbers, st.binary(min_size=1, max_size=16))), max_size=3)


@pytest.fixture(scope="module", params=["raw", "jpg"])
def small_beton(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, photographs: list[np.ndarray]
) -> Path:
    images = [image[:24, :24] for image in photographs]
    source = ImageSource(
        classes=["a", "b"],
        labels=np.arange(len(images)) % 2,
        origin="crops of photographs",
        names=[str(number) for number in range(len(images))],
        read=lambda index: images[index],
    )
    path = tmp_path_factory.mktemp("fuzz") / f"{request.param}.beton"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beton, "MIN_PAGE_BYTES", 1 << 12)  # for files of a few kilobytes
        patch.setattr(ffcv.writer, "MIN_PAGE_SIZE", 1 << 12)
        write_beton(source, path, storage=request.param)
    return path


def test_no_mutated_file_crashes_the_interpreter_or_passes_unnoticed(small_beton: Path, tmp_path: Path) -> None:
    """Five thousand mutations of each kind of beton; those that a sidecar vouches for are also loaded if accepted."""
    original, places = small_beton.read_bytes(), Places.of(small_beton)
    sidecar = json.loads(sidecar_path(small_beton).read_text(encoding="utf-8"))
    outcomes: Counter[str] = Counter()
    numbers = itertools.count()

    @settings(
        max_examples=5000, database=None, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        changes=edits(len(original), places),
        cut=st.one_of(st.none(), st.integers(0, len(original))),
        tail=st.binary(max_size=48),
        vouched=st.booleans(),
        sidecar_edit=st.one_of(
            st.just({}),
            st.fixed_dictionaries({"num_images": st.integers(-1, 1 << 40)}),
            st.fixed_dictionaries({"page_bytes": st.integers(0, 1 << 40)}),
            st.fixed_dictionaries({"storage": st.sampled_from(["raw", "jpg"])}),
            st.fixed_dictionaries({"classes": st.lists(st.text(max_size=3), max_size=2)}),
        ),
    )
    def mutate(
        changes: list[tuple[int, bytes]], cut: int | None, tail: bytes, vouched: bool, sidecar_edit: dict[str, object]
    ) -> None:
        content = bytearray(original)
        for offset, value in changes:
            content[offset : offset + len(value)] = value
        content = content[:cut] + tail if cut is not None else content
        path = tmp_path / f"{next(numbers)}.beton"  # a name of its own, since digests are remembered
        path.write_bytes(content)
        sidecar_path(path).write_text(json.dumps(sidecar | (sidecar_edit if vouched else {})), encoding="utf-8")
        if vouched:
            sign(path)
        try:
            open_beton(path)
            outcomes["accepted"] += 1
            assert vouched or content == original
            if content != original:
                batches = list(OneViewLoader(path, batch_size=4, image_size=8))
                assert sorted(torch.cat([index for _, _, index in batches]).tolist()) == list(range(8))
                outcomes["loaded"] += 1
        except InputError:
            outcomes["refused"] += 1
        finally:
            path.unlink()
            sidecar_path(path).unlink()

    mutate()
    assert outcomes["refused"] > 1000  # the mutations do damage, and some of it only shows in the pixels
    assert outcomes["loaded"] > 20


def test_plan_takes_a_photograph_for_as_large_as_photographs_are(imagenet_folder: Path) -> None:
    sizes = []
    for path in sorted(imagenet_folder.glob("train/*/*")):
        image = Image.fromarray(read_image(path))
        image.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=90)
        sizes.append(encoded.tell())
    assert np.mean(sizes) == pytest.approx(_JPEG_BYTES, rel=0.02)
