"""Values that callers of the library give, held against what is taken."""

import operator
from numbers import Real
from pathlib import Path
from typing import Any

from diffcodec.limits import Limits


def check_limits(limits: object) -> None:
    """Refuse what are no limits.

    Raises:
        TypeError: so.
    """
    if not isinstance(limits, Limits):
        raise TypeError(f"limits: found {type(limits).__name__}, expected diffcodec.Limits(...)")


def integer(name: str, value: Any) -> int:
    """A value that is an integer of Python's or NumPy's.

    Raises:
        TypeError: it is another.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        found = type(value).__name__
        raise TypeError(f"{name}: found {found}, expected an integer") from error


def several_integers(name: str, values: Any, expected: str) -> tuple[int, ...]:
    """Values that are integers, as :func:`integer` takes them.

    Raises:
        TypeError: they are others, or not several; it names what is expected.
    """
    try:
        found = tuple(values)
    except TypeError as error:
        raise TypeError(f"{name}: found {values!r:.100}, expected {expected}") from error
    return tuple(integer(name, value) for value in found)


def path(name: str, value: Any) -> Path:
    """A value that is a path.

    Raises:
        TypeError: it is another.
    """
    try:
        return Path(value)
    except TypeError as error:
        raise TypeError(f"{name}: found {type(value).__name__}, expected a path") from error


def optional_integer(name: str, value: Any) -> int | None:
    """The value as :func:`integer` takes it, or None."""
    return None if value is None else integer(name, value)


def number(name: str, value: Any) -> float | None:
    """A value that is a number, or None.

    Raises:
        TypeError: it is another.
        ValueError: it is an integer too large for a float.
    """
    if value is None:
        return None
    if not isinstance(value, Real):
        raise TypeError(f"{name}: found {type(value).__name__}, expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name}: found {value}, expected a number of reasonable size") from error


def flag(name: str, value: Any) -> bool:
    """Whether a value is true.

    Raises:
        TypeError: it is neither, as a tensor of several numbers.
    """
    try:
        return bool(value)
    except (RuntimeError, ValueError) as error:
        found = type(value).__name__
        raise TypeError(f"{name}: found {found}, expected True or False") from error
