"""A check of calls against the shapes in signatures, which jaxtyping writes.

Its own import hook looks at every call of every function three times; here only those whose
signature tells shapes are, once. A general type checker would also object to the fakes of tests.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FunctionType, ModuleType, UnionType
from typing import Any, Union, get_args, get_origin

from jaxtyping import AbstractArray, jaxtyped


def tells_a_shape(annotation: Any) -> bool:
    """Whether there is a shape anywhere in an annotation that can be looked at."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return get_origin(annotation) in (tuple, Union, UnionType) and any(
        map(tells_a_shape, get_args(annotation))
    )


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
    hints = {name: hint for name, hint in function.__annotations__.items() if tells_a_shape(hint)}
    if not hints:
        return function
    names = list(inspect.signature(function).parameters)
    expected = hints.get("return")

    @jaxtyped(typechecker=None)
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = (*zip(names, args, strict=False), *kwargs.items())
        wrong = [name for name, v in given if name in hints and not matches(v, hints[name])]
        if wrong:
            told = ", ".join(f"{name}: {hints[name]}" for name in wrong)
            raise TypeError(f"{function.__qualname__}: expected {told}")
        result = function(*args, **kwargs)
        if not matches(result, expected):
            raise TypeError(f"{function.__qualname__}: expected a result {expected}")
        return result

    return wrapper


class Loader(SourceFileLoader):
    """Loads a module whose functions and methods are checked."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        own = [value for value in vars(module).values() if isinstance(value, type)]
        for owner in (module, *(each for each in own if each.__module__ == module.__name__)):
            for name, value in list(vars(owner).items()):
                if isinstance(value, FunctionType) and value.__module__ == module.__name__:
                    setattr(owner, name, checked(value))
                elif isinstance(value, staticmethod | classmethod):
                    setattr(owner, name, type(value)(checked(value.__func__)))
                elif isinstance(value, property) and value.fget:
                    setattr(owner, name, property(checked(value.fget), value.fset, value.fdel))


class Finder(PathFinder):
    """Finds the modules of the package."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("diffcodec."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(fullname, spec.loader.path)
        return spec


def check_calls() -> None:
    """From now on, of modules that are not loaded yet."""
    sys.meta_path.insert(0, Finder)
