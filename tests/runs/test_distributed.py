"""Functions that write for all processes."""

import pytest

from preferl.runs.distributed import main_writes


def test_a_writer_inside_a_writer_is_refused():
    """Several processes would wait for each other without a word; one alone already says so."""
    written = []

    @main_writes
    def inner() -> None:
        written.append("inner")

    @main_writes
    def outer() -> None:
        inner()

    with pytest.raises(RuntimeError, match="inner is called inside another function of main_writes"):
        outer()
    inner()  # what failed left nothing behind
    assert written == ["inner"]
