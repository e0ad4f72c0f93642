"""HTML pages: templates beside this module, each file self-contained."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from dhel_kcl.artifacts import atomic_path


def write_page(template: str, output: Path, **values: Any) -> None:
    """Fill a template and write the page; equal values give equal bytes.

    Args:
        template: name of a template of this package.
        output: the HTML file.
        values: everything that the template names; text is escaped.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    text = environment.from_string((files("dhel_kcl") / template).read_text(encoding="utf-8")).render(values)
    with atomic_path(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
