"""The summary that `dhel-kcl show` prints: headline accuracies, paths of the files, and the outcome of the audit."""

import shlex

from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape

from dhel_kcl.errors import InputError, escaped
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.ownership import how_to_verify, is_own, is_release
from dhel_kcl.provenance.seal import Seal, changed, read_seal


def show(experiment: Experiment) -> None:
    """Print the headline accuracies and where every figure, table and page is.

    Raises:
        InputError: the headline table is missing, or a file has changed since it passed an audit.
    """
    layout = experiment.layout
    headline = layout.tables / "table_linear_accuracy.md"
    if not headline.exists():
        raise InputError(f"{headline}: missing; run snakemake for {layout.root} first")
    console = Console()
    text = headline.read_text(encoding="utf-8", errors="replace")
    console.print(Markdown("\n".join(map(escaped, text.split("\n")))))
    scripts = experiment.targets.values()
    seal = _seal(layout)
    products = [path for script in scripts for path in layout.products(script.name)]
    theory = {"theory": (layout.theory, "")} if experiment.config.theory else {}
    pages = [layout.config, layout.results, layout.verdicts, layout.explorer, layout.report]
    pages += [layout.theory] if theory else []
    other = changed(layout, seal, [headline, *pages, *products]) if seal else []
    figures = " ".join(script.name for script in scripts if script.is_figure)
    tables = " ".join(script.name for script in scripts if not script.is_figure)
    places = {
        "figures": (layout.figures, f"/  {figures} (.png .pdf .csv)"),
        "tables": (layout.tables, f"/  {tables} (.md .csv)"),
        "results": (layout.results, ""),
        **theory,
        "verdicts": (layout.verdicts, ""),
        "explorer": (layout.explorer, ""),
        "report": (layout.report, ""),
        "audit": (layout.audit, f"  {_audit_outcome(layout, seal, len(other))}"),
    }
    for name, (place, said) in places.items():
        console.print(f"[bold]{name:<8}[/] {escape(escaped(str(place)) + said)}", soft_wrap=True, highlight=False)
    if other:
        raise InputError(
            f"{other[0]}: not the file that passed the audit, and {len(other) - 1} more of those above; "
            f"run `{_audit_command(layout)}`"
        )


def _seal(layout: Layout) -> Seal | None:
    """Return the seal if it counts; it does not in a release, or if a later audit failed or did not finish."""
    passed = is_own(layout.root) and layout.audit.exists() and not layout.audit_problems.exists()
    return read_seal(layout.audit) if passed else None


def _audit_outcome(layout: Layout, seal: Seal | None, changed: int) -> str:
    if is_release(layout.root):
        return f"not passed; {how_to_verify(layout.root)}"
    if layout.audit_problems.exists():
        return f"failed; {escaped(str(layout.audit_problems))} lists the problems"
    if seal is None:
        return f"not passed; run `{_audit_command(layout)}`"
    if changed:
        return f"passed before, but {changed} of the files above have changed since"
    passed = f"passed: {seal.points} points and cells, {seal.measurements} measurements, {seal.files} files"
    lines = (*seal.uncommitted, *seal.unlike)
    return "\n".join([passed, *(f"  warning: {escaped(line)}" for line in lines)])


def _audit_command(layout: Layout) -> str:
    return f"dhel-kcl audit {escaped(shlex.quote(str(layout.root)))}"
