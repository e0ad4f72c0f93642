import unicodedata

import pytest

from dhel_kcl.errors import FEW, escaped, few, listed, quoted


class TestNames:
    @pytest.mark.parametrize("name", ["china", "train/a b.jpg", "caf\u00e9", "\u65e5\u672c", "it's", "[red]"])
    def test_a_plain_one_stays_as_it_is(self, name: str) -> None:
        assert quoted(name) == listed([name]) == escaped(name) == name

    @pytest.mark.parametrize("name", ["", " a", "a  b", "a\nb", "\x1b[31m", "\udcff", "a, b", "a\u00a0b", "\u202eb"])
    def test_any_other_is_quoted_and_can_be_printed(self, name: str) -> None:
        assert quoted(name) == listed([name]) == repr(name)
        assert quoted(name).isprintable()
        assert escaped(name).isprintable()

    def test_those_that_look_the_same_are_told_apart(self) -> None:
        composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
        assert listed([composed, decomposed, "a"]) == r"'caf\xe9', 'cafe\u0301', a"
        assert listed([composed], others=[decomposed]) == r"'caf\xe9'"
        assert listed(["china"], others=["china "]) == "'china'"
        assert listed(["china"], others=["china", "flower"]) == "china"

    def test_the_first_few_are_given_and_the_others_counted(self) -> None:
        names = [str(number) for number in range(FEW + 1234)]
        assert few(names[:FEW]) == ", ".join(names[:FEW])
        assert few(names) == listed(names) == ", ".join(names[:FEW]) + " and 1,234 more"
