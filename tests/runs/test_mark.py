"""Which directories are preferl's to write in."""

import os

import pytest

from preferl.runs import distributed
from preferl.runs.errors import UsageError
from preferl.runs.mark import MARK, claim, refuse_no_place
from preferl.stages import sft


def test_a_place_that_cannot_be_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match=r"is a file, so .*choose another --output_dir"):
        refuse_no_place(file / "below" / "stage")
    refuse_no_place(tmp_path / "new" / "stage")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda place, how: place != tmp_path)
    with pytest.raises(UsageError, match="does not allow it"):
        refuse_no_place(tmp_path / "new")
    with pytest.raises(UsageError, match="does not allow it"):  # the stage itself asks
        sft.run(sft.SftConfig(output_dir=str(tmp_path / "new"), dataset_name="nowhere"))


def test_of_several_processes_the_first_alone_marks_a_directory_and_all_ask_for_its_place(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    claim(tmp_path / "stage", "stage", "sft")
    assert not (tmp_path / "stage").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        refuse_no_place(tmp_path / "file" / "stage")
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    claim(tmp_path / "stage", "stage", "sft")
    assert (tmp_path / "stage" / MARK).exists()
