"""Archives, class lists and links from elsewhere: they name files, and none of these is outside its folder."""

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import EpsImagePlugin, Image
from torchvision import datasets
from torchvision.datasets import utils

from dhel_kcl.data.beton import write_beton
from dhel_kcl.data.sources import IMAGE_SUFFIXES, open_source
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import DataConfig


class TestClassLists:
    def opened(self, root: Path, content: bytes) -> Any:
        (root / "classes.txt").write_bytes(content)
        data = DataConfig(kind="imagenet100", root=root / "images", class_list=root / "classes.txt")
        return open_source(data, "train")

    @pytest.fixture
    def root(self, tmp_path: Path, photo_folder: Path) -> Path:
        photo_folder.rename(tmp_path / "images")
        for outside in (tmp_path / "outside", tmp_path / "images" / "train" / ".hidden"):
            (tmp_path / "images" / "train" / "china").rename(outside)
            (tmp_path / "images" / "train" / "china").mkdir()
            (tmp_path / "images" / "train" / "china" / "0.jpg").write_bytes((outside / "0.jpg").read_bytes())
        return tmp_path

    @pytest.mark.parametrize(
        "name", ["..", ".", "../../outside", "china/../../../outside", "/", "/etc", ".hidden", "a\0b", "\x1b[31m"]
    )
    def test_a_class_is_the_name_of_a_folder_among_the_images(self, name: str, root: Path) -> None:
        assert self.opened(root, b"china\n").classes == ["china"]
        with pytest.raises(InputError, match="no folder for the classes") as caught:
            self.opened(root, name.encode())
        assert str(caught.value).isprintable()

    def test_an_absolute_path_to_images_is_refused(self, root: Path) -> None:
        with pytest.raises(InputError, match="no folder for the classes"):
            self.opened(root, str(root / "outside").encode())

    def test_bytes_that_are_not_text_are_refused(self, root: Path) -> None:
        with pytest.raises(InputError, match=r"classes\.txt: the class list is not text"):
            self.opened(root, b"\xff\xfe\x00china")


class TestFiles:
    """What a folder of images holds may be anything by content and kind; its name decides nothing."""

    def problem(self, root: Path, path: Path) -> str:
        with pytest.raises(InputError, match="1 of 9 images") as caught:
            write_beton(
                open_source(DataConfig(kind="imagefolder", root=root), "train"), root / "a.beton", storage="jpg"
            )
        assert str(path) in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
    def test_postscript_is_not_run(self, suffix: str, photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(*_: object, **__: object) -> None:
            raise AssertionError("Ghostscript was called")

        path = photo_folder / "train" / "china" / f"picture{suffix}"
        Image.new("RGB", (4, 4)).save(path, "EPS")
        monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
        with Image.open(path) as file, pytest.raises(AssertionError, match="Ghostscript was called"):
            file.load()  # without a list of formats
        assert "no image of the formats" in self.problem(photo_folder, path)

    @pytest.mark.parametrize("format_", ["GIF", "ICO", "PPM", "TGA", "JPEG2000", "PDF", "DIB"])
    def test_formats_that_are_not_listed_are_refused(self, format_: str, photo_folder: Path) -> None:
        path = photo_folder / "train" / "china" / "picture.png"
        Image.new("RGB", (16, 16)).save(path, format_)
        assert "no image of the formats JPEG, PNG, BMP, WEBP, TIFF" in self.problem(photo_folder, path)

    def test_a_pipe_and_a_device_are_not_waited_for(self, photo_folder: Path) -> None:
        pipe = photo_folder / "train" / "china" / "pipe.jpg"
        os.mkfifo(pipe)
        assert "not a regular file" in self.problem(photo_folder, pipe)
        pipe.unlink()
        endless = photo_folder / "train" / "china" / "endless.jpg"
        endless.symlink_to("/dev/zero")
        assert "not a regular file" in self.problem(photo_folder, endless)


class TestLinks:
    def test_linked_images_are_read_as_those_of_the_folder_and_a_circle_ends(
        self, photo_folder: Path, tmp_path: Path
    ) -> None:
        """Subsets of ImageNet are made of links; sources only read."""
        elsewhere = tmp_path / "elsewhere"
        china = photo_folder / "train" / "china"
        china.rename(elsewhere)
        china.symlink_to(elsewhere)
        (elsewhere / "circle").symlink_to(photo_folder)
        (elsewhere / "linked.jpg").symlink_to(sorted((photo_folder / "train" / "flower").iterdir())[0])
        source = open_source(DataConfig(kind="imagefolder", root=photo_folder), "train")
        names = [Path(name).name for name, label in zip(source.names, source.labels, strict=True) if label == 0]
        assert names == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "linked.jpg"]
        assert (source[4][0] == source[5][0]).all()


