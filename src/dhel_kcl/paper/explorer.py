"""The explorer: one page without a server, on which a reader can filter the runs and examine each of them."""

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import vl_convert
from markupsafe import Markup
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D

from dhel_kcl.errors import InputError
from dhel_kcl.files import parse_json, read_regular
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.job import Job
from dhel_kcl.jobs.manifest import Manifest, load_manifest
from dhel_kcl.jobs.stages import STAGES, run_stages
from dhel_kcl.paper.looks import LOSSES, Look
from dhel_kcl.paper.page import fill, write_page
from dhel_kcl.paper.render import load_results
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES
from dhel_kcl.results.robustness import HYPERPARAMETERS

ACCURACIES = {"linear_top1": "linear", "knn_top1": "k-NN", "augmented_top1": "linear, augmented images"}
"""Accuracies that a reader can choose from, if the experiment has them, and their names on the page."""

CURVE_POINTS = 64
CURVE_DIGITS = 4
SCALAR_DIGITS = 6

_RANKS = ("effective_rank_h", "effective_rank_z")
_FILTERS = {"dataset": "data set", "loss": "loss", "batch_size": "batch size", "setting": "hyperparameters"}
_SCALE = ["train_images", "backbone", "width", "epochs"]
_DATA = '<script type="application/json" id="data">'
_DIVERGED = "M-1,-.7L-.7,-1L0,-.3L.7,-1L1,-.7L.3,0L1,.7L.7,1L0,.3L-.7,1L-1,.7L-.3,0Z"
_WIDTH, _HEIGHT = 480, 300
_NEAR = alt.Scale(zero=False)


def write_explorer(results: Path, manifests: Mapping[str, Path], output: Path, stages: Sequence[str]) -> None:
    """Write the page; the arguments and errors are those of `explorer_text`."""
    write_page(explorer_text(results, manifests, output, stages), output)


def explorer_text(results: Path, manifests: Mapping[str, Path], output: Path, stages: Sequence[str]) -> str:
    """Return the text of the page; equal inputs give equal text.

    Args:
        results: the tidy results (Parquet).
        manifests: the manifest of each run's pretraining.
        output: where the HTML file will be; links to manifests are relative to it.
        stages: the stages of each run, whose manifests are linked to.

    Raises:
        InputError: an input is missing or unreadable, or a run in the results has no manifest.
    """
    rows = run_rows(results, manifests, output.parent)
    runs = pd.DataFrame(rows).set_index("run")
    looks = [look for look in LOSSES.values() if look.name in set(runs["loss"])]
    return fill(
        "explorer.html.j2",
        library=_library(),
        rows=rows,
        stages=list(stages),
        spec=_specification(runs, looks),
        scale=_scale(runs),
        diverged=int((runs["state"] == "diverged").sum()),
        points=CURVE_POINTS,
        curve_digits=CURVE_DIGITS,
        scalar_digits=SCALAR_DIGITS,
    )


def run_rows(results: Path, manifests: Mapping[str, Path], folder: Path) -> list[dict[str, Any]]:
    """Collect the data of the page: one mapping of JSON values for each run.

    Curves are thinned to `CURVE_POINTS` points and rounded to `CURVE_DIGITS` significant digits, so that a page with
    2,160 runs stays small. The arguments and errors are those of `explorer_text`; paths of manifests are relative to
    `folder`.
    """
    table = load_results(
        results, ("diverged", "not_measured", *ACCURACIES, "effective_rank", "singular_value", "training_loss")
    )
    runs = table.drop_duplicates("run").set_index("run").join(_scalars(table))
    runs = runs.assign(
        dataset=runs["dataset"].map(lambda name: DATASET_NAMES.get(name, name)),
        loss=runs["loss"].map(LOSS_NAMES),
        setting=[_setting(values) for values in runs[HYPERPARAMETERS].itertuples(index=False)],
    )
    curves = _curves(table)
    rows = []
    for run, values in zip(runs.index, runs.to_dict("records"), strict=True):
        if run not in manifests:
            raise InputError(f"{results}: no manifest of run {run}; run the workflow again")
        rows.append(
            {
                "run": run,
                **{key: values[key] for key in (*_FILTERS, *_SCALE, "learning_rate", "seed")},
                **{key: _rounded(values[key]) for key in (*ACCURACIES, *_RANKS) if key in runs},
                "state": _state(values),
                **_provenance(manifests[run], folder),
                **curves.get(run, {}),
            }
        )
    return rows


def _state(values: Mapping[Any, Any]) -> str:
    if values["diverged"] == 1:
        return "diverged"
    return "finished" if values.get("not_measured") != 1 else "finished, not wholly measured"


