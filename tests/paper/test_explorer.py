"""The explorer's page: what it holds, on a synthetic table. `test_pages.py` opens it in a browser."""

import re
from pathlib import Path

import pytest
from explorer_page import Page, run_table

from dhel_kcl.errors import InputError
from dhel_kcl.jobs.manifest import load_manifest
from dhel_kcl.paper.explorer import CURVE_POINTS, read_rows
from dhel_kcl.paper.looks import LOSSES


def test_each_run_is_there_with_its_keys_its_values_and_the_manifest_behind_it(page: Page) -> None:
    tables = [run_table("dhel", 32), run_table("ntxent", 256)]
    page.write(*tables)
    for row, table in zip(read_rows(page.output), tables, strict=True):
        measured = table.set_index(["metric", "representation"])["value"]
        assert (row["run"], row["dataset"]) == (table["run"].iloc[0], "CIFAR-10")
        assert (row["setting"], row["seed"], row["state"]) == ("temperature 0.5", 0, "finished")
        assert row["linear_top1"] == pytest.approx(measured["linear_top1", "h"], rel=1e-5)
        assert row["effective_rank_z"] == pytest.approx(measured["effective_rank", "z"], rel=1e-5)
        assert row["z_y"] == pytest.approx(measured["singular_value", "z"].to_list(), rel=1e-3)
        assert row["training_y"] == pytest.approx(measured["training_loss", ""].to_list(), rel=1e-3)
        assert row["training_x"] == [1, 2, 3]
        manifest = load_manifest(page.manifests[row["run"]])
        assert (row["commit"], row["tree"], row["started"]) == ("c" * 40, "clean", manifest.started)
        assert row["encoder"] == manifest.outputs["encoder.safetensors"].sha256
        assert row["beton"] == manifest.inputs["train.beton"].sha256
        assert (page.output.parent / row["manifest"]) == page.manifests[row["run"]]


def test_a_run_that_diverged_is_shown_as_such(page: Page) -> None:
    text = page.write(run_table("dhel", 32), run_table("dhel", 256, diverged=True))
    finished, diverged = read_rows(page.output)
    assert (finished["state"], diverged["state"]) == ("finished", "diverged")
    assert diverged["linear_top1"] is None
    assert len(diverged["training_y"]) == len(finished["training_y"]) - 1
    assert "(1 of 2)" in text


def test_a_page_of_runs_that_all_diverged_can_be_written(page: Page) -> None:
    page.write(run_table("dhel", 32, diverged=True), run_table("dcl", 32, diverged=True))
    assert [row["state"] for row in read_rows(page.output)] == ["diverged", "diverged"]


def test_equal_inputs_give_equal_bytes(page: Page) -> None:
    assert page.write(run_table("dhel", 32), run_table("kcl_log", 32)) == page.write_again()


def test_the_page_says_at_which_scale_the_runs_were_made(page: Page) -> None:
    text = page.write(run_table("dhel", 32), run_table("dhel", 256))
    assert "CIFAR-10: 50,000 training images, resnet18 of width 0.25, 3 epochs, seed 0" in text


def test_the_palette_is_that_of_the_figures(page: Page) -> None:
    page.write(*(run_table(loss, 32) for loss in reversed(LOSSES)))
    points = page.specification()["vconcat"][0]["hconcat"][0]["encoding"]
    assert points["color"]["scale"] == {
        "domain": [look.name for look in LOSSES.values()],
        "range": [look.colour for look in LOSSES.values()],
    }
    shapes = points["shape"]["scale"]["range"]
    assert len(set(shapes)) == len({look.marker for look in LOSSES.values()})


def test_markers_are_drawn_as_matplotlib_draws_them(page: Page) -> None:
    page.write(run_table("dhel", 32), run_table("ntxent", 32), run_table("dcl", 32))
    square, triangle, diamond = page.specification()["vconcat"][0]["hconcat"][0]["encoding"]["shape"]["scale"]["range"]

    def corners(path: str) -> set[tuple[float, ...]]:
        return {tuple(float(v) + 0.0 for v in pair) for pair in re.findall(r"(-?[\d.]+),(-?[\d.]+)", path)}

    assert corners(square) == {(-1, -1), (-1, 1), (1, -1), (1, 1)}
    assert corners(triangle) == {(0, -1), (-1, 1), (1, 1)}, "its top is up, where y is small"
    assert corners(diamond) == {(0, 1.414), (1.414, 0), (0, -1.414), (-1.414, 0)}


def test_long_curves_are_thinned_and_keep_both_ends(page: Page) -> None:
    table = run_table("dhel", 32, epochs=200, h=2048, z=128)
    page.write(table)
    (row,) = read_rows(page.output)
    for name, last in (("h", 2048), ("z", 128), ("training", 200)):
        x, y = row[f"{name}_x"], row[f"{name}_y"]
        assert len(x) == len(y) == CURVE_POINTS
        assert (x[0], x[-1]) == (1, last)
        assert x == sorted(set(x))
    values = table[(table["metric"] == "singular_value") & (table["representation"] == "h")].set_index("x")["value"]
    assert row["h_y"] == pytest.approx(values[row["h_x"]].to_list(), rel=1e-3)


def test_the_page_of_the_papers_grid_stays_below_15_megabytes(page: Page) -> None:
    runs = [run_table("dhel", batch_size, epochs=200, h=2048, z=128) for batch_size in range(2, 22)]
    sizes = [len(page.write(*part)) for part in (runs[:10], runs)]
    each = (sizes[1] - sizes[0]) / 10
    assert sizes[0] + 2150 * each < 15e6


def test_text_from_the_results_cannot_leave_its_place(page: Page) -> None:
    table = run_table("dhel", 32).assign(run="</script><b>")
    text = page.write(table)
    assert read_rows(page.output)[0]["run"] == "</script><b>"
    assert "<b>" not in text
    assert text.count("</script>") == text.count("<script") == 3


def test_the_page_loads_nothing(page: Page) -> None:
    text = page.write(run_table("dhel", 32))
    before, _, after = text.partition("<script>")
    own = before + after.partition("</script>")[2]  # the library in between names addresses of namespaces
    assert not re.search(r"\ssrc=|<link|@import|url\(|fetch\(", own)


def test_a_run_without_a_manifest_is_named(page: Page) -> None:
    page.write(run_table("dhel", 32))
    page.output.unlink()
    page.manifests.clear()
    with pytest.raises(InputError, match="no manifest of run cifar10-dhel-bs32-seed0; run the workflow again"):
        page.write_again()
    assert not page.output.exists()


def test_a_manifest_without_an_encoder_is_named(page: Page) -> None:
    page.write(run_table("dhel", 32))
    page.manifests = dict.fromkeys(page.manifests, page.make_manifest("pretrain", "x", ["train.beton"]))
    with pytest.raises(InputError, match=r"pretrain-x\.json: records no encoder\.safetensors"):
        page.write_again()


@pytest.mark.parametrize("content", [None, "<html></html>", '<script type="application/json" id="data">{'])
def test_a_file_that_is_no_explorer_is_refused(tmp_path: Path, content: str | None) -> None:
    page = tmp_path / "explorer.html"
    if content is not None:
        page.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"explorer\.html: not a page of the explorer"):
        read_rows(page)


def test_the_manifests_of_every_stage_that_runs_went_through_are_linked_to(page: Page) -> None:
    assert 'const stages = ["pretrain","features","corruptions"];' in page.write(run_table("dhel", 32))
