"""Options out of range are refused by name, wherever they come from and before anything is loaded."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preferl.cli import main
from preferl.pipeline import KINDS, RunConfig
from preferl.runs.config import checked
from preferl.runs.errors import UsageError
from preferl.runs.ranges import Range, ranges_of
from preferl.stages.sft import SftConfig

# What no option of these types may be without saying so: every number has a range.
NUMBERS = ("int", "float", "int | None", "float | None", "list[int]", "list[float]")


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_has_a_range(kind):
    config = KINDS[kind]
    loose = [
        f.name for f in dataclasses.fields(config) if str(getattr(f.type, "__name__", f.type)) in NUMBERS
    ]
    assert not loose


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_out_of_its_range_cannot_be_made(kind):
    """Of every option: NaN, and just outside of both ends."""
    config = KINDS[kind]
    tried = 0
    for name, range_ in ranges_of(config).items():
        outside = [math.nan]
        if math.isfinite(range_.low):
            outside.append(range_.low if range_.above else range_.low - 1)
        if math.isfinite(range_.high):
            outside.append(range_.high if range_.below else range_.high + 1)
        for value in outside:
            listed = isinstance(dataclasses.replace(config()).__dict__[name], list)
            with pytest.raises(UsageError, match=f"^{name} is "):
                config(**{name: [value] if listed else value})
            tried += 1
    assert tried > 10


@given(st.floats(), st.floats(min_value=-1e6, max_value=1e6), st.booleans(), st.booleans())
def test_a_range_holds_what_it_says(value, low, above, below):
    high = low + 1
    held = Range(low, high, above=above, below=below).holds(value)
    assert held == (
        (value > low or (value == low and not above)) and (value < high or (value == high and not below))
    )
    assert not Range(low).holds(math.inf)
    assert Range(low, infinite=True).holds(math.inf)
    assert not Range(infinite=True).holds(math.nan)
    assert not Range().holds("1")


@pytest.mark.parametrize(
    ("range_", "said"),
    [
        (Range(0), "0 or more"),
        (Range(0, above=True), "above 0"),
        (Range(0, 0.5), "between 0 and 0.5"),
        (Range(0, 1, below=True), "0 or more and below 1"),
        (Range(0, 1, above=True), "above 0 and at most 1"),
        (Range(0, 2**64 - 1), "between 0 and 18446744073709551615"),
        (Range(), "finite"),
    ],
)
def test_a_range_is_said_in_words(range_, said):
    assert str(range_) == said


def test_a_stage_of_a_run_is_checked_before_the_first_one_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--rl.kl_coef", "-1", "--output_dir", "out"]) == 2
    assert "kl_coef is -1.0; it must be 0 or more" in capsys.readouterr().err
    # What contradicts itself, too: evaluate would be reached last.
    assert main(["run", "--evaluate.pool_size", "3", "--output_dir", "out"]) == 2
    assert "pool_size is 3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_and_python_are_checked_alike():
    with pytest.raises(UsageError, match="rounds is 0; it must be 1 or more"):
        RunConfig(rounds=0)
    with pytest.raises(UsageError, match="seed is -1"):
        checked(SftConfig, {"seed": -1})
    with pytest.raises(UsageError, match=r"max_steps is 'x'; its type is (Optional\[int\]|int \| None)"):
        checked(SftConfig, {"max_steps": "x"})
    assert SftConfig(seed=2**64 - 1).seed == 2**64 - 1


def test_the_name_of_a_stage_leads_nowhere():
    with pytest.raises(UsageError, match="no name of a stage"):
        RunConfig(stages=["../x"], **{"../x": {"kind": "sft"}})
