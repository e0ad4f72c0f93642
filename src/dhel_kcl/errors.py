"""Errors that a user can fix, and the formatting of external names in their messages."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

INTERRUPTED = 130
"""Exit status of a process ended by Ctrl-C."""

FEW = 10
"""How many names a message lists; it only counts the rest."""


class InputError(Exception):
    """Something outside the code is wrong: a config key, a file, a data set, the network, the disk.

    The message is one line that names the file or key and says how to fix it. The command line
    prints that line and exits with status 1; it never shows a traceback for this class.
    """


def escaped(text: str) -> str:
    """Escape unprintable characters, including line ends and undecodable bytes, so that one harmless line results."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def quoted(name: str) -> str:
    """Return a name unchanged, or as a Python literal if it would be unclear in a list of names."""
    plain = name.isprintable() and name and name == " ".join(name.split()) and ", " not in name
    return name if plain else repr(name)


def few(items: Sequence[str], most: int = FEW) -> str:
    """Join the first `most` items with commas and count the rest."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more:,} more" if more > 0 else "")


def listed(names: Sequence[str], others: Iterable[str] = ()) -> str:
    """Join names as `few` does, each `quoted`.

    Args:
        names: the names to list.
        others: names that they could be mistaken for. A name that differs from one of these, or from another of
            `names`, only by blanks or Unicode normal forms is written in ASCII.
    """
    looks = Counter(map(_look, {*names, *others}))
    return few([ascii(name) if looks[_look(name)] > 1 else quoted(name) for name in names])


def _look(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).split())
