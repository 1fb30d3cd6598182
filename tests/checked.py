"""A check of calls against the shapes in signatures, for jaxtyping's import hook.

A general type checker would also object to the fakes of tests, and draws random numbers.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from types import UnionType
from typing import Any, Union, get_args, get_origin

from jaxtyping import AbstractArray


def matches(value: object, annotation: Any) -> bool:
    """Whether a value has the shape of an annotation; true of annotations that tell of none."""
    parts = get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return isinstance(value, annotation)
    if get_origin(annotation) is tuple and isinstance(value, tuple) and len(parts) == len(value):
        return all(map(matches, value, parts))
    if get_origin(annotation) in (Union, UnionType):
        return any(
            matches(value, part) for part in parts if part is not type(None) or value is None
        )
    return True


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises TypeError for arguments and results of other shapes."""
    hints = {k: v for k, v in function.__annotations__.items() if not isinstance(v, str)}
    signature = inspect.signature(function)

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        wrong = [k for k, v in given.items() if k in hints and not matches(v, hints[k])]
        if wrong:
            told = ", ".join(f"{k}: {hints[k]}" for k in wrong)
            raise TypeError(f"{function.__qualname__}: expected {told}")
        result = function(*args, **kwargs)
        if not matches(result, hints.get("return")):
            raise TypeError(f"{function.__qualname__}: expected a result {hints['return']}")
        return result

    return wrapper
