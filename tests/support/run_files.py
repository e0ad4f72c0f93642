"""Make files of a run, to be measured, without running a stage."""

from pathlib import Path

import torch

from dhel_kcl.files import write_json


def make_features(classes: int = 2) -> dict[str, torch.Tensor]:
    """Make features of 40 training and 20 test images with separate classes, 4 dimensions of h and 3 of z."""
    generator = torch.Generator().manual_seed(0)
    labels = {"train_label": torch.arange(40) % classes, "test_label": torch.arange(20) % classes}
    places = {"train": "train", "test": "test", "test_view1": "test", "test_view2": "test"}
    features = {}
    for place, split in places.items():
        label = labels[f"{split}_label"].float()
        for name, dim in (("h", 4), ("z", 3)):
            noise = 0.1 * torch.randn(len(label), dim, generator=generator)
            features[f"{place}_{name}"] = noise + torch.stack([label.cos(), label.sin(), *[label] * (dim - 2)], dim=1)
    return features | labels


def write_outcome(path: Path, status: str) -> Path:
    """Write the outcome of a run on a CPU."""
    write_json(path, {"status": status, "step": 22, "device": "cpu", "dtype": "float32", "processes": 1})
    return path
