"""Read what losses, kernels, data sets and figure scripts declare, from their source.

Nothing is imported, so planning a workflow does not wait for PyTorch, and a faulty file is reported in one line. Names,
titles and the like must therefore be written as literals.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from dhel_kcl.errors import InputError

LOSSES = Path(__file__).parent / "losses"
KINDS = Path(__file__).parent / "data" / "sources"

TAKEN = {
    *("name", "kernel", "batch_sizes", "run", "dataset", "backbone", "width", "epochs", "train_images", "loss"),
    *("learning_rate", "batch_size", "seed", "metric", "representation", "corruption", "x", "value"),
    *("test_hits", "source", "source_sha256"),
}
"""Names that no hyperparameter may have: keys of a loss's entry, and the other columns of the results."""

TABLES = ("results", "theory", "verdicts")
"""The tidy tables that a figure or table script can read."""

_FIRST = ("temperature", "t", "c", "gamma")
_CHOICES = {
    "splits": (("train", "test"), ("pretrain", "train", "test")),
    "needs": ((), ("root",), ("root", "class_list")),
}


@dataclass(frozen=True)
class Declared:
    """A class that configurations refer to by name.

    Attributes:
        name: the name in configurations.
        title: the name shown to readers.
        file: the file that defines it.
        class_name: the name of the class.
        hyperparameters: the numbers that it is built from, each with its default or None.
        takes_kernel: whether it is also built from a kernel.
        constants: literal values of the class and its base classes.
    """

    name: str
    title: str
    file: Path
    class_name: str
    hyperparameters: Mapping[str, float | None]
    takes_kernel: bool
    constants: Mapping[str, Any]

    @property
    def module(self) -> str:
        """The name of the module that defines it."""
        package = Path(__file__).parent
        return ".".join([package.name, *self.file.relative_to(package).with_suffix("").parts])

    def load(self) -> Any:
        """Import the class."""
        return getattr(import_module(self.module), self.class_name)


@dataclass(frozen=True)
class Script:
    """A figure or table script: its title, its caption and the files it reads.

    Attributes:
        path: the script; its name begins with ``fig_`` or ``table_``.
        title: first line of the docstring.
        caption: the rest of the docstring, as one line.
        tables: the tidy tables it reads, `TABLES` in the script.
        data: other files it reads, `DATA` in the script, relative to the repository.
    """

    path: Path
    title: str
    caption: str
    tables: tuple[str, ...]
    data: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The target's name."""
        return self.path.stem

    @property
    def is_figure(self) -> bool:
        """Whether it draws a figure; otherwise it prints a table."""
        return self.name.startswith("fig_")


@cache
def losses(folder: Path = LOSSES) -> Mapping[str, Declared]:
    """Return the losses by name: the subclasses of `PairLoss` in the modules of a folder.

    Raises:
        InputError: a module is not Python, or a class lacks what it must declare.
    """
    return _declared(folder, "PairLoss", "name")


@cache
def kernels(folder: Path = LOSSES) -> Mapping[str, Declared]:
    """Return the kernels of KCL by name, the subclasses of `Kernel`; see `losses`."""
    return _declared(folder, "Kernel", "name")


@cache
def kinds(folder: Path = KINDS) -> Mapping[str, Declared]:
    """Return the kinds of data sets by name, the subclasses of `Kind`; see `losses`."""
    found = _declared(folder, "Kind", "kind")
    for kind in found.values():
        for constant, choices in _CHOICES.items():
            if kind.constants.get(constant) not in choices:
                valid = " or ".join(map(str, choices))
                raise InputError(f"{kind.file}: {constant} of {kind.class_name} must be {valid}")
    return found


def trainable_kernels() -> Mapping[str, Declared]:
    """Return the kernels that configurations may use; a steep one would stop a run when two embeddings coincide."""
    return {name: kernel for name, kernel in kernels().items() if not kernel.constants.get("steep")}


def loss_titles() -> dict[str, str]:
    """Return the title of every loss with its kernel, by its label, such as ``dhel`` or ``kcl_gaussian``.

    Raises:
        InputError: as for `losses`; or two have the same label, or a loss and its kernel share a hyperparameter.
    """
    titles = {name: loss.title for name, loss in losses().items() if not loss.takes_kernel}
    for name, loss in losses().items():
        for kernel in trainable_kernels().values() if loss.takes_kernel else ():
            if (label := f"{name}_{kernel.name}") in titles:
                raise InputError(f"{losses()[label].file}: {label!r} is also {name} with a kernel; choose another name")
            if shared := set(kernel.hyperparameters) & set(loss.hyperparameters):
                raise InputError(f"{kernel.file}: {name} has a parameter {', '.join(sorted(shared))} too; rename one")
            titles[label] = f"{loss.title} ({kernel.title})"
    return titles


def hyperparameters() -> list[str]:
    """Return every hyperparameter that a configuration may use: the paper's first, then the others by name."""
    declared = [*losses().values(), *trainable_kernels().values()]
    names = {name for each in declared for name in each.hyperparameters}
    return [*_FIRST, *sorted(names.difference(_FIRST))]


def scripts(folder: Path) -> dict[str, Script]:
    """Return the figure and table scripts of a folder by name, in alphabetical order.

    Raises:
        InputError: there are none, or one cannot be read.
    """
    found = sorted([*folder.glob("fig_*.py"), *folder.glob("table_*.py")])
    if not found:
        raise InputError(f"{folder}: no figure or table scripts here; run this in the root of the repository")
    return {path.stem: read_script(path) for path in found}


