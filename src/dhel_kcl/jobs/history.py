"""The jobs of an experiment, as their manifests record them: which stage used whose files, and what each took."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx

from dhel_kcl.jobs.manifest import Manifest, absolute, load_manifest, locate

_BOX_WIDTH, _BOX_HEIGHT, _GAP_ALONG, _GAP_ACROSS = 130, 44, 30, 22


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
        producers[absolute(path)] = stage
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


def drawing(graph: nx.DiGraph, *, downwards: bool = False) -> dict[str, Any]:
    """Where to draw each stage and arrow: layers from left to right, each stage just before the first that uses it.

    Arrows that follow from others are left out. One that spans several layers has an invisible place in each of
    them, so that it passes no box.

    Args:
        graph: stages without cycles.
        downwards: layers from top to bottom instead.

    Returns:
        `width`, `height`, `box_width` and `box_height`; `boxes` with `x`, `y` and `stage`; and `arrows`, each an SVG
        path. `stage_graph.svg.j2` draws them.
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
    first = min(row.values(), default=0)
    length, breadth = (_BOX_HEIGHT, _BOX_WIDTH) if downwards else (_BOX_WIDTH, _BOX_HEIGHT)
    along = {place: index * (length + _GAP_ALONG) for index, layer in enumerate(layers) for place in layer}
    across = {place: (value - first) * (breadth + _GAP_ACROSS) for place, value in row.items()}
    x, y = (across, along) if downwards else (along, across)
    routes = [[(along[place], across[place] + breadth / 2) for place in chain] for chain in chains]
    return {
        "width": max(x.values(), default=0) + _BOX_WIDTH,
        "height": max(y.values(), default=0) + _BOX_HEIGHT,
        "box_width": _BOX_WIDTH,
        "box_height": _BOX_HEIGHT,
        "arrows": [_arrow(route, length, downwards) for route in routes],
        "boxes": [{"stage": stage, "x": x[stage], "y": y[stage]} for stage in graph],
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


def _arrow(places: Sequence[tuple[float, float]], length: float, downwards: bool) -> str:
    """A smooth line from the end of the first place, through the others, to the beginning of the last one."""

    def point(along: float, across: float) -> str:
        return f"{across:g},{along:g}" if downwards else f"{along:g},{across:g}"

    straight = "V" if downwards else "H"
    path = f"M{point(places[0][0] + length, places[0][1])}"
    for (_, start), (along, end) in pairwise(places):
        bend = along - _GAP_ALONG / 2
        path += f"C{point(bend, start)} {point(bend, end)} {point(along, end)}{straight}{along + length:g}"
    return path.rpartition(straight)[0]
