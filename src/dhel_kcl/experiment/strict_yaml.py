"""Read YAML without values that mean something unexpected.

PyYAML follows YAML 1.1, where `yes` is true, `010` is 8, `1:40` is 100, `1e-3` is a string, and the last value of a
repeated key wins. Here, only null, Booleans and decimal numbers are special. Every other scalar is a string, which a
configuration refuses where it expects a number. Repeated keys, including `<<`, are errors. So are tags such as
`!!int`, because a tagged value would again be read by the rules of YAML 1.1.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from dhel_kcl.errors import InputError

_SCALARS = {
    "tag:yaml.org,2002:null": r"|~|null|Null|NULL",
    "tag:yaml.org,2002:bool": r"true|True|TRUE|false|False|FALSE",
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9]*)",
    "tag:yaml.org,2002:float": r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
    "tag:yaml.org,2002:merge": r"<<",
}
"""Patterns of the scalars that are not strings, by tag; the first match wins."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 # PyYAML declares it so

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if (tag := getattr(event, "tag", None)) is not None:
            written = tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.composer.ComposerError(problem=f"tag {written}: remove it", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            is_merge, line = key_node.tag == "tag:yaml.org,2002:merge", key_node.start_mark.line + 1
            key = "<<" if is_merge else self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):  # other keys are refused below
                if key in lines:
                    problem = f"key {key!r} is given twice, first in line {lines[key]}"
                    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key_node.start_mark)
                lines[key] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes every string that YAML 1.1 or 1.2 would read as something else."""


for _tag, _pattern in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), None)


def read_yaml(text: str, origin: str) -> Any:
    """Read YAML, or JSON, into plain values.

    Args:
        text: one document.
        origin: where it came from, for messages.

    Raises:
        InputError: the text is empty or not YAML, repeats a key, or has a tag.
    """
    try:
        values = yaml.load(text, _Loader)  # nosec B506 # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise InputError(f"{origin}: {place}not valid YAML: {problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        raise InputError(f"{origin}: empty; see config/README.md for the keys")
    return values


def write_yaml(values: Any) -> str:
    """Return plain values as YAML that `read_yaml` and other readers load unchanged; keys keep their order."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False)
    return text


def read_scalar(text: str) -> Any:
    """Read text the way `read_yaml` reads a plain scalar."""
    is_scalar = any(re.fullmatch(pattern, text) for tag, pattern in _SCALARS.items() if not tag.endswith("merge"))
    return yaml.load(text, _Loader) if is_scalar else text  # nosec B506 # a SafeLoader