def read_script(path: Path) -> Script:
    """Read what a figure or table script declares.

    Raises:
        InputError: there is no such script, it is not Python, it has no docstring, or `TABLES` or `DATA` is invalid.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such figure or table script; paper_figures/ lists them")
    tree = _parse(path)
    title, _, caption = (ast.get_docstring(tree) or "").partition("\n")
    if not title:
        raise InputError(f"{path}: no docstring; its first line is the title, the rest the caption")
    constants = _constants(tree.body)
    tables, data = constants.get("TABLES", ("results",)), constants.get("DATA", ())
    if not (isinstance(tables, tuple) and tables and set(tables) <= set(TABLES)):
        raise InputError(f"{path}: TABLES must be a tuple of {', '.join(TABLES)}, not {tables!r}")
    if not (isinstance(data, tuple) and all(isinstance(file, str) for file in data)):
        raise InputError(f"{path}: DATA must be a tuple of paths, such as ('config/published_results.csv',)")
    return Script(path, title.rstrip("."), " ".join(caption.split()), tables, tuple(map(Path, data)))


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise InputError(f"{path}: not Python, line {error.lineno}: {error.msg}") from error


def _constants(body: list[ast.stmt]) -> dict[str, Any]:
    """Return the names that statements bind to literals, with the values."""
    found = {}
    for statement in body:
        match statement:
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                try:
                    found[name] = ast.literal_eval(value)
                except ValueError:
                    continue
    return found


@cache
def _classes(folder: Path) -> Mapping[str, tuple[Path, ast.ClassDef]]:
    """Return the classes of a folder's modules by name, each with its file."""
    found: dict[str, tuple[Path, ast.ClassDef]] = {}
    for path in sorted(folder.glob("*.py")):
        for node in _parse(path).body:
            if isinstance(node, ast.ClassDef):
                if node.name in found:
                    raise InputError(f"{path}: class {node.name} is also in {found[node.name][0]}; rename one")
                found[node.name] = path, node
    return found


def _declared(folder: Path, root: str, key: str) -> dict[str, Declared]:
    classes = _classes(folder)
    required = {name for name, method in _methods(classes[root][1]).items() if "abstractmethod" in _decorators(method)}
    found: dict[str, Declared] = {}
    for path, node in classes.values():
        lineage = list(_lineage(node, classes))
        own, named = _constants(node.body), f"class {node.name}"
        missing = required.difference(*(_methods(each) for each in lineage if each.name != root))
        if node.name == root or root not in {each.name for each in lineage} or (key not in own and missing):
            continue  # of another family, or only a base class
        if missing:
            raise InputError(f"{path}: {named} does not define {', '.join(sorted(missing))}")
        name = own.get(key)
        if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise InputError(f'{path}: {named} needs {key} = "..." of a-z, 0-9 and _, the name for configurations')
        if name in found:
            raise InputError(f"{path}: {key} {name!r} is also in {found[name].file}; choose another one")
        if not ast.get_docstring(node):
            raise InputError(f"{path}: {named} has no docstring; describe it there, for a loss with its equation")
        constants = {constant: value for each in reversed(lineage) for constant, value in _constants(each.body).items()}
        numbers, takes_kernel = _hyperparameters(path, lineage)
        title = str(own.get("title", name))
        found[name] = Declared(name, title, path, node.name, numbers, takes_kernel, constants)
    return dict(sorted(found.items()))


def _lineage(node: ast.ClassDef, classes: Mapping[str, tuple[Path, ast.ClassDef]]) -> Iterator[ast.ClassDef]:
    """Yield a class and its base classes in the folder."""
    yield node
    for base in node.bases:
        if (name := ast.unparse(base).rpartition(".")[2]) in classes:
            yield from _lineage(classes[name][1], classes)


def _methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {statement.name: statement for statement in node.body if isinstance(statement, ast.FunctionDef)}


def _decorators(node: ast.ClassDef | ast.FunctionDef) -> set[str]:
    return {ast.unparse(decorator).partition("(")[0] for decorator in node.decorator_list}


def _hyperparameters(path: Path, lineage: list[ast.ClassDef]) -> tuple[dict[str, float | None], bool]:
    """Return the numbers that a class is built from, with defaults, and whether it is also built from a kernel."""
    numbers: dict[str, float | None] = {}
    takes_kernel = False
    for name, annotation, default in _parameters(lineage):
        where = f"{path}: parameter {name} of {lineage[0].name}"
        if annotation == "Kernel":
            takes_kernel = True
        elif annotation == "float":
            if name in TAKEN or not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise InputError(f"{where} has a name that is reserved or not of a-z, 0-9 and _; rename it")
            numbers[name] = None if default is None else _number(default, where)
        elif default is None:
            raise InputError(f"{where} must be annotated float, which makes it a hyperparameter, or have a default")
    return numbers, takes_kernel


def _number(default: ast.expr, where: str) -> float:
    try:
        return float(ast.literal_eval(default))
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} has a default that is not a plain number; write a number or no default") from error


def _parameters(lineage: list[ast.ClassDef]) -> Iterator[tuple[str, str, ast.expr | None]]:
    """Yield the name, annotation and default of each parameter of the constructor."""
    if "dataclass" in _decorators(lineage[0]):
        for statement in (statement for node in reversed(lineage) for statement in node.body):
            match statement:
                case ast.AnnAssign(ast.Name(name), annotation, default):
                    if "ClassVar" not in ast.unparse(annotation):
                        yield name, ast.unparse(annotation), default
        return
    constructor = next((methods["__init__"] for methods in map(_methods, lineage) if "__init__" in methods), None)
    if constructor is not None:
        given = constructor.args
        arguments = [*given.posonlyargs, *given.args][1:] + given.kwonlyargs
        defaults = [*given.defaults, *given.kw_defaults]
        for argument, default in zip(arguments, [None] * (len(arguments) - len(defaults)) + defaults, strict=True):
            yield argument.arg, ast.unparse(argument.annotation) if argument.annotation else "", default
