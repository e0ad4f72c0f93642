"""The verdicts on the paper's claims, on results whose right verdict is known."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ResultsBuilder

from dhel_kcl.paper.render import Target, load_target

ACCURACY = "higher accuracy of linear evaluation than the best of the InfoNCE family"
BATCH_SIZE = "accuracy depends less on the batch size"
HYPERPARAMETERS = "accuracy depends less on the hyperparameters"
BOTH = "accuracy depends less on both together"
RANK_Z = "less dimensional collapse: higher effective rank of the projector's output z"
RANK_H = "less dimensional collapse: higher effective rank of the backbone's features h"
TEST_IMAGES = 10_000


@pytest.fixture(scope="module")
def table(scripts: Path) -> Target:
    return load_target(scripts / "table_claims.py")


@pytest.fixture
def judge(table: Target, builder: ResultsBuilder, theory: pd.DataFrame) -> Callable[..., pd.Series]:
    """The row of one claim about one loss."""

    def row(claim: str, loss: str = "dhel") -> pd.Series:
        points = table.points(builder.table(), theory)
        rows = points[(points["claim"] == claim) & (points["loss"] == loss)]
        assert len(rows) == 1
        return rows.iloc[0]

    return row


@pytest.fixture
def add(builder: ResultsBuilder) -> Callable[..., None]:
    """Add a run with one accuracy, its validation accuracy and its effective ranks."""

    def run(
        loss: str,
        accuracy: float,
        validation: float | None = None,
        rank: float = 10,
        temperature: float = 0.5,
        **keys: int | str,
    ) -> None:
        put = builder.run(loss=loss, temperature=temperature, **keys)  # type: ignore[arg-type]
        put("diverged", float(math.isnan(accuracy)), x=1)
        if not math.isnan(accuracy):
            put("linear_top1", accuracy, "h")
            put("validation_top1", accuracy if validation is None else validation)
            put("test_images", TEST_IMAGES, "h")
            put("effective_rank", rank, "z")
            put("effective_rank", 2 * rank, "h")

    return run


def test_a_lead_beyond_the_noise_of_the_test_images_is_support_and_a_lag_is_not(
    add: Callable[..., None], judge: Callable[..., pd.Series]
) -> None:
    add("ntxent", 0.80)
    add("dhel", 0.82)
    add("kcl_gaussian", 0.78)
    add("kcl_log", 0.805)
    assert judge(ACCURACY)["verdict"] == "supported"
    assert judge(ACCURACY, "kcl_gaussian")["verdict"] == "not supported"
    undecided = judge(ACCURACY, "kcl_log")
    assert undecided["verdict"] == "not testable at this scale"
    assert undecided["reason"] == "the difference is within the tolerance"
    assert judge(ACCURACY)["margin"] == pytest.approx(0.02)
    assert judge(ACCURACY)["measured"] == "0.820 against NT-Xent 0.800 at batch size 256"


def test_the_tolerance_of_one_seed_is_that_of_two_independent_proportions(
    add: Callable[..., None], judge: Callable[..., pd.Series]
) -> None:
    add("ntxent", 0.80)
    add("dhel", 0.82)
    expected = 1.959964 * math.sqrt((0.8 * 0.2 + 0.82 * 0.18) / TEST_IMAGES)
    assert judge(ACCURACY)["tolerance"] == pytest.approx(expected, rel=1e-6)


def test_with_several_seeds_the_tolerance_is_half_the_student_interval_of_the_paired_differences(
    add: Callable[..., None], judge: Callable[..., pd.Series]
) -> None:
    for seed, (theirs, ours) in enumerate([(0.80, 0.81), (0.79, 0.82), (0.81, 0.83)]):
        add("ntxent", theirs, seed=seed)
        add("dhel", ours, seed=seed)
    row = judge(ACCURACY)
    assert row["margin"] == pytest.approx(0.02)
    assert row["tolerance"] == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-6)
    assert row["verdict"] == "not testable at this scale"


def test_validation_chooses_settings_and_the_baseline_and_the_test_set_has_no_say(
    add: Callable[..., None], judge: Callable[..., pd.Series]
) -> None:
    add("ntxent", 0.70, validation=0.90)
    add("dcl", 0.95, validation=0.60)
    add("dhel", 0.80, validation=0.90, temperature=0.5)
    add("dhel", 0.99, validation=0.10, temperature=0.1)
    assert judge(ACCURACY)["measured"] == "0.800 against NT-Xent 0.700 at batch size 256"


def test_ranges_are_compared_with_the_steadiest_baseline(
    add: Callable[..., None], judge: Callable[..., pd.Series]
) -> None:
    for batch_size, drop in ((32, 1), (256, 0)):
        for temperature, shift in ((0.1, 1), (0.5, 0)):
            keys = {"batch_size": batch_size, "temperature": temperature}
            add("infonce", 0.80 - 0.10 * drop - 0.10 * shift, **keys)
            add("ntxent", 0.80 - 0.06 * drop - 0.06 * shift, **keys)
            add("dhel", 0.80 - 0.01 * drop - 0.01 * shift, **keys)
            add("kcl_gaussian", 0.80 - 0.20 * drop - 0.20 * shift, **keys)
    for claim, ours, theirs, n in (
        (BATCH_SIZE, 0.01, 0.06, 2),
        (HYPERPARAMETERS, 0.01, 0.06, 2),
        (BOTH, 0.02, 0.12, 4),
    ):
        row = judge(claim)
        assert row["verdict"] == "supported"
        assert row["margin"] == pytest.approx(theirs - ours)
        assert row["measured"] == f"{ours:.3f} over {n} against NT-Xent {theirs:.3f} over {n}"
        assert judge(claim, "kcl_gaussian")["verdict"] == "not supported"


def test_a_loss_that_diverged_somewhere_does_not_pass_for_robust(
    add: Callable[..., None], judge: Callable[..., pd.Series]
) -> None:
    for batch_size in (32, 256):
        add("ntxent", 0.8 - batch_size / 2560, batch_size=batch_size)
        add("dhel", 0.8, batch_size=batch_size)
    add("dhel", math.nan, batch_size=512)
    row = judge(BATCH_SIZE)
    assert row["verdict"] == "not testable at this scale"
    assert row["reason"] == "1 of its runs diverged: the worst accuracy is unknown"


def test_a_rank_must_differ_by_a_twentieth(add: Callable[..., None], judge: Callable[..., pd.Series]) -> None:
    add("ntxent", 0.8, rank=10)
    add("dcl", 0.9, rank=8)
    add("dhel", 0.8, rank=11)
    add("kcl_gaussian", 0.8, rank=10.4)
    add("kcl_log", 0.8, rank=9)
    for claim in (RANK_Z, RANK_H):
        assert judge(claim)["verdict"] == "supported"
        assert judge(claim)["margin"] == pytest.approx(0.1)
        assert judge(claim, "kcl_gaussian")["verdict"] == "not testable at this scale"
        assert judge(claim, "kcl_log")["verdict"] == "not supported"


@pytest.mark.parametrize(
    ("runs", "claim", "reason"),
    [
        ([("ntxent", 0.8, {"dataset": "digits"}), ("dhel", 0.9, {"dataset": "digits"})], ACCURACY, "not one of the"),
        ([("dhel", 0.9, {})], ACCURACY, "no loss of the InfoNCE family was run"),
        ([("ntxent", 0.8, {}), ("dhel", math.nan, {})], ACCURACY, "none of its runs has an accuracy"),
        ([("ntxent", 0.8, {"batch_size": 32}), ("dhel", 0.9, {})], ACCURACY, "no batch size at which a baseline"),
        ([("ntxent", 0.8, {"batch_size": 32}), ("dhel", 0.9, {})], RANK_Z, "no batch size at which a baseline"),
        ([("ntxent", 0.8, {}), ("dhel", 0.9, {})], BATCH_SIZE, "one batch size only"),
        ([("ntxent", 0.8, {}), ("dhel", 0.9, {})], HYPERPARAMETERS, "one hyperparameter setting only"),
        ([("ntxent", 0.8, {}), ("dhel", 0.9, {})], BOTH, "one hyperparameter setting only"),
        (
            [(loss, 0.8, {"batch_size": size}) for loss in ("ntxent", "dhel") for size in (32, 256)],
            BOTH,
            "one hyperparameter setting only",
        ),
        (
            [("ntxent", 0.8, {}), ("dhel", 0.9, {}), ("dhel", 0.8, {"batch_size": 32})],
            BATCH_SIZE,
            "each baseline diverged somewhere or was not varied so",
        ),
        (
            [(loss, 0.8 + 0.1 * seed, {"seed": seed}) for loss in ("ntxent", "dhel") for seed in (0, 1)],
            ACCURACY,
            "the differences of the seeds have no spread",
        ),
        (
            [
                (loss, 0.8, {"seed": seed, "batch_size": size})
                for seed, loss in enumerate(("ntxent", "dhel"))
                for size in (32, 256)
            ],
            BATCH_SIZE,
            "no seed in common with NT-Xent",
        ),
    ],
)
def test_what_cannot_be_compared_says_why(
    add: Callable[..., None],
    judge: Callable[..., pd.Series],
    runs: list[tuple[str, float, dict[str, int | str]]],
    claim: str,
    reason: str,
) -> None:
    for loss, accuracy, keys in runs:
        add(loss, accuracy, **keys)
    row = judge(claim)
    assert row["verdict"] == "not testable at this scale"
    assert row["reason"].startswith(reason)


def test_a_theorem_is_supported_until_one_loss_breaks_it(
    table: Target, experiment: pd.DataFrame, theory: pd.DataFrame
) -> None:
    of_theory = table.points(experiment, theory).query("dataset == 'theory'")
    assert len(of_theory) == 10
    assert set(of_theory["verdict"]) == {"supported"}
    broken = theory.copy()
    broken.loc[(broken["loss"] == "dhel") & (broken["metric"] == "minimum"), "value"] -= 1e-3
    changed = table.points(experiment, broken).query("verdict == 'not supported' and dataset == 'theory'")
    assert changed["claim"].tolist() == ["minimum of the loss (simplex)"]
    assert changed["measured"].tolist() == ["holds in 6 of 7 cases"]


def test_ranks_are_also_compared_at_equal_temperature_because_a_low_one_raises_them(
    add: Callable[..., None], judge: Callable[..., pd.Series]
) -> None:
    add("ntxent", 0.8, rank=60, temperature=0.1)
    add("ntxent", 0.7, rank=20, temperature=0.5)
    add("dhel", 0.7, rank=120, temperature=0.1)
    add("dhel", 0.8, rank=40, temperature=0.5)
    claim = "less dimensional collapse at equal temperature: higher effective rank of z"
    assert judge(RANK_Z)["verdict"] == "not supported"
    assert judge(claim)["verdict"] == "supported"
    assert judge(claim)["margin"] == pytest.approx(1)
    assert judge(claim)["measured"] == "120.0 against 60.0 at 0.1; 40.0 against 20.0 at 0.5 (temperature)"


@pytest.mark.parametrize(
    ("accuracies", "verdict", "measured"),
    [
        ({"cifar10": 0.84}, "not testable at this scale", "on 1 of 1, CIFAR-10"),
        ({"cifar10": 0.84, "cifar100": 0.84}, "supported", "on 2 of 2, CIFAR-10, CIFAR-100"),
        ({"cifar10": 0.84, "cifar100": 0.801}, "not testable at this scale", "on 1 of 2, CIFAR-10"),
        ({"cifar10": 0.84, "cifar100": 0.76}, "not supported", "on 1 of 2, CIFAR-10"),
        ({"cifar10": 0.84, "digits": 0.84}, "not testable at this scale", "on 1 of 1, CIFAR-10"),
    ],
)
def test_several_data_sets_are_supported_if_each_one_is(
    add: Callable[..., None],
    judge: Callable[..., pd.Series],
    accuracies: dict[str, float],
    verdict: str,
    measured: str,
) -> None:
    for dataset, accuracy in accuracies.items():
        add("ntxent", 0.80, dataset=dataset)
        add("dhel", accuracy, dataset=dataset)
    row = judge("the higher accuracy is found on several data sets")
    assert (row["verdict"], row["measured"]) == (verdict, measured)


def test_with_several_seeds_ranges_are_compared_seed_by_seed(
    add: Callable[..., None], judge: Callable[..., pd.Series]
) -> None:
    for seed, (ours, theirs) in enumerate([(0.01, 0.05), (0.02, 0.08), (0.03, 0.07)]):
        for batch_size, part in ((32, 0), (256, 1)):
            add("dhel", 0.8 + part * ours, seed=seed, batch_size=batch_size)
            add("ntxent", 0.8 + part * theirs, seed=seed, batch_size=batch_size)
    row = judge(BATCH_SIZE)
    differences = pd.Series([0.04, 0.06, 0.04])
    assert row["margin"] == pytest.approx(differences.mean())
    assert row["tolerance"] == pytest.approx(4.302653 * differences.std() / math.sqrt(3), rel=1e-6)
    assert row["verdict"] == "supported"


def test_equal_losses_are_rarely_told_apart(table: Target, theory: pd.DataFrame) -> None:
    """Three seeds, five batch sizes, and a spread over seeds of one point: the choice of the steadiest baseline costs
    the losses that are judged some verdicts, but not many."""
    verdicts = []
    for trial in range(40):
        random, builder = np.random.default_rng(trial), ResultsBuilder()
        for loss in ("infonce", "ntxent", "dcl", "dhel"):
            for batch_size in (32, 64, 128, 256, 512):
                for seed in range(3):
                    put = builder.run(loss=loss, temperature=0.5, batch_size=batch_size, seed=seed)
                    accuracy = 0.8 + 0.01 * random.standard_normal()
                    put("linear_top1", accuracy, "h")
                    put("validation_top1", accuracy)
                    put("test_images", TEST_IMAGES, "h")
                    put("effective_rank", 10, "z")
        points = table.points(builder.table(), theory)
        verdicts += points.loc[points["claim"] == BATCH_SIZE, "verdict"].tolist()
    assert verdicts.count("supported") <= 2
    assert verdicts.count("not supported") <= 6
