"""What a person sees while it runs: samples every so often, and a step that takes much longer than usual."""

import pytest

from preferl.runs import progress
from preferl.runs.progress import Pace, Sample, Steps, each_note_once, is_new, shortened

SAMPLES = [
    Sample("What is a pen?", "A tool to write with.", {"reward": 1.25}),
    Sample("evil\x1b[2J\nprompt", "x" * 500, {"reward": -0.5, "kl": 2.0}),
]


def lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_samples_take_two_lines_each_and_do_nothing_to_the_terminal(capsys):
    with Steps("rl", 100) as steps:
        steps.advance()
        steps.samples(SAMPLES)
        shown = lines(capsys)
    assert shown[:3] == [
        "       rl  1/100  reward 1.25  What is a pen?",
        "           → A tool to write with.",
        "       rl  1/100  reward -0.5  kl 2  evil\\x1b[2J prompt",
    ]
    assert len(shown) == 4
    assert len(shown[3]) == progress.PLAIN_WIDTH


def test_samples_come_at_first_at_last_and_every_so_often(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    seen = []
    with Steps("rl", 2000) as steps:
        for _ in range(2000):
            now += 1.0
            steps.advance()
            capsys.readouterr()
            steps.samples(SAMPLES)
            if lines(capsys):
                seen.append(steps.step)
    assert seen == [1, 601, 1201, 1801, 2000]  # a log gets them every ten minutes


@pytest.mark.parametrize("width", [10, 25, 26])
def test_a_shortened_text_keeps_both_ends(width):
    text = "Once upon a time. The end."
    found = shortened(text, width)
    assert len(found) <= width
    assert found == text if width == len(text) else found[0] + found[-1] == "O."


def said_of(capsys, *seconds: float, work=None) -> list[str]:
    pace = Pace("rl", "iteration")
    for number, (took, to_do) in enumerate(zip(seconds, work or [1.0] * len(seconds), strict=True), 1):
        pace.note(number, took, to_do, " (4 s of them sampling)")
    return lines(capsys)


def test_a_step_ten_times_as_long_is_said_with_both_durations(capsys):
    assert said_of(capsys, 0.5, 0.5, 0.4, 0.6, 0.5, 0.5, 5.1) == [
        "rl: iteration 7 took 5.1 s (4 s of them sampling), the median of the 6 before it 0.5 s"
    ]
    assert not said_of(capsys, 0.5, 0.5, 0.4, 0.6, 0.5, 0.5, 4.9)


def test_slow_steps_are_said_again_only_after_usual_ones(capsys):
    usual = [0.5] * 20
    assert len(said_of(capsys, *usual, 9.0, 9.0, 4.0, 9.0)) == 1
    assert len(said_of(capsys, *usual, 9.0, 9.0, 0.6, 9.0)) == 2


def test_nobody_is_told_of_what_is_no_sudden_slowness(capsys):
    assert not said_of(capsys, 30.0, 0.5, 0.5, 0.5, 0.5, 0.5)  # what is compiled or cached at first
    assert not said_of(capsys, 0.5, 0.5, 0.5, 30.0)  # nobody knows yet what is usual
    assert not said_of(capsys, *[0.01] * 20, 0.3)  # nobody minds
    # Twenty times the tokens take twenty times as long.
    assert not said_of(capsys, *[0.5] * 20, 10.0, work=[40] * 20 + [800])
    assert said_of(capsys, *[0.5] * 20, 10.0, work=[40] * 20 + [2])
    assert said_of(capsys, *[0.5] * 20, 10.0, work=[0] * 21)  # of an objective that counts no tokens


def test_the_stages_of_a_run_say_each_note_once():
    assert [is_new("of the rows"), is_new("of the rows")] == [True, True]
    with each_note_once():
        assert [is_new("of the rows"), is_new("of others"), is_new("of the rows")] == [True, True, False]
    with each_note_once():
        assert is_new("of the rows")
