"""Errors that a user can fix, and how names from outside stand in their messages."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

INTERRUPTED = 130
"""The exit status of a process that Ctrl-C ended."""

FEW = 10
"""How many names a message gives; it counts the others."""


class InputError(Exception):
    """Something outside the code is wrong: a config key, a file, a data set, the network, the disk.

    The message is one line that names the file or key and says how to fix it. The command line
    prints that line and exits with status 1; it never shows a traceback for this class.
    """


def escaped(text: str) -> str:
    """Write what cannot be printed, line ends and undecodable bytes among them, as escapes: one line, harmless."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def quoted(name: str) -> str:
    """Give a name as it is, or as a Python literal where a line of names would not show it plainly."""
    plain = name.isprintable() and name and name == " ".join(name.split()) and ", " not in name
    return name if plain else repr(name)


def few(items: Sequence[str], most: int = FEW) -> str:
    """Join the first items, `most` of them, with commas and count the rest."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more:,} more" if more > 0 else "")


def listed(names: Sequence[str], others: Iterable[str] = ()) -> str:
    """Join names as `few` does, each `quoted`.

    Args:
        names: to be listed.
        others: names that they could be taken for. Whatever looks like one of these, or like another of `names`, is
            given in ASCII: it differs by blanks or Unicode's normal forms alone.
    """
    looks = Counter(map(_look, {*names, *others}))
    return few([ascii(name) if looks[_look(name)] > 1 else quoted(name) for name in names])


def _look(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).split())
