"""A setting that is written twice, or in YAML's older ways, is refused however it is written."""

import pytest
from workspace import TINY

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import load_combined
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


TWICE = "--config: given twice, of which Snakemake takes the last; give all values after one"


@pytest.mark.parametrize(
    ("arguments", "given", "said"),
    [
        (["--config=seeds=[0]", "--config=seeds=[1]"], {"seeds": ["1"]}, TWICE),
        (["--config", "seeds=[0]", "--config", "name=b"], {"name": "b"}, TWICE),
        (["-Cseeds=[0]", "-nCseeds=[1]"], {"seeds": ["1"]}, TWICE),
        (["-C", "seeds=[0]", "--config=seeds=[1]"], {"seeds": ["1"]}, TWICE),
        (["--config=seeds=[0]", "seeds=[1]"], {"seeds": ["1"]}, "--config seeds: given twice; give it once"),
        (["-C=seeds=[0]", "seeds=[1]"], {"seeds": ["1"]}, "--config seeds: given twice; give it once"),
        (
            ["--config=monitor={every_epochs: 1, every_epochs: 2}"],
            {"monitor": {"every_epochs": "2"}},
            "key 'every_epochs' is given twice",
        ),
        (["-nCseeds=[0, !!int '010']"], {"seeds": ["0", "10"]}, "tag !!int"),
    ],
)
def test_what_is_given_twice_is_refused_in_every_spelling(
    arguments: list[str], given: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_combined([TINY], given, arguments)
    assert said in str(caught.value)


@pytest.mark.parametrize("option", [["--config", "seeds=[7]"], ["--config=seeds=[7]"], ["-Cseeds=[7]"]])
def test_one_option_is_read_as_it_is_written(option: list[str]) -> None:
    arguments = ["snakemake", "--cores", "1", "--configfile", "config/name=x.yaml", *option, "name=b"]
    config = load_combined([TINY], {"seeds": ["8"], "name": "b"}, arguments)
    assert (config.seeds, config.name) == ([7], "b")
