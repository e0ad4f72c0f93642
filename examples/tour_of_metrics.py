"""Measure two representations of the same images with every metric, and say what each number means.

Without an argument these are two projections of handwritten digits: a random one, and one that collapses onto the two
leading principal components. With a run's `features.safetensors` as the argument they are the outputs of its encoder:
the backbone's features h and the projections z.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from dhel_kcl import metrics

Representation = dict[str, NDArray[Any]]
"""`train` (m, d) and `test`, `view1`, `view2` (n, d) with unit rows, `train_label` (m,) and `test_label` (n,)."""


def leading_share(x: Representation) -> float:
    """Return the first singular value of the covariance as a share of their sum."""
    spectrum = metrics.singular_values(x["test"])
    return float(spectrum[0] / spectrum.sum())


def distance_to_ideal_law(x: Representation) -> float:
    """Return the total variation distance between the similarity histogram and the ideal density at its bin centres."""
    edges, density = metrics.similarity_histogram(x["test"], bins=50)
    ideal = metrics.ideal_similarity_density((edges[:-1] + edges[1:]) / 2, d=x["test"].shape[1])
    return float(np.abs(density - ideal).mean())  # half the integral over [-1, 1]


def knn_accuracy(x: Representation) -> float:
    """Return the accuracy of the 20 nearest neighbours."""
    return metrics.knn_accuracy(x["train"], x["train_label"], x["test"], x["test_label"], k=20)


TOUR: dict[str, tuple[Callable[[Representation], float], str]] = {
    "alignment": (
        lambda x: metrics.alignment(x["view1"], x["view2"]),
        "Mean squared distance between two views of an image, in [0, 4]; 0 if augmentation changes nothing.",
    ),
    "uniformity": (
        lambda x: metrics.uniformity(x["test"]),
        "Log of the mean Gaussian potential over pairs of rows, in [-8, 0]; 0 if all coincide, lower is more even.",
    ),
    "wasserstein_uniformity": (
        lambda x: metrics.wasserstein_uniformity(x["test"]),
        "Distance from the similarities of pairs to those of uniform rows; 0 is uniform and 1 is total collapse.",
    ),
    "similarity_histogram": (
        distance_to_ideal_law,
        "The same two laws compared as densities: the mass, in [0, 1], that would have to move to another similarity.",
    ),
    "singular_values": (
        leading_share,
        "Share of the variance in the leading direction; 1/d if all directions share it, 1 if there is only one.",
    ),
    "rank": (
        lambda x: metrics.rank(x["test"]),
        "Number of directions with a variance above 1e-5 of the largest, at most d.",
    ),
    "effective_rank": (
        lambda x: metrics.effective_rank(x["test"]),
        "Number of directions in use, without a threshold: exp of the entropy of the singular values, in [1, d].",
    ),
    "centred_effective_rank": (
        lambda x: metrics.centred_effective_rank(x["test"]),
        "The same after the mean is subtracted: directions in which the embeddings differ.",
    ),
    "participation_ratio": (
        lambda x: metrics.participation_ratio(x["test"]),
        "(sum of variances)^2 / sum of their squares; k equal variances give k.",
    ),
    "knn_accuracy": (
        knn_accuracy,
        "Share of test images whose class wins the vote of the 20 nearest training images, in [0, 1].",
    ),
}


def digits() -> dict[str, Representation]:
    """Return two 32-dimensional linear representations; an image's second view is the image shifted by a pixel."""
    pixels, labels = load_digits(return_X_y=True)
    pixels -= pixels.mean(axis=0)
    train, test = pixels[:1000], pixels[1000:]
    moved = np.roll(test.reshape(-1, 8, 8), 1, axis=2).reshape(-1, 64)
    images = {"train": train, "test": test, "view1": test, "view2": moved}
    projection = np.random.default_rng(0).normal(size=(64, 32))
    components = np.linalg.svd(pixels, full_matrices=False)[2][:2]
    matrices = {"random": projection, "collapsed": components.T @ components @ projection}
    return {
        name: {key: normalised(value @ matrix) for key, value in images.items()}
        | {"train_label": labels[:1000], "test_label": labels[1000:]}
        for name, matrix in matrices.items()
    }


def encoder_outputs(path: Path) -> dict[str, Representation]:
    """Load the outputs `h` and `z` that the workflow's `features` stage wrote."""
    from dhel_kcl.errors import InputError
    from dhel_kcl.evaluation.feature_cache import load_features

    try:
        features = {name: tensor.numpy() for name, tensor in load_features(path).tensors.items()}
        labels = {key: features[key] for key in ("train_label", "test_label")}
        places = {"train": "train", "test": "test", "view1": "test_view1", "view2": "test_view2"}
        return {
            name: {key: normalised(features[f"{place}_{name}"]) for key, place in places.items()} | labels
            for name in ("h", "z")
        }
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyError as error:
        sys.exit(f"error: {path}: has no {error}: its run diverged or could not be measured; give that of another run")


def normalised(x: NDArray[Any]) -> NDArray[Any]:
    """Scale the rows of (n, d) features to unit length; the ranks and the spectrum do not do this themselves."""
    unit: NDArray[Any] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit


representations = encoder_outputs(Path(sys.argv[1])) if len(sys.argv) > 1 else digits()
headings = [f"{name} (d = {x['test'].shape[1]})" for name, x in representations.items()]
print(f"{'':24}", *(f"{heading:>20}" for heading in headings))
for name, (measure, meaning) in TOUR.items():
    print(f"{name:24}", *(f"{measure(x):20.4g}" for x in representations.values()))
    print(f"    {meaning}")
