import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dhel_kcl.config import DataConfig
from dhel_kcl.data import beton
from dhel_kcl.data.beton import open_beton, sidecar_path, write_beton
from dhel_kcl.data.sources import ImageSource, open_source
from dhel_kcl.errors import InputError


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
        assert open_beton(path) == info
        assert json.loads((tmp_path / "photos.beton.json").read_text())["sha256"] == info.sha256

    def test_one_progress_bar_and_only_on_stderr(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        write_beton(open_source(DataConfig(kind="digits"), "test"), tmp_path / "digits.beton")
        out, err = capfd.readouterr()
        assert out == ""
        assert len(err.strip().splitlines()) == 1
        assert "digits.beton" in err

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
    def copy(self, digits_beton: Path, tmp_path: Path) -> Path:
        path = tmp_path / "copy.beton"
        path.write_bytes(digits_beton.read_bytes())
        sidecar_path(path).write_bytes(sidecar_path(digits_beton).read_bytes())
        open_beton(path)
        return path

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
            (lambda path: sidecar_path(path).write_text("{}"), r"copy\.beton\.json: not a beton's sidecar"),
            (lambda path: sidecar_path(path).write_text("{"), r"copy\.beton\.json: not valid JSON"),
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
