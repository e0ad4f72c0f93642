import io
import itertools
import json
import re
import resource
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import ffcv.writer
import numpy as np
import pytest
import torch
from ffcv.fields.rgb_image import RGBImageField, resizer
from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dhel_kcl.data import beton
from dhel_kcl.data.beton import open_beton, sidecar_path, write_beton
from dhel_kcl.data.loader import OneViewLoader
from dhel_kcl.data.sources import ImageSource, open_source, read_image
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import DataConfig
from dhel_kcl.files import sha256_file, sha256_json
from dhel_kcl.plan import _JPEG_BYTES, _JPEG_SIDE


def folder_source(root: Path) -> ImageSource:
    return open_source(DataConfig(kind="imagefolder", root=root), "train")


def of_images(
    images: Sequence[np.ndarray | Exception | list[np.ndarray | Exception]], names: list[str] | None = None
) -> ImageSource:
    """A source of one class; of a list, each reading gives the next, and the last one from then on."""
    readings = [list(image) if isinstance(image, list) else [image] for image in images]

    def read(index: int) -> np.ndarray:
        each = readings[index]
        image = each.pop(0) if len(each) > 1 else each[0]
        if isinstance(image, Exception):
            raise image
        return image

    names = names or [f"{number}.png" for number in range(len(images))]
    return ImageSource(["a"], np.zeros(len(images), np.int64), "memory", names, read)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


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
        with pytest.raises(InputError, match=r"no image to write.*0\.png \(OSError: broken\)"):
            write_beton(of_images([OSError("broken")]), tmp_path / "none.beton", on_corrupt="skip")

    @pytest.mark.parametrize(
        ("storage", "max_resolution", "image", "reason"),
        [
            ("raw", 4, noise(1, 8), r"8x1 pixels: too thin for max_resolution: 4"),
            ("jpg", 4, noise(8, 1), r"1x8 pixels: too thin for max_resolution: 4"),
            ("raw", None, noise(1, 65_536), r"65536x1 pixels: a side is longer than 65,535; set max_resolution"),
            ("jpg", None, noise(65_501, 1), r"1x65501 pixels: a side is longer than 65,500; set max_resolution"),
            ("raw", None, noise(0, 4), "no pixels"),
            ("raw", None, noise(4, 4)[..., 0], "not .H, W, 3. pixels"),
            ("raw", None, noise(4, 4)[..., :1], "not .H, W, 3. pixels"),
            ("raw", None, noise(4, 4).astype(np.int64), "not .H, W, 3. pixels of 8 bits"),
            ("raw", None, np.broadcast_to(np.uint8(0), (40_000, 40_000, 3)), "more than FFCV can store"),
            ("jpg", None, np.broadcast_to(np.uint8(0), (30_000, 30_000, 3)), "more than FFCV can store"),
            ("raw", None, [noise(4, 4), noise(5, 4)], "had 4x4 pixels and then 4x5"),
            ("jpg", None, [noise(4, 4), noise(2000, 2000)], "had 4x4 pixels and then 2000x2000"),
            ("jpg", None, [noise(4, 4), noise(4, 4)[..., :1]], "not .H, W, 3. pixels"),
            ("jpg", None, [noise(4, 4), OSError("image file is truncated")], "truncated"),
            ("raw", None, [noise(4, 4), FileNotFoundError(2, "No such file or directory")], "No such file"),
        ],
    )
    def test_one_that_cannot_be_stored_or_changed_meanwhile_is_named_or_skipped(
        self, storage: str, max_resolution: int | None, image: Any, reason: str, tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {"storage": storage, "max_resolution": max_resolution}
        images = [noise(4, 4), image, noise(4, 4)]
        with pytest.raises(InputError, match=rf"1 of 3 images cannot be used.*1\.png \(.*{reason}"):
            write_beton(of_images(images), tmp_path / "images.beton", **options)
        assert list(tmp_path.iterdir()) == []
        info = write_beton(of_images(images), tmp_path / "images.beton", on_corrupt="skip", **options)
        assert info.num_images == 2
        assert re.fullmatch(rf"1\.png \(.*{reason}.*\)", info.skipped[0])
        write_beton(of_images([images[0], images[2]]), tmp_path / "without.beton", **options)
        assert (tmp_path / "images.beton").read_bytes() == (tmp_path / "without.beton").read_bytes()

    @pytest.mark.parametrize(("storage", "side"), [("raw", 65_535), ("jpg", 65_500)])
    def test_the_longest_side_that_can_be_stored_is_read_back(self, storage: str, side: int, tmp_path: Path) -> None:
        path = tmp_path / "images.beton"
        assert write_beton(of_images([noise(1, side)]), path, storage=storage).max_size == (1, side)
        (views, _, _) = next(iter(OneViewLoader(path, batch_size=1, image_size=1)))
        assert views.isfinite().all()

    @settings(max_examples=200, deadline=None)
    @given(height=st.integers(1, 300), width=st.integers(1, 300), max_resolution=st.integers(1, 400))
    def test_too_thin_is_what_ffcv_would_reduce_to_nothing(self, height: int, width: int, max_resolution: int) -> None:
        problem = beton._size_problem(height, width, "raw", max_resolution)
        try:
            resizer(np.zeros((height, width, 3), np.uint8), max_resolution)
        except cv2.error:
            assert problem is not None
        else:
            assert problem is None

    @pytest.mark.parametrize("on_corrupt", ["fail", "skip"])
    def test_an_error_of_the_encoder_is_that_image_s(
        self, on_corrupt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encode = RGBImageField.encode

        def fail(self: RGBImageField, destination: Any, image: np.ndarray, malloc: Any) -> None:
            if image.shape[0] == 5:
                raise cv2.error("imencode failed")
            encode(self, destination, image, malloc)

        monkeypatch.setattr(RGBImageField, "encode", fail)
        source = of_images([noise(4, 4), noise(5, 4), noise(6, 4)])
        if on_corrupt == "fail":
            with pytest.raises(InputError, match=r"1\.png \(error: imencode failed\)"):
                write_beton(source, tmp_path / "images.beton", storage="jpg")
            assert list(tmp_path.iterdir()) == []
        else:
            info = write_beton(source, tmp_path / "images.beton", storage="jpg", on_corrupt="skip")
            assert info.skipped == ["1.png (error: imencode failed)"]
            assert open_beton(tmp_path / "images.beton").num_images == 2

    def test_all_that_vanish_while_the_beton_is_written_cost_one_more_attempt(self, tmp_path: Path) -> None:
        gone = [noise(4, 4), OSError("gone")]
        readings: Counter[int] = Counter()
        source = of_images([noise(4, 4), *[list(gone) for _ in range(50)]])

        def read(index: int) -> np.ndarray:
            readings[index] += 1
            return source.read(index)

        info = write_beton(replace(source, read=read), tmp_path / "images.beton", on_corrupt="skip")
        assert info.num_images == 1
        assert len(info.skipped) == 50
        assert readings[0] == 3

    def test_ten_thousand_are_told_in_one_short_line_and_all_are_in_the_sidecar(self, tmp_path: Path) -> None:
        images = [noise(4, 4), *[OSError("broken")] * 10_000]
        with pytest.raises(InputError, match=r"10,000 of 10,001 images.* and 9,990 more$") as caught:
            write_beton(of_images(images), tmp_path / "images.beton")
        assert len(str(caught.value)) < 1000
        assert len(write_beton(of_images(images), tmp_path / "images.beton", on_corrupt="skip").skipped) == 10_000

    @pytest.mark.parametrize(
        "name", ["a\nb.png", "\x1b[31mred.png", "a\udcff.png", "\u202egnp.a", "a, b.png", " a.png"]
    )
    def test_names_that_a_terminal_or_file_would_not_show_are_escaped(self, name: str, tmp_path: Path) -> None:
        source = of_images([noise(4, 4), ValueError(f"not {name}")], names=["0.png", name])
        with pytest.raises(InputError) as caught:
            write_beton(source, tmp_path / "images.beton")
        assert str(caught.value).isprintable()
        assert repr(name) in str(caught.value)
        write_beton(source, tmp_path / "images.beton", on_corrupt="skip")
        assert open_beton(tmp_path / "images.beton").skipped[0].startswith(repr(name))


class TestClasses:
    def source(self, classes: list[str], labels: list[int]) -> ImageSource:
        names = [str(number) for number in range(len(labels))]
        return ImageSource(classes, np.array(labels), "memory\n", names, lambda _: noise(4, 4))

    @pytest.mark.parametrize(
        "classes",
        [
            ["caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")],
            ["a", "a ", " a", "a\n"],
            ["\udcff", "\udcfe"],
            ["\x1b[31m", "[red]"],
        ],
    )
    def test_any_names_that_differ_are_kept_apart(self, classes: list[str], tmp_path: Path) -> None:
        write_beton(self.source(classes, list(range(len(classes)))), tmp_path / "images.beton")
        info = open_beton(tmp_path / "images.beton")
        assert list(info.class_counts.values()) == [1] * len(classes)
        assert info.classes == [name.encode("utf-8", "backslashreplace").decode() for name in classes]

    @pytest.mark.parametrize("classes", [["a", "b", "a"], [beton.UNLABELLED, "b"]])
    def test_two_of_one_name_are_refused(self, classes: list[str], tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"two classes (a|.unlabelled.)") as caught:
            write_beton(self.source(classes, [0, 1]), tmp_path / "images.beton")
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize("label", [-2, 2])
    def test_a_label_that_is_no_position_in_their_list_is_refused(self, label: int, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=f"label {label} of image 1 is not one of the 2 classes"):
            write_beton(self.source(["a", "b"], [0, label]), tmp_path / "images.beton")


class TestAccept:
    def test_it_sees_all_labels_before_anything_is_decoded_and_those_that_are_left_before_anything_is_written(
        self, tmp_path: Path
    ) -> None:
        seen: list[tuple[list[int], list[Path]]] = []
        images = [noise(4, 4), OSError("broken"), [noise(4, 4), OSError("gone")], noise(4, 4)]
        source = replace(of_images(images), classes=list("abcd"), labels=np.arange(4))

        def accept(labels: np.ndarray) -> None:
            seen.append((labels.tolist(), list(tmp_path.glob("*.beton"))))

        write_beton(source, tmp_path / "images.beton", on_corrupt="skip", accept=accept)
        assert seen[:2] == [([0, 1, 2, 3], []), ([0, 2, 3], [])]
        assert seen[2][0] == [0, 3]
        assert len(seen) == 3

    def test_what_it_raises_prevents_the_writing(self, tmp_path: Path) -> None:
        def accept(labels: np.ndarray) -> None:
            if len(labels) < 2:
                raise InputError("too few")

        with pytest.raises(InputError, match="too few"):
            write_beton(
                of_images([noise(4, 4), OSError("broken")]),
                tmp_path / "images.beton",
                on_corrupt="skip",
                accept=accept,
            )
        assert list(tmp_path.iterdir()) == []


class TestInterruptedWriting:
    def failing_source(self, error: BaseException) -> ImageSource:
        reads = iter(range(100))

        def read(_: int) -> np.ndarray:
            if next(reads) >= 15:
                raise error
            return np.zeros((4, 4, 3), np.uint8)

        return ImageSource(["a"], np.zeros(10, np.int64), "nowhere", [str(i) for i in range(10)], read)

    @pytest.fixture
    def file_of_a_megabyte_at_most(self) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    @pytest.mark.usefixtures("file_of_a_megabyte_at_most")
    @pytest.mark.parametrize("on_corrupt", ["fail", "skip"])
    def test_a_full_disk_is_said_and_leaves_nothing(self, on_corrupt: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no space left"):
            write_beton(of_images([np.zeros((4, 4, 3), np.uint8)]), tmp_path / "full.beton", on_corrupt=on_corrupt)
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


def sign(path: Path, **edits: object) -> None:
    """Make the sidecar vouch for whatever the file now holds, and for what it now says itself."""
    values = json.loads(sidecar_path(path).read_text(encoding="utf-8")) | edits
    values |= {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    values.pop("sidecar_sha256")
    values["sidecar_sha256"] = sha256_json(values)
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


class TestSidecar:
    @pytest.mark.parametrize(
        "edits",
        [
            {"classes": ["zero", *"123456789"]},
            {"class_counts": {}},
            {"origin": "elsewhere"},
            {"skipped": ["a"]},
            {"left_out": {"a": 1}},
            {"num_images": 1},
            {"max_size": [9, 9]},
            {"jpeg_images": 1},
        ],
    )
    def test_one_that_was_edited_by_hand_is_refused(self, digits_copy: Path, edits: dict[str, object]) -> None:
        values = json.loads(sidecar_path(digits_copy).read_text(encoding="utf-8"))
        sidecar_path(digits_copy).write_text(json.dumps(values | edits), encoding="utf-8")
        with pytest.raises(InputError, match=r"copy\.beton\.json: edited after it was written; delete copy\.beton"):
            open_beton(digits_copy)

    def test_a_class_that_was_renamed_throughout_is_refused(self, digits_copy: Path) -> None:
        text = sidecar_path(digits_copy).read_text(encoding="utf-8")
        assert text.count('"7"') == 2
        sidecar_path(digits_copy).write_text(text.replace('"7"', '"seven"'), encoding="utf-8")
        with pytest.raises(InputError, match="edited after it was written"):
            open_beton(digits_copy)

    @pytest.mark.parametrize(
        ("edits", "message"),
        [
            ({"min_size": [7, 8]}, "its images have other sizes"),
            ({"max_size": [8, 9]}, "its images have other sizes"),
            ({"classes": list("0123456788")}, "does not count each class once"),
            ({"classes": list("012345678")}, "does not count each class once"),
            ({"fields": {"image": "RGBImageField"}}, "other fields"),
        ],
    )
    def test_one_that_is_signed_but_does_not_describe_the_file_is_refused(
        self, digits_copy: Path, edits: dict[str, object], message: str
    ) -> None:
        sign(digits_copy, **edits)
        with pytest.raises(InputError, match=message):
            open_beton(digits_copy)

    def test_classes_counted_wrongly_are_refused(self, digits_copy: Path) -> None:
        counts = open_beton(digits_copy).class_counts
        sign(digits_copy, class_counts=counts | {"0": counts["1"], "1": counts["0"]})
        with pytest.raises(InputError, match="its classes have other numbers of images"):
            open_beton(digits_copy)

    def test_unlabelled_images_counted_wrongly_are_refused(self, digits_copy: Path) -> None:
        sign(digits_copy, class_counts=open_beton(digits_copy).class_counts | {beton.UNLABELLED: 3})
        with pytest.raises(InputError, match="counts other images without a label"):
            open_beton(digits_copy)


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
    """Two thousand mutations of each kind of beton; those that a sidecar vouches for are also loaded if accepted."""
    original, places = small_beton.read_bytes(), Places.of(small_beton)
    sidecar = json.loads(sidecar_path(small_beton).read_text(encoding="utf-8"))
    outcomes: Counter[str] = Counter()
    numbers = itertools.count()

    @settings(
        max_examples=2000, database=None, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
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
    assert outcomes["loaded"] > 10


def test_plan_takes_a_photograph_for_as_large_as_photographs_are(imagenet_folder: Path) -> None:
    sizes = []
    for path in sorted(imagenet_folder.glob("train/*/*")):
        image = Image.fromarray(read_image(path))
        image.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=90)
        sizes.append(encoded.tell())
    assert np.mean(sizes) == pytest.approx(_JPEG_BYTES, rel=0.02)