def unfiltered(archive: Any, folder: Any, _: str | None) -> None:
    """How torchvision before 0.29 extracts."""
    with tarfile.open(archive) as opened:
        opened.extractall(folder)


class TestArchives:
    KINDS = (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100), ("stl10", datasets.STL10))

    @pytest.fixture
    def root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        def refuse(*_: object, **__: object) -> None:
            raise OSError("the tests download nothing")

        monkeypatch.setattr(utils, "_urlretrieve", refuse)
        monkeypatch.setattr(tarfile.TarFile, "extraction_filter", None, raising=False)
        (tmp_path / "root").mkdir()
        return tmp_path / "root"

    def archive(self, root: Path, filename: str, member: str) -> Path:
        path = root / filename
        with tarfile.open(path, "w:gz") as archive:
            if member == "link":
                link = tarfile.TarInfo("inside")
                link.type, link.linkname = tarfile.SYMTYPE, ".."
                archive.addfile(link)
                member = "inside/escaped"
            info = tarfile.TarInfo(member.format(root.parent))
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
        return path

    @pytest.mark.parametrize(("kind", "dataset"), KINDS)
    def test_one_with_another_checksum_is_not_extracted(self, kind: str, dataset: Any, root: Path) -> None:
        path = self.archive(root, dataset.filename, "inside")
        with pytest.raises(InputError, match="could not be downloaded") as caught:
            open_source(DataConfig.model_validate({"kind": kind, "root": root}), "train")
        assert str(caught.value).isprintable()
        assert {file.name for file in root.iterdir()} <= {path.name, f".{path.name}.lock"}

    @pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="this Python has no extraction filters")
    @pytest.mark.parametrize("extract", [utils._ARCHIVE_EXTRACTORS[".tar"], unfiltered])
    @pytest.mark.parametrize("member", ["../escaped", "{}/escaped", "link"])
    @pytest.mark.parametrize(("kind", "dataset"), KINDS)
    def test_none_writes_outside_its_folder_even_with_the_right_checksum(
        self, kind: str, dataset: Any, member: str, extract: Any, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = self.archive(root, dataset.filename, member)
        monkeypatch.setattr(dataset, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
        monkeypatch.setitem(utils._ARCHIVE_EXTRACTORS, ".tar", extract)
        with pytest.raises(InputError, match="could not be downloaded") as caught:
            open_source(DataConfig.model_validate({"kind": kind, "root": root}), "train")
        assert str(caught.value).isprintable()
        assert not (root.parent / "escaped").exists()

    @pytest.mark.skipif(not hasattr(tarfile, "fully_trusted_filter"), reason="this Python has no extraction filters")
    def test_the_hostile_archives_do_escape_without_a_filter(self, root: Path) -> None:
        for member in ("../escaped", "{}/escaped", "link"):
            path = self.archive(root, "archive.tar.gz", member)
            with tarfile.open(path) as opened:
                opened.extractall(root, filter="fully_trusted")
            (root.parent / "escaped").unlink()
