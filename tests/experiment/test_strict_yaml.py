"""In a configuration nothing means something else than what a reader takes it for."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.strict_yaml import read_scalar, read_yaml, write_yaml

SCALARS: list[tuple[str, Any]] = [
    ("1", 1),
    ("-5", -5),
    ("0", 0),
    ("1e-3", 0.001),
    ("1.5E3", 1500.0),
    (".5", 0.5),
    ("true", True),
    ("False", False),
    ("null", None),
    ("~", None),
    ("yes", "yes"),
    ("No", "No"),
    ("on", "on"),
    ("010", "010"),
    ("-010", "-010"),
    ("0x10", "0x10"),
    ("0o17", "0o17"),
    ("1_000", "1_000"),
    ("1:40", "1:40"),
    ("1:40.5", "1:40.5"),
    ("2026-11-28", "2026-11-28"),
    ("'1'", "1"),
    ("=", "="),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_a_scalar_is_a_number_only_where_json_has_one(text: str, value: Any) -> None:
    read = read_yaml(f"key: {text}", "file")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(("text", "value"), [each for each in SCALARS if each[0] != "'1'"])
def test_text_of_an_option_is_read_alike(text: str, value: Any) -> None:
    assert read_scalar(text) == value
    assert type(read_scalar(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "file: line 3, column 1: not valid YAML: key 'a' is given twice, first in line 1"),
        ('{"a": 1, "a": 1}', "key 'a' is given twice"),
        ("a: {b: 1, b: 2}", "key 'b' is given twice"),
        ("a:\n- {b: {c: 1, c: 2}}", "file: line 2, column 14"),
        ("1: a\n1: b", "key 1 is given twice"),
        ("[1]: 2", "unhashable key"),
        ("a: [", "file: line 1, column 5: not valid YAML"),
        ("a: 1\n---\na: 2", "expected a single document"),
        ("a: !!python/object/apply:os.system [id]", "tag !!python/object/apply:os.system: remove it"),
        ("[" * 5000, "not valid YAML"),
        ("a: \0", "not valid YAML"),
        ("", "file: empty"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(text: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        read_yaml(text, "file")
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_merged_mapping_may_be_overridden() -> None:
    assert read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", "file")["b"] == {"x": 1, "y": 3}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), PLAIN, min_size=1, max_size=3))
def test_what_is_written_is_read_back_here_and_by_others(values: dict[str, Any]) -> None:
    text = write_yaml(values)
    assert read_yaml(text, "file") == values
    assert yaml.safe_load(text) == values


@pytest.mark.parametrize("text", [text for text, value in SCALARS if isinstance(value, str)])
def test_a_string_that_looks_like_a_number_elsewhere_stays_a_string(text: str) -> None:
    assert yaml.safe_load(write_yaml({"key": text})) == read_yaml(write_yaml({"key": text}), "file") == {"key": text}
