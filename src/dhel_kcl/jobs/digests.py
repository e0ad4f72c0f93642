"""Digests of source code that change when its results may change, but not when only its comments or messages do."""

import ast
import functools
from hashlib import sha256
from pathlib import Path
from typing import Any

import grimp

from dhel_kcl.files import sha256_json

SHOWING = frozenset(
    f"dhel_kcl.{name}" for name in ("__main__", "cli", "console", "data.progress", "errors", "training.progress")
)
"""Modules that only show what is happening: the command line and its help, messages, progress, TensorBoard."""

READING = frozenset(
    f"dhel_kcl.{name}" for name in ("declarations", "experiment.config", "experiment.grid", "experiment.strict_yaml")
)
"""Modules that read what a job depends on; the job's digest includes the values that they read."""

DESCRIBING = frozenset(
    f"dhel_kcl.jobs.{name}"
    for name in ("configure", "digests", "experiment", "job", "layout", "manifest", "ownership", "running", "stages")
)
"""Modules that define what a job reads, writes and depends on; the job's digest and manifest include those values."""

NOT_COMPUTING = SHOWING | READING | DESCRIBING | {"dhel_kcl"}
"""Modules that no digest includes; `dhel_kcl/__init__.py` contains only the version."""


_TEXT_ONLY = {"AttributeError", "InputError", "NotImplementedError", "RuntimeError", "TypeError", "ValueError"}
"""Errors that carry only a message, and nothing that code acts on, such as the number of an `OSError`."""


@functools.cache
def source_digest(module: str) -> str:
    """Return the digest of a module together with every module of this package that it imports.

    Editing a plot changes only the digest of the plotting stage, so it never causes retraining. See
    `docs/adr/0010-digests-of-the-syntax-tree.md` for what counts.
    """
    modules = {module, *_import_graph().find_upstream_modules(module)} - NOT_COMPUTING
    digests = {name: digest for name in modules if (digest := _tree_digest(_source(name)))}
    return sha256_json(digests)[:16]


def imported_modules(script: Path) -> list[str]:
    """List the modules of this package that a script imports; the script is read, not run."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(script.read_bytes())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return sorted(named & _import_graph().modules)


@functools.cache
def _import_graph() -> grimp.ImportGraph:
    return grimp.build_graph("dhel_kcl", cache_dir=None)


def _source(module: str) -> Path:
    path = Path(__file__).parents[1].joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _tree_digest(path: Path) -> str | None:
    """Return the digest of what a file computes; None for an `__init__.py` that only re-exports names."""
    tree = ast.parse(path.read_bytes())
    if path.name == "__init__.py" and all(map(_names_again, tree.body)):
        return None
    return sha256(ascii(_computing(tree.body)).encode()).hexdigest()


def _names_again(statement: ast.stmt) -> bool:
    match statement:
        case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant()) | ast.Assign([ast.Name("__all__")]):
            return True
    return False


def _computing(node: Any) -> Any:
    """Return a syntax tree as nested lists, without parts that cannot affect a number.

    Absent and empty fields and the contexts of names are left out, so that different Python versions give the same
    result.
    """
    if isinstance(node, list):
        return [_computing(each) for each in node if not (isinstance(each, ast.stmt) and _only_says(each))]
    if not isinstance(node, ast.AST):
        return node
    match node:
        case ast.Call(ast.Name("track"), [items, *_]):
            return _computing(items)  # a progress bar around a loop
        case ast.Raise(ast.Call(error)) if ast.unparse(error) in _TEXT_ONLY:
            node = ast.Raise(error, node.cause)
    computing = [type(node).__name__]
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, ast.AST | list):
            value = _computing(value)
        if name != "ctx" and value is not None and value != []:
            computing += [name, value]
    return computing


def _only_says(statement: ast.stmt) -> bool:
    """Return whether a statement does nothing, or only prints."""
    match statement:
        case ast.Pass() | ast.Expr(ast.Constant()):
            return True
        case ast.Expr(ast.Call(function) as call) if ast.unparse(function) in ("console.print", "typer.echo"):
            shown = [*call.args, *call.keywords]
            return not any(_does(part) for each in shown for part in ast.walk(each))
    return False


def _does(node: ast.AST) -> bool:
    """Return whether evaluating an expression may have side effects; joining strings has none."""
    match node:
        case ast.Call(ast.Attribute(ast.Constant(str()), "join")):
            return False
    return isinstance(node, ast.Call | ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom)
