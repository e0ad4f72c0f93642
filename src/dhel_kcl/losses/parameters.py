"""Check the numbers and switches that a loss or kernel is built from."""

import math
from numbers import Real


def positive(name: str, value: object) -> float:
    """Return `value` as a float, or raise ValueError unless it is a positive finite number."""
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    return number


def nonzero(name: str, value: object) -> float:
    """Return `value` as a float, or raise ValueError unless it is a non-zero finite number."""
    number = finite(name, value)
    if number == 0:
        raise ValueError(f"{name} must be a non-zero finite number, got {value!r}")
    return number


def finite(name: str, value: object) -> float:
    """Return `value` as a float, or raise ValueError unless it is a finite number (a bool is not one)."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def switch(name: str, value: object) -> bool:
    """Return `value`, or raise ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value
