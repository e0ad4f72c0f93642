"""Pages that are generated are those that their source gives."""

import importlib.util

from workspace import REPOSITORY


def test_the_page_of_claims_is_what_the_shipped_tables_of_claims_give() -> None:
    script = REPOSITORY / "docs" / "write_claims.py"
    spec = importlib.util.spec_from_file_location("write_claims", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (REPOSITORY / "docs" / "claims.md").read_text() == module.page(), "run python docs/write_claims.py"
