"""Which directories are preferl's to write in."""

import os

import pytest

from preferl.runs.errors import UsageError
from preferl.runs.mark import refuse_no_place
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