def read_rows(page: Path) -> list[dict[str, Any]]:
    """Read the data of a page, as returned by `run_rows`.

    Raises:
        InputError: the file is missing or is not a page of the explorer.
    """
    try:
        return list(parse_json(read_regular(page).decode().split(_DATA)[1].partition("</script>")[0]))
    except (OSError, IndexError, ValueError) as error:
        raise InputError(f"{page}: not a page of the explorer; delete it and run its rule again") from error


@functools.cache
def _library() -> Markup:
    """Return the JavaScript of Vega, Vega-Lite and vega-embed as one bundle."""
    version = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
    bundle = vl_convert.javascript_bundle("Object.assign(window, {vegaEmbed});", version)
    return Markup(bundle)  # nosec B704 # from the installed vl-convert


def _scalars(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run and one column per scalar; scalars of both representations end in ``_h`` or ``_z``.

    Of several numbers of neighbours, the smallest is shown.
    """
    scalars = table[~table["metric"].isin(["singular_value", "training_loss"])]
    scalars = scalars.sort_values("x", kind="stable").drop_duplicates(["run", "metric", "representation", "source"])
    suffix = ("_" + scalars["representation"]).where(scalars["metric"] == "effective_rank", "")
    wide = scalars.assign(metric=scalars["metric"] + suffix).pivot_table("value", "run", "metric", sort=False)
    always = ["diverged", "linear_top1", "knn_top1", *_RANKS]  # NaN where every run diverged
    return wide.reindex(columns=[*always, *wide.columns.difference(always)])


def _setting(values: Iterable[float]) -> str:
    return ", ".join(
        f"{name} {value:g}" for name, value in zip(HYPERPARAMETERS, values, strict=True) if not pd.isna(value)
    )


def _rounded(value: float, digits: int = SCALAR_DIGITS) -> float | None:
    return None if not np.isfinite(value) else float(f"{value:.{digits}g}")


def _curves(table: pd.DataFrame) -> dict[str, dict[str, list[float | None]]]:
    """Return ``NAME_x`` and ``NAME_y`` for each run's spectra (``h``, ``z``) and training loss (``training``)."""
    curves: dict[str, dict[str, list[float | None]]] = {}
    rows = table[table["metric"].isin(["singular_value", "training_loss"])].sort_values("x", kind="stable")
    for (run, representation), curve in rows.groupby(["run", "representation"], sort=False):
        kept = np.unique(np.linspace(0, len(curve) - 1, CURVE_POINTS).round().astype(int))
        name = representation or "training"
        arrays = curves.setdefault(str(run), {})
        arrays[f"{name}_x"] = [int(x) for x in curve["x"].to_numpy()[kept]]
        arrays[f"{name}_y"] = [_rounded(value, CURVE_DIGITS) for value in curve["value"].to_numpy()[kept]]
    return curves


def _provenance(path: Path, folder: Path) -> dict[str, Any]:
    manifest = load_manifest(path)
    return {
        "commit": manifest.git_commit or "unknown",
        "tree": {True: "uncommitted changes", False: "clean", None: "unknown"}[manifest.git_dirty],
        "started": manifest.started,
        "hardware": ", ".join(f"{name} {value}" for name, value in manifest.hardware.items()),
        "encoder": _sha256(manifest, "encoder.safetensors", path),
        "beton": " ".join(artifact.sha256 for name, artifact in manifest.inputs.items() if name.endswith(".beton")),
        "manifest": Path(os.path.relpath(path, folder)).as_posix(),
    }


def _sha256(manifest: Manifest, output: str, path: Path) -> str:
    if output not in manifest.outputs:
        raise InputError(f"{path}: records no {output}; delete it and run its rule again")
    return manifest.outputs[output].sha256


def _scale(runs: pd.DataFrame) -> list[str]:
    """Describe the training for each data set, so that nobody mistakes a small run for one of the paper's."""
    groups = runs.groupby(["dataset", *_SCALE], sort=False)["seed"].agg(_seeds)
    return [
        "{dataset}: {train_images:,} training images, {backbone} of width {width:g}, {epochs} epochs, "
        "{seed}".format_map(group)
        for group in groups.reset_index().to_dict("records")
    ]


def _seeds(seeds: pd.Series) -> str:
    values = sorted(set(seeds))
    return f"seed{'s' if len(values) > 1 else ''} {', '.join(map(str, values))}"


def _specification(runs: pd.DataFrame, looks: list[Look]) -> dict[str, Any]:
    """Return the Vega-Lite specification of the four panels and the controls; its data are named ``runs``."""
    specification: dict[str, Any] = _panels(runs, looks).to_dict()
    for parameter in specification["params"]:
        if "select" in parameter:  # Altair warns when charts share a selection, and has no other way to do it
            parameter["views"] = ["by_batch_size", "against_rank"]
    return specification


def _panels(runs: pd.DataFrame, looks: list[Look]) -> Any:
    accuracies = {key: name for key, name in ACCURACIES.items() if key in runs}
    filters = [_dropdown(f"chosen_{key}", label, ["all", *_choices(runs, key)]) for key, label in _FILTERS.items()]
    accuracy = _dropdown("accuracy", "accuracy", [*accuracies], [*accuracies.values()])
    representation = _dropdown("representation", "representation", ["z", "h"], ["projector z", "backbone h"])
    picked = alt.selection_point(name="picked", fields=["run"], empty=False, value=_picked_at_first(runs))
    hovered = alt.selection_point(name="hovered", fields=["run"], empty=False, on="pointerover", clear="pointerout")
    shown = alt.Chart(alt.NamedData("runs")).transform_filter(
        " && ".join(f"(chosen_{key} == 'all' || datum.{key} == chosen_{key})" for key in _FILTERS)
    )
    points = (
        shown.transform_calculate(
            measured="datum[accuracy]",
            rank="datum['effective_rank_' + representation]",
            encoder_start="slice(datum.encoder, 0, 16)",
            beton_start="slice(datum.beton, 0, 16)",
            **{f"told_{key}": f"isValid(datum.{key}) ? datum.{key} : 'none'" for key in (*accuracies, *_RANKS)},
        )
        .mark_point(filled=True)
        .encode(
            size=alt.when(hovered)
            .then(alt.value(160))
            .when(picked)
            .then(alt.value(110))
            .when("datum.state == 'diverged'")  # a thin cross, so it must be large enough to hover over
            .then(alt.value(90))
            .otherwise(alt.value(45)),
            opacity=alt.when(picked | hovered).then(alt.value(1)).otherwise(alt.value(0.6)),
            stroke=alt.when(picked | hovered).then(alt.value("black")).otherwise(alt.value(None)),
            tooltip=_tooltip(runs),
        )
    )
    floor = "datum.lowest - max(0.01, 0.08 * (datum.highest - datum.lowest))"
    by_batch_size = (
        points.transform_joinaggregate(lowest="min(measured)", highest="max(measured)")
        .transform_calculate(height=f"isValid(datum.measured) ? datum.measured : {floor}")
        .encode(
            _x("batch_size:O", "batch size", alt.Scale(), axis=alt.Axis(labelAngle=0, grid=False)),
            _y("height:Q", "accuracy"),
            xOffset=alt.XOffset("loss:N", scale=alt.Scale(domain=[look.name for look in looks])),
            color=_colour(looks),
            shape=_shape(looks),
        )
        .add_params(*filters, accuracy, representation, picked, hovered)
    )
    against_rank = points.transform_filter("isValid(datum.rank) && isValid(datum.measured)").encode(
        _x("rank:Q", "effective rank"), _y("measured:Q", "accuracy"), color=_colour(looks), shape=_shape(looks)
    )
    lines = (
        shown.transform_filter(picked | hovered)
        .mark_line()
        .encode(
            color=_colour(looks),
            detail="run:N",
            strokeWidth=alt.when(hovered).then(alt.value(3.5)).otherwise(alt.value(1.5)),
            tooltip=["run:N", "x:Q", "value:Q"],
        )
    )
    spectrum = (
        lines.transform_calculate(x="datum[representation + '_x']", value="datum[representation + '_y']")
        .transform_filter("isValid(datum.value)")
        .transform_flatten(["x", "value"])
        .transform_filter("datum.value > 0")
        .encode(
            _x("x:Q", "index", alt.Scale(nice=False)),
            _y("value:Q", "singular value", alt.Scale(type="log"), axis=alt.Axis(format=".0e")),
        )
    )
    whole = alt.Axis(format="d", tickMinStep=1, labelExpr="datum.value % 1 ? '' : datum.label")
    training = (
        lines.transform_filter("isValid(datum.training_x)")
        .transform_flatten(["training_x", "training_y"], ["x", "value"])
        .transform_filter("isValid(datum.value)")
        .transform_calculate(change="datum.value - datum.training_y[0]")
        .encode(_x("x:Q", "epoch", axis=whole), _y("change:Q", "change of the loss"))
    )
    kind = f"{accuracies}[accuracy]"
    first, second, third, fourth = (
        chart.properties(name=name, title=alt.Title(text=title), width=_WIDTH, height=_HEIGHT)
        for name, chart, title in (
            ("by_batch_size", by_batch_size, alt.expr(f"'Test accuracy (' + {kind} + ') of each run'")),
            ("against_rank", against_rank, alt.expr(f"'Accuracy (' + {kind} + ') against rank of ' + representation")),
            ("spectrum", spectrum, alt.expr("'Spectrum of the covariance of ' + representation + ', marked runs'")),
            ("training", training, "Training loss since the first epoch, marked runs"),
        )
    )
    return (
        alt.vconcat(alt.hconcat(first, second, spacing=40), alt.hconcat(third, fourth, spacing=40), spacing=30)
        .resolve_scale(color="shared", shape="shared")
        .configure_view(stroke=None)
        .configure_axis(gridColor="#e3e3e3", domainColor="#555", labelFontSize=12, titleFontSize=12)
        .configure_legend(orient="top", title=None, labelFontSize=12, symbolSize=80, symbolOpacity=1, columnPadding=14)
        .configure_title(anchor="start", fontSize=14)
    )


def _x(field: str, title: str, scale: alt.Scale = _NEAR, **options: Any) -> alt.X:
    return alt.X(field, title=title, scale=scale, **options)


def _y(field: str, title: str, scale: alt.Scale = _NEAR, **options: Any) -> alt.Y:
    return alt.Y(field, title=title, scale=scale, **options)


def _colour(looks: list[Look]) -> alt.Color:
    scale = alt.Scale(domain=[look.name for look in looks], range=[look.colour for look in looks])
    return alt.Color("loss:N", scale=scale, title=None)


def _shape(looks: list[Look]) -> Any:
    scale = alt.Scale(domain=[look.name for look in looks], range=[_svg_path(look.marker) for look in looks])
    finished = alt.Shape("loss:N", scale=scale, title=None)
    return alt.when("datum.state == 'diverged'").then(alt.value(_DIVERGED)).otherwise(finished)


def _choices(runs: pd.DataFrame, key: str) -> list[Any]:
    values = runs[key].unique().tolist()
    return sorted(values) if key == "batch_size" else values


def _dropdown(name: str, label: str, options: list[Any], labels: list[str] | None = None) -> alt.Parameter:
    bind = alt.binding_select(options=options, labels=labels or alt.Undefined, name=label, element="#controls")
    return alt.param(name=name, value=options[0], bind=bind)


def _picked_at_first(runs: pd.DataFrame) -> list[dict[str, str]]:
    first = runs[(runs["dataset"] == runs["dataset"].iloc[0]) & runs["linear_top1"].notna()]
    return [{"run": run} for run in first.groupby("loss", sort=False)["linear_top1"].idxmax()]


def _tooltip(runs: pd.DataFrame) -> list[alt.Tooltip]:
    shown = {
        **{"run": "run", "state": "state"},
        **_FILTERS,
        **{"learning_rate": "learning rate", "seed": "seed"},
        **{f"told_{key}": f"accuracy ({name})" for key, name in ACCURACIES.items() if key in runs},
        **{f"told_{key}": f"effective rank of {key[-1]}" for key in _RANKS},
        **{"commit": "git commit", "tree": "working tree", "started": "started", "hardware": "hardware"},
        **{"encoder_start": "encoder sha256", "beton_start": "beton sha256", "manifest": "manifest"},
    }
    return [alt.Tooltip(field=field, type="nominal", title=title) for field, title in shown.items()]


def _svg_path(marker: str) -> str:
    """Convert a matplotlib marker to a Vega shape: an SVG path in [-1, 1] with y pointing down."""
    letters = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE4: "C", Outline.CLOSEPOLY: "Z"}
    style = MarkerStyle(marker)
    outline = style.get_path().transformed(style.get_transform() + Affine2D().scale(2, -2))
    return "".join(
        letters[code] + ("" if code == Outline.CLOSEPOLY else ",".join(f"{value:.3f}" for value in vertices))
        for vertices, code in outline.iter_segments(simplify=False)
    )


def run(job: Job) -> str:
    """Write the page of single runs.

    Raises:
        InputError: as `write_explorer`.
    """
    (page,) = job.writes.values()
    with job.recorded():
        write_explorer(job.layout.results, trainings(job.experiment), page, run_stages(job.config))
    return str(page)


def trainings(experiment: Experiment) -> dict[str, Path]:
    """Return the manifest of each run's pretraining, which the page shows."""
    return {run: STAGES["pretrain"].manifest(experiment.layout, run) for run in experiment.config.runs}
