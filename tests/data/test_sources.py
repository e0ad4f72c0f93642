import os
import shutil
import struct
import urllib.error
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from dhel_kcl.data.beton import open_beton, write_beton
from dhel_kcl.data.sources import IMAGE_SUFFIXES, open_source, read_image, stratified_indices
from dhel_kcl.data.sources.folders import AGAIN, BESIDE, HIDDEN, NO_IMAGES, UNLISTED
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import DataConfig


def folder_config(root: Path, **options: object) -> DataConfig:
    return DataConfig.model_validate({"kind": "imagefolder", "root": root} | options)


class TestDigits:
    def test_split_is_stratified_complete_and_disjoint(self) -> None:
        train, test = (open_source(DataConfig(kind="digits"), split) for split in ("train", "test"))
        assert (len(train), len(test)) == (1437, 360)
        assert sorted(map(int, train.names + test.names)) == list(range(1797))
        shares = [np.bincount(source.labels) / len(source) for source in (train, test)]
        np.testing.assert_allclose(*shares, atol=0.005)

    def test_images_are_grey_rgb_over_the_whole_range(self) -> None:
        source = open_source(DataConfig(kind="digits"), "train")
        image, label = source[0]
        assert image.shape == (8, 8, 3)
        assert image.dtype == np.uint8
        assert (image == image[..., :1]).all()
        assert max(source[i][0].max() for i in range(50)) == 255
        assert label == source.labels[0]
        assert "load_digits" in source.origin

    def test_an_unknown_split_is_refused(self) -> None:
        with pytest.raises(InputError, match="pretrain"):
            open_source(DataConfig(kind="digits"), "pretrain")


class TestSubset:
    def test_keeps_class_shares_and_is_the_same_every_time(self) -> None:
        data = DataConfig(kind="digits", train_images=200)
        source = open_source(data, "train")
        assert len(source) == 200
        assert np.bincount(source.labels).min() >= 19
        assert open_source(data, "train").names == source.names
        assert len(open_source(data, "test")) == 360

    def test_rounds_by_largest_remainder(self) -> None:
        labels = np.repeat([0, 1, 2], [50, 30, 20])
        chosen = stratified_indices(labels, 33, seed=0)
        assert np.bincount(labels[chosen]).tolist() == [16, 10, 7]
        assert (np.diff(chosen) > 0).all()

    def test_more_than_there_are_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"1438.*1437"):
            open_source(DataConfig(kind="digits", train_images=1438), "train")


