"""A setting that is written twice, or in YAML's older ways, is refused however it is written."""

import pytest
from workspace import TINY

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import load_combined
from dhel_kcl.experiment.strict_yaml import read_yaml


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ('a: !!int "010"', "!!int"),
        ("a: !!float 1:30.5", "!!float"),
        ("a: !!bool yes", "!!bool"),
        ("a: !!set {b, c}", "!!set"),
        ("a: !!binary aGVsbG8=", "!!binary"),
        ("a: !!str 1", "!!str"),
        ("a: ! 1", "!"),
        ("a: !own 1", "!own"),
        ("!!int 1: b", "!!int"),
        ("a: [!!omap [b: 1]]", "!!omap"),
        ("--- !!map {a: 1}", "!!map"),
        ("a: !!python/object:os.system 1", "!!python/object:os.system"),
    ],
)
def test_a_tag_is_refused(text: str, tag: str) -> None:
    with pytest.raises(InputError) as caught:
        read_yaml(text, "file")
    assert str(caught.value).startswith("file: line 1, column ")
    assert str(caught.value).endswith(f"not valid YAML: tag {tag}: remove it")


def test_merging_twice_is_a_key_given_twice() -> None:
    once = "a: &a {x: 1}\nb: &b {x: 2}\nc: {<<: *a, x: 3}"
    assert read_yaml(once, "file")["c"] == {"x": 3}
    assert read_yaml(once + "\nd: {<<: [*a, *b]}", "file")["d"] == {"x": 1}
    with pytest.raises(InputError, match=r"line 4, column .*key '<<' is given twice, first in line 4"):
        read_yaml(once + "\nd: {<<: *a, <<: *b}", "file")


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["seeds=[0]", "seeds=[1]"], "--config seeds: given twice; give it once"),
        (["monitor={every_epochs: 1, every_epochs: 2}"], "key 'every_epochs' is given twice"),
        (["seeds=[0, !!int '010']"], "tag !!int"),
    ],
)
def test_what_follows_config_is_read_as_strictly(assignments: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_combined([TINY], assignments)
    assert said in str(caught.value)
