"""What the machine that runs the tests has."""

import os

import pytest


def missing(what: str):
    """Skips a test that needs a system's package; where everything must be there, fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is not installed, and continuous integration must have it")
    pytest.skip(f"{what} is not installed")
