"""The verdicts on the paper's claims, on results whose right verdict is known."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ResultsBuilder

from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.hits import pack_hits
from dhel_kcl.experiment.config import ClaimConfig, ClaimsConfig, StudyConfig
from dhel_kcl.paper.render import Target, load_target
from dhel_kcl.results.claims import judge

SEEDS = (0, 1, 2, 3)
LUCK = (0.0003, -0.0003, 0.0001, -0.0001)
Add = Callable[..., None]


@pytest.fixture
def add(builder: ResultsBuilder) -> Add:
    """Add a run for each seed with one accuracy, up to a little luck, its effective rank and alignment."""

    def runs(loss: str, accuracy: float, rank: float = 10.0, seeds: tuple[int, ...] = SEEDS, **keys: object) -> None:
        diverged = keys.pop("diverged", False)
        given = {"temperature": 0.5, **keys}
        for seed in seeds:
            put = builder.run(loss=loss, seed=seed, **given)  # type: ignore[arg-type]
            put("diverged", float(bool(diverged)), x=1)
            if not diverged:
                luck = LUCK[(seed + len(builder.rows)) % 4]
                put("linear_top1", accuracy + luck, "h")
                put("validation_top1", accuracy + luck)
                put("test_images", 1_000_000, "h")
                put("effective_rank", rank * (1 + luck), "z")
                put("effective_rank", 2 * rank * (1 + luck), "h")
                put("alignment", 0.5, "z")

    return runs


def row(verdicts: pd.DataFrame, claim: str, loss: str = "dhel", baseline: str | None = None) -> pd.Series:
    rows = verdicts[(verdicts["claim"] == claim) & (verdicts["loss"] == loss)]
    rows = rows if baseline is None else rows[rows["baseline"] == baseline]
    assert len(set(rows["state"])) == 1
    return rows.iloc[0]


def test_a_lead_over_each_baseline_is_support_and_a_lag_behind_one_is_contradiction(
    add: Add, builder: ResultsBuilder
) -> None:
    add("ntxent", 0.80)
    add("dcl", 0.81)
    add("dhel", 0.82)
    add("kcl_log", 0.805, t=2.0, gamma=8.0, temperature=math.nan)
    add("kcl_gaussian", 0.81, t=2.0, gamma=8.0, temperature=math.nan)
    verdicts = judge(builder.table(), StudyConfig())
    assert row(verdicts, "accuracy")["state"] == "supported"
    assert row(verdicts, "accuracy", baseline="dcl")["estimate"] == pytest.approx(0.01, abs=1e-3)
    assert row(verdicts, "accuracy", "kcl_log")["state"] == "contradicted"
    assert row(verdicts, "accuracy", "kcl_log", "ntxent")["against_baseline"] == "supported"
    assert row(verdicts, "accuracy", "kcl_gaussian")["state"] == "inconclusive"
    assert row(verdicts, "rank")["state"] == "equivalent"
    assert row(verdicts, "batch_size")[["state", "reason"]].tolist() == [
        "not run",
        "no setting that both were run with at two batch sizes",
    ]
    assert row(verdicts, "several_data_sets")[["state", "reason"]].tolist() == ["not run", "one data set only"]


def test_with_one_seed_the_value_is_shown_and_nothing_is_judged(add: Add, builder: ResultsBuilder) -> None:
    add("ntxent", 0.5, seeds=(0,))
    add("dhel", 0.9, seeds=(0,))
    found = row(judge(builder.table(), StudyConfig()), "accuracy")
    assert found["estimate"] == pytest.approx(0.4, abs=1e-3)
    assert found[["state", "reason", "seeds"]].tolist() == ["inconclusive", "one seed", 1]
    assert found[["low", "high", "p", "p_holm"]].isna().all()


def test_without_a_baseline_nothing_was_run_to_compare_with(add: Add, builder: ResultsBuilder) -> None:
    add("dhel", 0.9)
    found = row(judge(builder.table(), StudyConfig()), "accuracy")
    assert found[["state", "reason"]].tolist() == ["not run", "no baseline was run"]


def test_a_run_that_could_not_be_measured_does_not_move_the_choice_of_the_setting(
    add: Add, builder: ResultsBuilder
) -> None:
    for loss, accuracies in {"ntxent": (0.80, 0.85), "dhel": (0.82, 0.83)}.items():
        for size, (temperature, accuracy) in itertools.product((32, 128), zip((0.1, 0.5), accuracies, strict=True)):
            add(loss, accuracy, batch_size=size, temperature=temperature)
    whole = judge(builder.table(), StudyConfig())
    lost = builder.table().query("run != 'cifar10-ntxent-temperature0.5-bs128-seed2' or metric == 'diverged'")
    for verdicts, cells in ((whole, 4), (judge(lost, StudyConfig()), 2)):
        found = row(verdicts, "accuracy")
        assert (found["state"], found["cells"]) == ("contradicted", cells)
        assert found["estimate"] == pytest.approx(-0.02, abs=0.001)
    assert row(judge(lost, StudyConfig()), "accuracy")["lost"] == "1 not measured"


def test_without_validation_accuracy_no_setting_is_taken_for_the_tuned_one(add: Add, builder: ResultsBuilder) -> None:
    for loss, temperature in itertools.product(("ntxent", "dhel"), (0.1, 0.5)):
        add(loss, 0.8, temperature=temperature)
    found = row(judge(builder.table().query("metric != 'validation_top1'"), StudyConfig()), "accuracy")
    assert found["state"] == "not run"
    assert found["reason"] == "no validation accuracy to choose the settings of DHEL by"


def test_a_loss_that_diverged_does_not_escape(add: Add, builder: ResultsBuilder) -> None:
    for batch_size, accuracy in ((64, 0.8), (256, 0.8)):
        add("ntxent", accuracy, batch_size=batch_size)
        add("dhel", accuracy, batch_size=batch_size, diverged=batch_size == 64)
    verdicts = judge(builder.table(), StudyConfig())
    assert row(verdicts, "batch_size")["state"] == "contradicted"
    assert row(verdicts, "batch_size")["estimate"] == pytest.approx(-0.7, abs=1e-3), "chance is 0.1"
    assert row(verdicts, "batch_size")["lost"] == "4 diverged"


def test_the_chance_of_a_data_set_of_another_name_has_to_be_given(add: Add, builder: ResultsBuilder) -> None:
    add("ntxent", 0.8, dataset="mine")
    add("dcl", 0.8, dataset="mine")
    add("dhel", 0.8, dataset="mine", diverged=True)
    with pytest.raises(InputError, match=r"study\.chance\.mine: missing, and a run diverged; give 1 / number of cl"):
        judge(builder.table(), StudyConfig())
    found = row(judge(builder.table(), StudyConfig(chance={"mine": 0.25})), "accuracy")
    assert found["estimate"] == pytest.approx(-0.55, abs=1e-3)
    assert found["state"] == "contradicted"


def test_any_data_set_can_be_judged_and_the_study_chooses_which(add: Add, builder: ResultsBuilder) -> None:
    for dataset in ("mine", "digits"):
        add("ntxent", 0.80, dataset=dataset)
        add("dhel", 0.82, dataset=dataset)
    verdicts = judge(builder.table(), StudyConfig())
    assert set(verdicts["dataset"]) == {"mine", "digits", "all"}
    assert row(verdicts, "several_data_sets")["state"] == "supported"
    assert set(judge(builder.table(), StudyConfig(datasets=["mine"]))["dataset"]) == {"mine", "all"}


def test_a_data_set_that_contradicts_a_gain_withdraws_support_for_several(add: Add, builder: ResultsBuilder) -> None:
    for dataset, gain in (("cifar10", 0.05), ("digits", -0.01)):
        add("ntxent", 0.80, dataset=dataset)
        add("dhel", 0.80 + gain, dataset=dataset)
    found = row(judge(builder.table(), StudyConfig()), "several_data_sets")
    assert found["low"] > 0
    assert found[["state", "reason"]].tolist() == ["inconclusive", "contradicted on a data set"]


def test_a_gain_on_one_data_set_alone_is_no_gain_on_several(add: Add, builder: ResultsBuilder) -> None:
    for dataset, gain in (("cifar10", 0.05), ("cifar100", 0.0), ("digits", 0.0)):
        add("ntxent", 0.80, dataset=dataset)
        add("dhel", 0.80 + gain, dataset=dataset)
    found = row(judge(builder.table(), StudyConfig()), "several_data_sets")
    assert found["low"] > 0
    assert found[["state", "reason"]].tolist() == ["inconclusive", "supported on fewer than two data sets"]


def test_exploratory_claims_are_not_in_the_family(add: Add, builder: ResultsBuilder) -> None:
    add("ntxent", 0.80)
    add("dhel", 0.82)
    families = {}
    for role in ("confirmatory", "exploratory"):
        claims = ClaimsConfig(rank=ClaimConfig(smallest_effect=0.1, role=role))
        verdicts = judge(builder.table(), StudyConfig(claims=claims))
        families[role] = row(verdicts, "accuracy")["p_holm"] / row(verdicts, "accuracy")["p"]
        assert pd.isna(row(verdicts, "rank")["p_holm"]) == (role == "exploratory")
    assert families == pytest.approx({"confirmatory": 2.0, "exploratory": 1.0})
    left_out = judge(builder.table(), StudyConfig(claims=ClaimsConfig(rank=None)))
    assert "rank" not in set(left_out["claim"])


def test_an_effect_that_is_explained_by_alignment_is_none_at_equal_alignment(builder: ResultsBuilder) -> None:
    for loss, shift in (("ntxent", 0.0), ("dhel", 0.3)):
        for seed in SEEDS:
            for place, temperature in enumerate((0.1, 0.2, 0.5, 1.0)):
                put = builder.run(loss=loss, seed=seed, temperature=temperature)
                alignment = math.exp(-0.3 * place + shift)
                put("alignment", alignment, "z")
                put("effective_rank", 50 * alignment**2 * math.exp(0.01 * (-1) ** place), "z")
                put("linear_top1", 0.8 + 0.001 * seed, "h")
                put("validation_top1", 0.8 + 0.01 * place)
    verdicts = judge(builder.table(), StudyConfig())
    assert row(verdicts, "rank")["estimate"] == pytest.approx(0.6)
    found = row(verdicts, "rank_at_alignment")
    assert found["estimate"] == pytest.approx(0, abs=0.01)
    assert found[["role", "state", "contains"]].tolist() == ["exploratory", "equivalent", "cells"]


def test_ranks_of_one_of_several_seeds_are_not_compared_at_equal_alignment(builder: ResultsBuilder) -> None:
    for loss in ("ntxent", "dhel"):
        for seed in SEEDS:
            for place, temperature in enumerate((0.1, 0.2, 0.5, 1.0)):
                put = builder.run(loss=loss, seed=seed, temperature=temperature)
                put("linear_top1", 0.8 + 0.001 * seed, "h")
                put("validation_top1", 0.8 + 0.01 * place)
                if seed == 0:
                    put("alignment", 0.1 + 0.1 * place, "z")
                    put("effective_rank", (20 if loss == "dhel" else 10) + (place - 1) ** 2, "z")
    found = row(judge(builder.table(), StudyConfig()), "rank_at_alignment")
    assert found[["state", "reason"]].tolist() == ["not run", "no effective rank"]


def test_stored_hits_give_the_uncertainty_of_the_test_images(add: Add, builder: ResultsBuilder) -> None:
    random = np.random.default_rng(0)
    difficulty = random.random(500)
    for loss, skill in (("ntxent", 0.6), ("dhel", 0.6)):
        for seed in SEEDS:
            put = builder.run(loss=loss, seed=seed, temperature=0.5)
            hits = difficulty + 0.05 * random.random(500) < skill
            put("linear_top1", hits.mean(), "h")
            builder.rows[-1]["test_hits"] = pack_hits(hits)
            put("validation_top1", 0.5)
            put("test_images", 500, "h")
    table = builder.table()
    known, bounded = (row(judge(each, StudyConfig()), "accuracy") for each in (table, table.drop(columns="test_hits")))
    assert known["contains"] == "seeds and test images"
    assert bounded["contains"] == "seeds and a bound for the test images"
    assert known["standard_error"] < bounded["standard_error"] / 2
    table.loc[table["test_hits"].notna(), "test_hits"] = "????"
    with pytest.raises(InputError, match="test_hits of cifar10-dhel-"):
        judge(table, StudyConfig())


def test_the_table_says_what_was_found_against_each_baseline(add: Add, builder: ResultsBuilder, scripts: Path) -> None:
    add("ntxent", 0.80)
    add("dcl", 0.79)
    add("dhel", 0.82)
    table: Target = load_target(scripts / "table_claims.py")
    results = builder.table()
    points = table.points(results, judge(results, StudyConfig()))
    assert table.layout
    printed = table.layout(points).set_index("Claim")
    measured = printed.loc["higher accuracy of linear evaluation", "Measured"]
    assert measured.startswith("+2.0 [+")
    assert measured.split("; ")[0].endswith("against NT-Xent")
    assert measured.split("; ")[1].startswith("+3.0 [+")
    assert printed.loc["higher accuracy of linear evaluation", "Verdict"] == "supported"
    at_alignment = "less dimensional collapse at equal alignment: higher effective rank of z"
    assert printed.loc[at_alignment, "Verdict"].startswith("not run (exploratory): too few settings")
