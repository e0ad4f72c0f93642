"""The jobs of an experiment, as their manifests record them: which stage used whose files, and what each took."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx

from dhel_kcl.provenance import Manifest, load_manifest, locate

_BOX_WIDTH, _BOX_HEIGHT, _GAP_X, _GAP_Y = 130, 44, 30, 22


def load_jobs(paths: Iterable[Path]) -> dict[Path, Manifest]:
    """Read manifests.

    Raises:
        InputError: one is missing or malformed.
    """
    return {path: load_manifest(path) for path in paths}


def stage_graph(jobs: Mapping[Path, Manifest]) -> nx.DiGraph:
    """Graph of the stages that ran: an edge leads from a stage to each one that used a file of its.

    Figures and tables count as stages of their own. A manifest that a job read counts as a file of the job that it
    describes.

    Returns:
        Nodes are names of stages, in the order of `jobs`; their attribute `jobs` lists the manifests.
    """
    graph = nx.DiGraph()
    producers: dict[Path, str] = {}
    for path, job in jobs.items():
        stage = _stage(job)
        if stage not in graph:
            graph.add_node(stage, jobs=[])
        graph.nodes[stage]["jobs"].append(job)
        producers |= {locate(path, artifact): stage for artifact in job.outputs.values()}
        producers[path.resolve()] = stage
    for path, job in jobs.items():
        used = dict.fromkeys(producers.get(locate(path, artifact)) for artifact in job.inputs.values())
        graph.add_edges_from((producer, _stage(job)) for producer in used if producer is not None)
    return graph


def _stage(job: Manifest) -> str:
    if job.stage != "render":
        return job.stage
    return "figures" if job.subject.startswith("fig_") else "tables"


def stage_costs(graph: nx.DiGraph) -> list[dict[str, Any]]:
    """What each stage took: jobs, their time in all, seconds of the median and the longest, highest peak memory (MiB).

    `uses` names the stages whose files it used.
    """
    costs = []
    for stage, jobs in graph.nodes(data="jobs"):
        seconds = [job.seconds for job in jobs]
        memory = [job.peak_memory_mib for job in jobs if job.peak_memory_mib is not None]
        costs.append(
            {
                "stage": stage,
                "jobs": len(jobs),
                "total": timedelta(seconds=round(sum(seconds))),
                "median": statistics.median(seconds),
                "longest": max(seconds),
                "memory": max(memory, default=None),
                "uses": list(graph.predecessors(stage)),
            }
        )
    return costs


def hardware(jobs: Iterable[Manifest]) -> list[dict[str, Any]]:
    """The kinds of machines that the jobs ran on, most used first, each with its number of `jobs`."""
    counts = Counter(tuple(job.hardware.items()) for job in jobs)
    return [{**dict(facts), "jobs": count} for facts, count in counts.most_common()]


def drawing(graph: nx.DiGraph) -> dict[str, Any]:
    """Where to draw each stage and arrow: layers from left to right, each stage just before the first that uses it.

    Arrows that follow from others are left out. One that spans several layers has an invisible place in each of
    them, so that it passes no box.

    Returns:
        `width`, `height`, `box_width` and `box_height`; `boxes` with `x`, `y`, `stage` and `jobs`; and `arrows`, each
        an SVG path.
    """
    reduced = nx.transitive_reduction(graph)
    layers: list[list[Any]] = [
        [stage for stage in graph if stage in generation]
        for generation in map(set, nx.topological_generations(reduced.reverse()))
    ][::-1]
    column = {stage: index for index, layer in enumerate(layers) for stage in layer}
    chains = []
    for start, end in sorted(reduced.edges):
        between = [(start, end, index) for index in range(column[start] + 1, column[end])]
        for place in between:
            layers[place[2]].append(place)
        chains.append([start, *between, end])
    row = _rows(layers, nx.Graph(pair for chain in chains for pair in pairwise(chain)))
    top = min(row.values(), default=0)
    x = {place: index * (_BOX_WIDTH + _GAP_X) for index, layer in enumerate(layers) for place in layer}
    y = {place: (value - top) * (_BOX_HEIGHT + _GAP_Y) for place, value in row.items()}
    return {
        "width": max(x.values(), default=0) + _BOX_WIDTH,
        "height": max(y.values(), default=0) + _BOX_HEIGHT,
        "box_width": _BOX_WIDTH,
        "box_height": _BOX_HEIGHT,
        "arrows": [_arrow([(x[place], y[place] + _BOX_HEIGHT / 2) for place in chain]) for chain in chains],
        "boxes": [
            {"stage": stage, "jobs": len(jobs), "x": x[stage], "y": y[stage]}
            for stage, jobs in graph.nodes(data="jobs")
        ],
    }


def _rows(layers: list[list[Any]], links: nx.Graph) -> dict[Any, float]:
    """The row of each place, around 0: in each layer places are sorted by the mean row of their neighbours."""
    row = {place: index - (len(layer) - 1) / 2 for layer in layers for index, place in enumerate(layer)}
    for _ in range(8):
        for layer in layers:
            means = {place: statistics.fmean(row[other] for other in links[place]) for place in layer if place in links}
            ordered = sorted(layer, key={**row, **means}.__getitem__)
            row |= {place: index - (len(layer) - 1) / 2 for index, place in enumerate(ordered)}
    return row


def _arrow(places: list[tuple[float, float]]) -> str:
    """A smooth line from the right of the first place, through the others, to the left of the last one."""
    path = f"M{places[0][0] + _BOX_WIDTH:g},{places[0][1]:g}"
    for (_, start), (x, end) in pairwise(places):
        bend = x - _GAP_X / 2
        path += f"C{bend:g},{start:g} {bend:g},{end:g} {x:g},{end:g}H{x + _BOX_WIDTH:g}"
    return path.rpartition("H")[0]
