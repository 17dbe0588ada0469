"""A person's own code by name: ``module:object``, from the current folder or installed."""

import importlib
from typing import Any

from preferl.runs.errors import UsageError


def load_object(name: str, what: str) -> Any:
    """The object ``module:object``; the command line looks in the current folder too.

    Args:
        name: module and object, with a colon between them.
        what: what it is for, as ``reward function``, for messages.

    Raises:
        UsageError: it cannot be imported; the error of the module is named.
    """
    module_name, _, object_name = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), object_name)
    except Exception as error:
        raise UsageError(
            f"{what} '{name}' cannot be imported: {type(error).__name__}: {error}; "
            f"write it as module:{object_name or 'name'}, with the module in the current folder or installed"
        ) from error
