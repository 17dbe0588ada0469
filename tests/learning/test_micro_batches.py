"""Passes: where a batch is cut, and what happens where a GPU's memory runs out."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preferl.data.tokens import Extent, parts_that_fit
from preferl.learning.micro_batches import MicroBatches, padded

ROWS = st.lists(
    st.builds(Extent, st.tuples(st.integers(0, 9), st.integers(1, 9)), st.integers(1, 3)), max_size=20
)


@dataclass
class Options:
    micro_batch_size: int = 64
    micro_batch_tokens: int | None = None


@given(ROWS, st.integers(1, 5) | st.none(), st.integers(1, 60) | st.none())
def test_parts_are_all_rows_in_order_and_none_is_too_large(rows, most_rows, most_tokens):
    parts = parts_that_fit(rows, most_rows, most_tokens)
    assert [i for part in parts for i in range(len(rows))[part]] == list(range(len(rows)))
    for part in parts:
        size = part.stop - part.start
        assert size == 1 or most_rows is None or size <= most_rows
        assert size == 1 or most_tokens is None or padded(rows[part]) <= most_tokens
    # And none is smaller than it has to be: one row more would be too much.
    for part, after in itertools.pairwise(parts):
        longer = rows[part.start : after.start + 1]
        too_many = most_rows is not None and len(longer) > most_rows
        assert too_many or (most_tokens is not None and padded(longer) > most_tokens)


def test_without_bounds_there_is_one_part_and_of_no_rows_none():
    rows = [Extent((5,)), Extent((900,)), Extent((3,))]
    assert parts_that_fit(rows) == [slice(0, 3)]
    assert parts_that_fit([], 3, 5) == []


class Accumulates:
    """A gradient of six rows, for which the memory suffices in passes of at most so many tokens."""

    def __init__(self, batches: MicroBatches, room: int):
        self.batches, self.room = batches, room
        self.gradient, self.tries = 0, 0

    def __call__(self) -> int:
        self.tries += 1
        rows = [Extent((4,), 1) for _ in range(6)]
        for part in self.batches.parts(rows):
            if padded(rows[part]) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.gradient += sum(range(6)[part])
        return self.gradient

    def forget(self) -> None:
        self.gradient = 0


def test_where_memory_runs_out_passes_are_halved_once_and_the_gradient_is_the_same(capsys):
    batches = MicroBatches(Options(micro_batch_tokens=20))
    recorded: list[int] = []
    batches.record = recorded.append
    work = Accumulates(batches, room=16)
    # Passes of 20 and 4 tokens: the first is too large; half of it is 10, the power of two below it 8.
    assert batches.accumulated(work, work.forget) == sum(range(6))
    assert (batches.tokens, recorded, work.tries) == (8, [8], 2)
    assert "micro_batch_tokens is 8 from here on" in "".join(capsys.readouterr())
    assert batches.parts([Extent((4,))] * 4) == [slice(0, 2), slice(2, 4)]
    small = Accumulates(batches, room=4)
    with pytest.raises(torch.OutOfMemoryError):
        batches.accumulated(small, small.forget)
    assert small.tries == 1


def test_one_row_that_is_too_much_is_no_reason_to_halve():
    batches = MicroBatches(Options(micro_batch_size=1))
    work = Accumulates(batches, room=3)
    with pytest.raises(torch.OutOfMemoryError):
        batches.accumulated(work, work.forget)
    assert work.tries == 1
    assert not batches.halved


def test_rows_of_a_unit_stay_together():
    assert MicroBatches(Options(micro_batch_size=10), units=4).rows == 2
    assert MicroBatches(Options(micro_batch_size=3), units=4).rows == 1