class TestImageFolder:
    def test_labels_follow_sorted_class_names(self, photo_folder: Path, photographs: list[np.ndarray]) -> None:
        source = open_source(folder_config(photo_folder), "train")
        assert source.classes == ["china", "flower"]
        assert source.labels.tolist() == [0] * 4 + [1] * 4
        assert [source[i][0].shape for i in range(8)] == [image.shape for image in photographs]
        assert source.names[0].endswith("china/0.jpg")

    @pytest.mark.parametrize("missing", ["", "train", "test"])
    def test_a_missing_folder_is_named(self, tmp_path: Path, photo_folder: Path, missing: str) -> None:
        (photo_folder / missing).rename(tmp_path / "elsewhere")
        with pytest.raises(InputError, match=rf"photos/{missing or 'train'}: no such folder"):
            open_source(folder_config(photo_folder), "train")

    def test_a_class_without_images_is_named(self, photo_folder: Path) -> None:
        for image in (photo_folder / "train" / "china").iterdir():
            image.unlink()
        (photo_folder / "train" / "china" / "notes.txt").write_text("none", encoding="utf-8")
        with pytest.raises(InputError, match=r"train/china: no images"):
            open_source(folder_config(photo_folder), "train")

    def test_a_folder_without_classes_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "train").mkdir()
        with pytest.raises(InputError, match=r"train: no class folders"):
            open_source(folder_config(tmp_path), "train")

    def test_images_beside_no_class_folder_are_answered_with_what_to_do(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            (tmp_path / split).mkdir()
            Image.new("L", (4, 4)).save(tmp_path / split / "0.png")
        with pytest.raises(InputError, match=r"train: images but no class folders; move them .* all into one folder"):
            open_source(folder_config(tmp_path), "train")

    def test_classes_that_only_look_the_same_are_told_apart(self, photo_folder: Path) -> None:
        (photo_folder / "train" / "china").rename(photo_folder / "train" / "caf\u00e9")
        (photo_folder / "test" / "china").rename(photo_folder / "test" / "cafe\u0301")
        with pytest.raises(InputError) as caught:
            open_source(folder_config(photo_folder), "train")
        assert r"the classes 'cafe\u0301', 'caf\xe9' are in only one" in str(caught.value)

    def test_a_thousand_classes_of_one_split_are_told_in_a_short_line(self, photo_folder: Path) -> None:
        for number in range(1000):
            (photo_folder / "train" / f"class {number}\n").mkdir()
        with pytest.raises(InputError, match="and 990 more are in only one") as caught:
            open_source(folder_config(photo_folder), "train")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500

    def test_a_class_of_one_split_only_is_named(self, photo_folder: Path) -> None:
        (photo_folder / "test" / "extra").mkdir()
        with pytest.raises(InputError, match=r"extra are in only one of train and test"):
            open_source(folder_config(photo_folder), "train")


class TestWhatAScanTakes:
    """One folder for all: what is taken, and what is left out and counted."""

    @pytest.fixture
    def root(self, photo_folder: Path) -> Path:
        shutil.rmtree(photo_folder / "train" / "flower")
        shutil.rmtree(photo_folder / "test" / "flower")
        return photo_folder

    def scanned(self, root: Path) -> tuple[list[str], dict[str, int]]:
        source = open_source(folder_config(root), "train")
        assert source.classes == ["china"]
        china = root / "train" / "china"
        return [str(Path(name).relative_to(china)) for name in source.names], dict(source.left_out)

    def test_of_images_alone_all_are_taken_at_any_depth(self, root: Path) -> None:
        china = root / "train" / "china"
        (china / "deeper" / "still").mkdir(parents=True)
        (china / "1.jpg").rename(china / "deeper" / "still" / "1.JPEG")
        assert self.scanned(root) == (["0.jpg", "2.jpg", "3.jpg", "deeper/still/1.JPEG"], {})

    @pytest.mark.parametrize(
        "name",
        [".git", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"],
    )
    @pytest.mark.parametrize("among", ["classes", "images"])
    def test_hidden_and_system_folders_are_left_out_with_what_they_hold(
        self, name: str, among: str, root: Path
    ) -> None:
        hidden = (root / "train" if among == "classes" else root / "train" / "china") / name
        hidden.mkdir()
        shutil.copy(root / "train" / "china" / "0.jpg", hidden / "0.jpg")
        assert self.scanned(root) == (["0.jpg", "1.jpg", "2.jpg", "3.jpg"], {HIDDEN: 1})

    def test_other_files_are_left_out_by_reason(self, root: Path) -> None:
        china = root / "train" / "china"
        for name in ("._0.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (china / name).write_bytes(b"")
        for name in ("notes.txt", "4.gif", "5.jpg.part", "jpg"):
            (china / name).write_bytes(b"")
        (root / "train" / "6.jpg").write_bytes(b"")
        (root / "test" / "7.jpg").write_bytes(b"")
        assert self.scanned(root) == (
            ["0.jpg", "1.jpg", "2.jpg", "3.jpg"],
            {BESIDE: 1, HIDDEN: 4, NO_IMAGES: 4},
        )

    def test_linked_folders_are_followed_once_and_real_ones_first(self, root: Path, tmp_path: Path) -> None:
        china, elsewhere = root / "train" / "china", tmp_path / "elsewhere"
        (china / "real").mkdir()
        (china / "1.jpg").rename(china / "real" / "1.jpg")
        (china / "a_link").symlink_to("real")
        elsewhere.mkdir()
        (china / "2.jpg").rename(elsewhere / "2.jpg")
        (china / "b_link").symlink_to(elsewhere)
        (china / "c_link").symlink_to(elsewhere)
        assert self.scanned(root) == (["0.jpg", "3.jpg", "b_link/2.jpg", "real/1.jpg"], {AGAIN: 2})

    @pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "/"])
    def test_a_link_that_leads_back_is_not_followed(self, target: str, root: Path) -> None:
        (root / "train" / "china" / "deeper").mkdir()
        (root / "train" / "china" / "deeper" / "circle").symlink_to(target)
        assert self.scanned(root) == (["0.jpg", "1.jpg", "2.jpg", "3.jpg"], {AGAIN: 1})

    def test_links_between_two_folders_end(self, root: Path, tmp_path: Path) -> None:
        one, other = tmp_path / "one", tmp_path / "other"
        for folder, linked in ((one, other), (other, one)):
            folder.mkdir()
            (folder / "linked").symlink_to(linked)
            shutil.copy(root / "train" / "china" / "0.jpg", folder)
        (root / "train" / "china" / "one").symlink_to(one)
        names, left_out = self.scanned(root)
        assert names[4:] == ["one/0.jpg", "one/linked/0.jpg"]
        assert left_out == {AGAIN: 1}

    def test_a_linked_class_is_a_class(self, root: Path, tmp_path: Path) -> None:
        (root / "train" / "china").rename(tmp_path / "elsewhere")
        (root / "train" / "china").symlink_to(tmp_path / "elsewhere")
        assert self.scanned(root) == (["0.jpg", "1.jpg", "2.jpg", "3.jpg"], {})

    def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(self, root: Path) -> None:
        (root / "train" / "china" / "gone.jpg").symlink_to("nowhere")
        (root / "train" / "china" / "circle.jpg").symlink_to("circle.jpg")
        source = open_source(folder_config(root), "train")
        assert len(source) == 6
        for number in (4, 5):
            with pytest.raises(OSError, match=r"No such file|Too many levels"):
                source[number]

    def test_a_folder_that_cannot_be_listed_is_named(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scandir = os.scandir

        def refuse(path: Any) -> Any:
            if str(path).endswith("locked\n"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        (root / "train" / "china" / "locked\n").mkdir()
        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(InputError, match=r"china/locked\\n: cannot be listed \(Permission denied\)"):
            open_source(folder_config(root), "train")

    def test_a_subset_keeps_what_was_left_out(self, root: Path) -> None:
        (root / "train" / "china" / "notes.txt").write_bytes(b"")
        assert open_source(folder_config(root, train_images=2), "train").left_out == {NO_IMAGES: 1}

    def test_a_name_that_is_no_text_can_be_written(self, root: Path, tmp_path: Path) -> None:
        for split in ("train", "test"):
            os.rename(os.fsencode(root / split / "china"), os.fsencode(root / split) + b"/\xff")  # noqa: PTH104
        (next((root / "train").iterdir()) / "broken.jpg").write_bytes(b"")
        (next((root / "train").iterdir()) / "notes.txt").write_bytes(b"")
        source = open_source(folder_config(root), "train")
        write_beton(source, tmp_path / "photos.beton", storage="jpg", on_corrupt="skip")
        info = open_beton(tmp_path / "photos.beton")
        assert info.classes == ["\\udcff"]
        assert info.left_out == {NO_IMAGES: 1}
        assert r"\udcff/broken.jpg'" in info.skipped[0]


class TestImageNet100:
    def data(self, root: Path, class_list: Path) -> DataConfig:
        return DataConfig(kind="imagenet100", root=root, class_list=class_list)

    def test_is_restricted_to_the_listed_classes_in_their_order(self, photo_folder: Path, tmp_path: Path) -> None:
        (photo_folder / "test").rename(photo_folder / "val")
        (tmp_path / "classes.txt").write_text("flower\n", encoding="utf-8")
        for split in ("train", "test"):
            source = open_source(self.data(photo_folder, tmp_path / "classes.txt"), split)
            assert source.classes == ["flower"]
            assert len(source) == 4
        assert source.origin.endswith("val")

    def test_folders_that_the_list_does_not_name_are_counted(self, photo_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "classes.txt").write_text("flower\n", encoding="utf-8")
        (photo_folder / "train" / "extra").mkdir()
        source = open_source(self.data(photo_folder, tmp_path / "classes.txt"), "train")
        assert source.left_out == {UNLISTED: 2}

    def test_a_missing_class_is_told_apart_from_a_folder_that_looks_the_same(
        self, photo_folder: Path, tmp_path: Path
    ) -> None:
        (photo_folder / "train" / "caf\u00e9").mkdir()
        (tmp_path / "classes.txt").write_text("cafe\u0301\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"no folder for the classes 'cafe\\u0301' of"):
            open_source(self.data(photo_folder, tmp_path / "classes.txt"), "train")

    def test_missing_classes_are_named(self, photo_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "classes.txt").write_text("flower\nn01\nn02\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"n01, n02"):
            open_source(self.data(photo_folder, tmp_path / "classes.txt"), "train")

    @pytest.mark.parametrize("content", [None, "", "a\na\n"])
    def test_a_class_list_that_is_missing_empty_or_repeats_is_refused(
        self, photo_folder: Path, tmp_path: Path, content: str | None
    ) -> None:
        if content is not None:
            (tmp_path / "classes.txt").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=r"classes\.txt"):
            open_source(self.data(photo_folder, tmp_path / "classes.txt"), "train")


class TestDecoding:
    @pytest.fixture
    def image(self, photographs: list[np.ndarray]) -> Image.Image:
        return Image.fromarray(photographs[1])

    def test_grey_and_palette(self, image: Image.Image, tmp_path: Path) -> None:
        for mode in ("L", "P", "1"):
            image.convert(mode).save(tmp_path / "image.png")
            np.testing.assert_array_equal(read_image(tmp_path / "image.png"), image.convert(mode).convert("RGB"))

    def test_transparency_is_dropped(self, image: Image.Image, tmp_path: Path) -> None:
        image.putalpha(100)
        image.save(tmp_path / "image.png")
        np.testing.assert_array_equal(read_image(tmp_path / "image.png"), image.convert("RGB"))

    def test_cmyk_jpeg(self, image: Image.Image, tmp_path: Path) -> None:
        image.convert("CMYK").save(tmp_path / "image.jpg", quality=100)
        assert np.abs(read_image(tmp_path / "image.jpg").astype(int) - np.asarray(image)).mean() < 3

    def test_exif_orientation_is_applied(self, image: Image.Image, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / "image.png", exif=exif)
        np.testing.assert_array_equal(read_image(tmp_path / "image.png"), image.rotate(-90, expand=True))

    @pytest.mark.parametrize(
        ("suffix", "pixels", "bits"),
        [
            (".png", np.zeros((4, 4), np.uint16), 16),
            (".png", np.zeros((4, 4, 3), np.uint16), 16),
            (".png", np.zeros((4, 4, 4), np.uint16), 16),
            (".tif", np.zeros((4, 4), np.uint16), 16),
            (".tif", np.zeros((4, 4, 3), np.uint16), 16),
            (".tif", np.zeros((4, 4, 4), np.uint16), 16),
            (".tif", np.zeros((4, 4), np.int32), 32),
            (".tif", np.zeros((4, 4), np.float32), 32),
        ],
    )
    def test_more_than_8_bits_a_channel_are_refused_grey_or_colour(
        self, suffix: str, pixels: np.ndarray, bits: int, tmp_path: Path
    ) -> None:
        path = tmp_path / f"image{suffix}"
        if pixels.dtype == np.uint16:
            assert cv2.imwrite(str(path), pixels)
        else:
            Image.fromarray(pixels).save(path)
        with pytest.raises(ValueError, match=f"{bits} bits a channel; convert it to 8 bits"):
            read_image(path)

    def test_16_bit_grey_with_transparency_is_refused(self, tmp_path: Path) -> None:
        rows = zlib.compress(b"\0" + bytes(4) + b"\0" + bytes(4))
        header = struct.pack(">IIBBBBB", 1, 2, 16, 4, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
        written = [
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
            for kind, content in chunks
        ]
        (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(written))
        with pytest.raises(ValueError, match="16 bits a channel"):
            read_image(tmp_path / "image.png")

    def test_signed_levels_are_refused(self, tmp_path: Path) -> None:
        Image.new("L", (4, 4)).save(tmp_path / "image.tif", tiffinfo={339: 2})
        with pytest.raises(ValueError, match="signed"):
            read_image(tmp_path / "image.tif")

    @pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
    def test_tiff_of_up_to_8_bits(self, image: Image.Image, mode: str, compression: str | None, tmp_path: Path) -> None:
        image.convert(mode).save(tmp_path / "image.tif", compression=compression)
        np.testing.assert_array_equal(read_image(tmp_path / "image.tif"), image.convert(mode).convert("RGB"))

    @pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
    def test_every_suffix_is_of_a_format_that_is_read(self, image: Image.Image, suffix: str, tmp_path: Path) -> None:
        image.save(tmp_path / f"image{suffix}")
        assert read_image(tmp_path / f"image{suffix}").shape == (64, 96, 3)

    def test_a_format_is_told_by_the_content_not_by_the_suffix(self, image: Image.Image, tmp_path: Path) -> None:
        image.save(tmp_path / "image.jpg", "PNG")  # ImageNet has one such
        np.testing.assert_array_equal(read_image(tmp_path / "image.jpg"), image)

    @pytest.mark.parametrize("name", ["image.tif", "image.png", "image.webp"])
    def test_a_file_of_several_images_is_refused(self, image: Image.Image, name: str, tmp_path: Path) -> None:
        image.save(tmp_path / name, save_all=True, append_images=[image.rotate(90)])
        with pytest.raises(ValueError, match="2 images in one file"):
            read_image(tmp_path / name)

    def test_of_the_pictures_that_a_phone_writes_the_first_is_the_photograph(
        self, image: Image.Image, tmp_path: Path
    ) -> None:
        image.save(tmp_path / "one.jpg", quality=95)
        others = [image.resize((8, 8)), image.rotate(90)]
        image.save(tmp_path / "several.jpg", "MPO", save_all=True, append_images=others, quality=95)
        np.testing.assert_array_equal(read_image(tmp_path / "several.jpg"), read_image(tmp_path / "one.jpg"))


class TestDownloads:
    @pytest.mark.parametrize(
        ("kind", "archive"),
        [
            ("cifar10", "cifar-10-python.tar.gz"),
            ("cifar100", "cifar-100-python.tar.gz"),
            ("stl10", "stl10_binary.tar.gz"),
        ],
    )
    def test_without_a_network_the_message_says_what_to_put_where(
        self, kind: str, archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(*_: object, **__: object) -> None:
            raise urllib.error.URLError("name resolution failed")

        for module in (datasets.cifar, datasets.stl10):
            monkeypatch.setattr(module, "download_and_extract_archive", unreachable)
        data = DataConfig.model_validate({"kind": kind, "root": tmp_path / "new"})
        with pytest.raises(InputError) as caught:
            open_source(data, "train")
        message = str(caught.value)
        assert "\n" not in message
        assert kind in message
        assert str(tmp_path / "new" / archive) in message
        assert "http" in message
