"""What bears preferl's mark may be deleted, and nothing else."""

import json
from dataclasses import dataclass

import pytest

from preferl.runs.config import DeviceOptions
from preferl.runs.errors import UsageError
from preferl.runs.mark import MARK, check_ours, claim, read_mark, remove
from preferl.runs.stage import Stage


@dataclass(kw_only=True)
class Options(DeviceOptions):
    output_dir: str = ""
    rows: int = 1


def begun(path, fresh=False, **options) -> None:
    """A stage that wrote its beginning, and a model."""
    with Stage("sft", Options(output_dir=str(path), device="cpu", **options), fresh) as stage:
        stage.begin()
        stage.model.mkdir(exist_ok=True)
        (stage.model / "weights").write_text(f"{options}")


def test_a_stage_marks_its_directory_and_deletes_only_its_own_outputs(tmp_path):
    """Also of what lies inside: another stage of ours goes, a folder without a mark stays."""
    path = tmp_path / "sft"
    begun(path)
    found = read_mark(path)
    assert found is not None
    assert (found.kind, found.name) == ("stage", "sft")
    (path / "notes.txt").write_text("precious")
    (path / "thesis").mkdir()
    (path / "thesis" / "chapter.txt").write_text("precious")
    claim(path / "member-1", "stage", "sft")
    begun(path, fresh=True, rows=2)
    assert (path / "model" / "weights").read_text() == "{'rows': 2}"
    assert (path / "notes.txt").read_text() == "precious"
    assert (path / "thesis" / "chapter.txt").read_text() == "precious"
    assert not (path / "member-1").exists()


@pytest.mark.parametrize("kind", ["stage", "run", "sweep"])
def test_what_bears_no_mark_is_not_taken(tmp_path, kind):
    path = tmp_path / "theirs"
    path.mkdir()
    claim(path, kind, "theirs")  # an empty directory may be
    assert read_mark(path) is not None
    for name, text in ((MARK, '{"program": "other", "kind": "run"}'), ("thesis.txt", "precious")):
        (path / MARK).unlink(missing_ok=True)
        (path / name).write_text(text)
        for attempt in (check_ours, claim):
            with pytest.raises(UsageError, match="holds no preferl"):
                attempt(path, kind, "theirs")
        assert (path / name).read_text() == text


def test_the_mark_of_another_program_is_none(tmp_path):
    claim(tmp_path / "a", "run", "a")
    mark = json.loads((tmp_path / "a" / MARK).read_text())
    (tmp_path / "a" / MARK).write_text(json.dumps(mark | {"program": "other"}))
    assert read_mark(tmp_path / "a") is None


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("stage", "reward", "holds the stage sft, not the stage reward"),
        ("run", "x", "not a run"),
        ("sweep", "x", "not a sweep"),
    ],
)
def test_another_kind_of_ours_is_not_taken(tmp_path, kind, name, words):
    claim(tmp_path / "x", "stage", "sft")
    with pytest.raises(UsageError, match=words):
        check_ours(tmp_path / "x", kind, name)


def test_a_stage_from_before_the_mark_is_read_and_never_begun_anew(tmp_path):
    path = tmp_path / "sft"
    begun(path)
    (path / MARK).unlink()
    for fresh in (False, True):
        with pytest.raises(UsageError, match="did not mark its directories yet"):
            begun(path, fresh)
    assert (path / "model" / "weights").exists()
    check_ours(path, "stage", "sft")


def test_of_a_link_only_the_link_is_deleted(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.txt").write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there", target_is_directory=True)
    remove(link)
    assert not link.is_symlink()
    assert (tmp_path / "there" / "thesis.txt").read_text() == "precious"
    remove(tmp_path / "there")
    assert not (tmp_path / "there").exists()
    remove(tmp_path / "there")  # what is not there is no error
