"""Draw architecture.svg from the rules of the workflow: `python docs/write_architecture.py`.

A test fails while the drawing is stale.
"""

import re
import subprocess  # nosec B404 # for snakemake
from pathlib import Path

import networkx as nx

from dhel_kcl.experiment.config import EvaluationConfig, load_config
from dhel_kcl.jobs import stages
from dhel_kcl.jobs.history import drawing
from dhel_kcl.paper.page import fill, write_page

DOCS = Path(__file__).parent
CONFIG = "config/cifar10_quarter.yaml"
EVERY_STAGE = ["--config", "evaluation={augmented_images: true, corruptions: true}"]
PRODUCTS = {"fig": "figures", "table": "tables"}


def rule_graph(folder: Path) -> nx.DiGraph:
    """Snakemake's graph of the rules, with the configuration before those that read no files.

    Args:
        folder: a clone.

    Returns:
        Names of rules, in the order in which jobs can run; all rules of figures are one node, so are those of tables.
        The attribute `rules` counts them.
    """
    command = ["snakemake", "--rulegraph", "dot", "--forceall", "--configfile", CONFIG, *EVERY_STAGE]
    dot = subprocess.run(command, cwd=folder, check=True, capture_output=True, encoding="utf-8").stdout  # nosec B603 # no shell
    rules = dict(re.findall(r'(\d+)\[label = "(\w+)"', dot))
    node = {key: PRODUCTS.get(rule.partition("_")[0], rule) for key, rule in rules.items() if rule != "all"}
    graph = nx.DiGraph((node[start], node[end]) for start, end in re.findall(r"(\d+) -> (\d+)", dot) if end in node)
    first = [stage for stage, uses in graph.in_degree if uses == 0]
    graph.add_edges_from(("configuration", stage) for stage in first)
    for stage in graph:
        graph.nodes[stage]["rules"] = list(node.values()).count(stage)
    ordered = nx.DiGraph()
    ordered.add_nodes_from((stage, graph.nodes[stage]) for stage in nx.lexicographical_topological_sort(graph))
    ordered.add_edges_from(graph.edges)
    return ordered


def write_drawing(output: Path, folder: Path = DOCS.parent) -> None:
    """Draw the stages of the workflow in a clone."""
    graph = rule_graph(folder)
    default = load_config(folder / CONFIG).model_copy(update={"evaluation": EvaluationConfig()})
    usual = stages.run_stages(default)
    notes = dict.fromkeys(graph, "once")
    notes |= {stage: "each run" if stage in usual else "each run, if asked for" for stage in stages.RUN_STAGES}
    notes |= {products: f"{graph.nodes[products]['rules']} scripts" for products in PRODUCTS.values()}
    notes |= {"configuration": "one file in config/", "data": "each split"}
    write_page(fill("stage_graph.svg.j2", graph=drawing(graph, downwards=True), notes=notes), output)


if __name__ == "__main__":
    write_drawing(DOCS / "architecture.svg")
