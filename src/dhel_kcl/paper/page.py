"""HTML pages, made from the templates beside this module; each page is self-contained."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dhel_kcl.files import atomic_path


def fill(template: str, **values: Any) -> str:
    """Fill a template; equal values give equal text.

    Args:
        template: name of a template of this package.
        values: everything that the template uses; text is escaped.
    """
    environment = Environment(
        loader=PackageLoader("dhel_kcl.paper", ""),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template(template).render(values)


def write_page(text: str, output: Path) -> None:
    """Write a page, atomically."""
    with atomic_path(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
