"""Names of objects that a person hands over from Python, for as long as one call lasts.

Stages read names: of a model, a data set, a reward, an algorithm. What is handed over as an object gets a
name too (``memory:rows-3f2a``), and whoever resolves names looks here first.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

PREFIX = "memory:"
_objects: ContextVar[Mapping[str, Any]] = ContextVar("objects", default={})  # noqa: B039 - never changed


@contextlib.contextmanager
def named(objects: Mapping[str, Any]) -> Iterator[None]:
    """These names stand for these objects, as long as the context lasts."""
    token = _objects.set({**_objects.get(), **objects})
    try:
        yield
    finally:
        _objects.reset(token)


def object_of(name: str) -> Any:
    """The object of a name; None where it is the name of nothing that was handed over."""
    return _objects.get().get(name)
