"""What later stages need is asked for before anything is written, by the command that writes the betons."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import train_test_split
from workspace import run

from dhel_kcl.data import requirements
from dhel_kcl.data.requirements import check_split
from dhel_kcl.data.sources import ImageSource
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import ExperimentConfig, parse_config


def experiment(**edits: Any) -> dict[str, Any]:
    """A configuration of one data set `photos`; `edits` of its data, of `evaluation` and of `batch_sizes`."""
    return {
        "name": "small",
        "seeds": [0],
        "batch_sizes": edits.get("batch_sizes", [2]),
        "datasets": [
            {
                "name": "photos",
                "data": {"kind": "imagefolder", "root": "images"} | edits.get("data", {}),
                "image_size": 4,
                "augmentation": "none",
                "encoder": {"width": 0.0625},
                "optimizer": {"learning_rate": 0.1},
                "epochs": 1,
            }
        ],
        "losses": edits.get("losses", [{"name": "dhel", "temperature": [0.5]}]),
        "evaluation": edits.get("evaluation", {"validation_fraction": 0.5}),
    }


def labelled(labels: list[int], classes: str = "ab") -> ImageSource:
    names = [str(number) for number in range(len(labels))]
    return ImageSource(
        list(classes), np.array(labels, np.int64), "memory", names, lambda _: np.zeros((4, 4, 3), np.uint8)
    )


class TestCheck:
    @pytest.fixture
    def check(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        """Check a split; `whole` is the whole split `train`, `chosen` what is checked, `left` the labels left of it."""

        def check(
            split: str,
            whole: ImageSource,
            chosen: ImageSource | None = None,
            left: list[int] | None = None,
            **edits: Any,
        ) -> None:
            config: ExperimentConfig = parse_config(experiment(**edits), "test")
            monkeypatch.setattr(requirements, "open_whole", lambda data, split: whole)
            source = chosen or whole
            labels = source.labels if left is None else np.array(left, np.int64)
            check_split(config, config.datasets[0], split, source, labels)

        return check

    @pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0] * 50 + [1] * 2])
    def test_two_images_of_each_class_are_enough(self, labels: list[int], check: Callable[..., None]) -> None:
        check("train", labelled(labels))

    @pytest.mark.parametrize(
        ("whole", "chosen", "left", "message"),
        [
            (
                [0, 0, 1],
                [0, 0, 1],
                [0, 0, 1],
                "1 of 1 of class b, .*; add images, or remove the class from every split$",
            ),
            ([0, 0, 1, 1], [0, 0, 1], [0, 0, 1], "1 of 2 of class b, .*; raise data.train_images or leave it out$"),
            ([0, 0, 1, 1], [0, 0, 0], [0, 0, 0], "0 of 2 of class b, .*; raise data.train_images or leave it out$"),
            ([0, 0, 1, 1], [0, 0, 1, 1], [0, 0], "0 of 2 of class b, .*; replace the images that on_corrupt: skip"),
            (
                [0, 0, 1, 1, 1],
                [0, 1, 1],
                [0, 1],
                "1 of 2 of class a, 1 of 3 of class b, .*raise .*; replace the images",
            ),
        ],
    )
    def test_a_class_with_less_is_named_with_what_to_change(
        self, whole: list[int], chosen: list[int], left: list[int], message: str, check: Callable[..., None]
    ) -> None:
        with pytest.raises(InputError, match=f"datasets.photos.data: the split train keeps {message}"):
            check("train", labelled(whole), labelled(chosen), left)

    @pytest.mark.parametrize("classes", [2, 3, 7])
    @pytest.mark.parametrize("of_each", [2, 3, 5])
    @pytest.mark.parametrize("fraction", [0.01, 0.1, 0.34, 0.5, 0.9])
    def test_the_validation_split_is_refused_where_scikit_learn_refuses_it(
        self, classes: int, of_each: int, fraction: float, check: Callable[..., None]
    ) -> None:
        source = labelled(list(range(classes)) * of_each, classes="abcdefg"[:classes])
        evaluation = {"validation_fraction": fraction}
        try:
            train_test_split(source.labels, test_size=fraction, stratify=source.labels)
        except ValueError:
            with pytest.raises(InputError, match=rf"evaluation.validation_fraction: .* for the {classes} classes"):
                check("train", source, evaluation=evaluation)
        else:
            check("train", source, evaluation=evaluation)

    @pytest.mark.parametrize(
        "source",
        [labelled([0], "a"), labelled([0, 0, 0], "a"), labelled([-1, -1, -1]), labelled([-1, 1]), labelled([1, 1, 1])],
    )
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_nothing_is_asked_of_labels_that_cannot_be_evaluated(
        self, split: str, source: ImageSource, check: Callable[..., None]
    ) -> None:
        if split == "train":
            source = source.subset(np.arange(len(source)).repeat(2))  # a batch
        check(split, source, labelled([-1] * 4, "ab") if split == "test" else source)

    def test_a_class_that_train_never_had_is_not_asked_for(self, check: Callable[..., None]) -> None:
        check("train", labelled([0, 0, 2, 2], "abc"))

    def test_images_without_a_label_among_others_are_refused_in_train_and_test(
        self, check: Callable[..., None]
    ) -> None:
        with pytest.raises(InputError, match=r"1 of the 5 images in the split train have no label; .* split pretrain"):
            check("train", labelled([0, 0, 1, 1, -1]))
        with pytest.raises(InputError, match="1 of the 3 images in the split test have no label"):
            check("test", labelled([0, 0, 1, 1]), labelled([0, 1, -1]))

    def test_a_class_of_the_test_images_that_train_lacks_is_named(self, check: Callable[..., None]) -> None:
        with pytest.raises(InputError, match="the split test has images of the classes c, and train has none"):
            check("test", labelled([0, 0, 1, 1], "abc"), labelled([0, 1, 2], "abc"))

    def test_splits_that_list_other_classes_are_refused(self, check: Callable[..., None]) -> None:
        with pytest.raises(InputError, match="train and test list other classes"):
            check("test", labelled([0, 0, 1, 1], "ab"), labelled([0, 1], "ba"))

    @pytest.mark.parametrize("left", [[], [0]])
    def test_fewer_than_two_test_images_are_refused(self, left: list[int], check: Callable[..., None]) -> None:
        with pytest.raises(InputError, match=rf"fewer than 2 images in the split test \({len(left)}\)"):
            check("test", labelled([0, 0, 1, 1]), labelled([0, 1]), left)

    def test_a_batch_larger_than_the_pretraining_images_is_refused(self, check: Callable[..., None]) -> None:
        with pytest.raises(InputError, match="batch_sizes: 8 is larger than the 4 images that photos pretrains on"):
            check("train", labelled([0, 0, 1, 1]), batch_sizes=[2, 8])
        check("test", labelled([0, 0, 1, 1]), batch_sizes=[2, 8])
        unused = [{"name": "dhel", "temperature": [0.5], "batch_sizes": [2]}]
        check("train", labelled([0, 0, 1, 1]), batch_sizes=[2, 8], losses=unused)

    def test_of_a_split_to_pretrain_on_nothing_is_asked_but_a_batch(self, check: Callable[..., None]) -> None:
        data = {"kind": "stl10", "train_images": 3}
        check("pretrain", labelled([-1, -1, 0]), data=data)
        with pytest.raises(InputError, match="batch_sizes: 2 is larger than the 1 images"):
            check("pretrain", labelled([-1]), data=data)


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Two classes of three images in each split, one with a name that a terminal would act on."""
        for split in ("train", "test"):
            for label, name in enumerate(("plain", "\x1b[31mred")):
                images = tmp_path / "images" / split / name
                images.mkdir(parents=True)
                for number in range(3):
                    Image.new("RGB", (4, 4), (80 * number, 200 * label, 0)).save(images / f"{number}.png")
        return tmp_path

    def write(self, folder: Path, split: str = "train", **edits: Any) -> Any:
        (folder / "small.yaml").write_text(json.dumps(experiment(**edits)), encoding="utf-8")
        configured = run("dhel-kcl", "configure", "small.yaml", cwd=folder)
        assert configured.returncode == 0, configured.stderr
        return run("dhel-kcl", "data", "results/small", "photos", split, cwd=folder)

    def test_of_sound_images_nothing_is_said_to_be_left_out(self, folder: Path) -> None:
        for split in ("train", "test"):
            outcome = self.write(folder, split)
            assert outcome.returncode == 0, outcome.stderr
            assert "6 images, 2 classes" in outcome.stdout
            assert "left out" not in outcome.stderr

    def test_what_is_left_out_is_told_in_one_line_and_in_the_sidecar(self, folder: Path) -> None:
        (folder / "images" / "train" / "plain" / "notes.txt").write_bytes(b"")
        (folder / "images" / "train" / "plain" / ".hidden.png").write_bytes(b"")
        (folder / "images" / "train" / "\x1b[31mred" / "broken\n.png").write_bytes(b"")
        outcome = self.write(folder, data={"on_corrupt": "skip"})
        assert outcome.returncode == 0, outcome.stderr
        (line,) = [line for line in outcome.stderr.splitlines() if "left out" in line]
        assert "files without an image's suffix (1), hidden or system files and folders (1), images that" in line
        assert line.isprintable()
        assert r"\x1b[31mred/broken\n.png" in line
        sidecar = json.loads((folder / "results/small/data/photos/train.beton.json").read_text(encoding="utf-8"))
        assert sum(sidecar["left_out"].values()) == 2
        assert len(sidecar["skipped"]) == 1

    def test_a_class_that_loses_its_images_to_on_corrupt_is_told_before_anything_is_written(self, folder: Path) -> None:
        for number in range(2):
            (folder / "images" / "train" / "\x1b[31mred" / f"{number}.png").write_bytes(b"")
        outcome = self.write(folder, data={"on_corrupt": "skip"})
        assert outcome.returncode == 1
        (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error")]
        assert r"keeps 1 of 3 of class '\x1b[31mred'" in line
        assert not (folder / "results/small/data").exists()
