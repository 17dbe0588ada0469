"""Tables, packed files, what save_to_disk wrote, cloned repositories, and names of the Hub (of a stub)."""

import csv
import json
import os
import subprocess
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from preferl.cli import main
from preferl.data import containers, formats
from preferl.data.containers import Name, named, read_rows
from preferl.data.files import RowError, Table
from preferl.data.records import DataError
from stub_hub import serving

PAIRS = [
    {"prompt": f"Name fruit {i}.", "chosen": f"An apple, {i}.", "rejected": f"A stone, {i}."}
    for i in range(3)
]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def values(name):
    return [row.value for row in read_rows(str(name))]


# -------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(("ending", "mark"), [("csv", ","), ("csv", ";"), ("tsv", "\t"), ("csv", "|")])
def test_tables_with_line_breaks_quotes_and_marks_in_cells(tmp_path, ending, mark):
    rows = [
        {"prompt": 'He said "yes", twice;', "chosen": "a\nb\n", "rejected": "tab\there | bar", "strength": 1},
        {"prompt": "=1+1", "chosen": "café", "rejected": "'", "strength": 3},
    ]
    with open(tmp_path / f"a.{ending}", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=mark)
        writer.writeheader()
        writer.writerows(rows)
    found = list(read_rows(str(tmp_path / f"a.{ending}")))
    assert [row.value for row in found] == rows
    assert [row.where for row in found] == [f"{tmp_path}/a.{ending}:2", f"{tmp_path}/a.{ending}:5"]


def test_numbers_are_numbers_where_the_whole_column_is(tmp_path):
    """An answer that is a number stays a text, as do codes with leading zeros."""
    text = (
        "chosen,score,half,good,code,mixed,response_a,none\n"
        "4,3,0.5,true,007,1,12,\n"
        "5,-2,1e3,FALSE,010,x,13,\n"
        "6,,2,,1,2,14,\n"
    )
    (tmp_path / "a.csv").write_text(text)
    assert values(tmp_path / "a.csv") == [
        {"chosen": "4", "score": 3, "half": 0.5, "good": True, "code": "007", "mixed": "1"}
        | {"response_a": "12", "none": ""},
        {"chosen": "5", "score": -2, "half": 1000.0, "good": False, "code": "010", "mixed": "x"}
        | {"response_a": "13", "none": ""},
        {"chosen": "6", "score": None, "half": 2.0, "good": None, "code": "1", "mixed": "2"}
        | {"response_a": "14", "none": ""},
    ]


def test_rows_of_a_table_that_are_damaged_are_named(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt,chosen\np,c\nonly one\nq,caf\xe9\n")
    found = list(read_rows(str(tmp_path / "a.csv")))
    assert found[0].value == {"prompt": "p", "chosen": "c"}
    assert [(row.where, row.value.kind) for row in found[1:]] == [
        (f"{tmp_path}/a.csv:3", "wrong_cells"),
        (f"{tmp_path}/a.csv:4", "wrong_encoding"),
    ]
    assert all(isinstance(row.value, RowError) and row.value.kind in formats.POLICY for row in found[1:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('prompt,chosen\n"never closed,c\nq,d\n', r"a\.csv:2: is no row of a table .*mend its quotes"),
        ("prompt,prompt\np,q\n", r"a\.csv:1: the column 'prompt' is named twice"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        values(tmp_path / "a.csv")


def test_a_cell_may_be_longer_than_the_csv_modules_limit(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text(f"prompt,chosen\np,{'x' * 200_000}\n")
    assert len(values(tmp_path / "a.csv")[0]["chosen"]) == 200_000
    assert csv.field_size_limit() == before


def test_pairs_out_of_a_table_are_the_pairs_of_json_lines(tmp_path):
    text = "prompt\tchosen\trejected\n" + "".join("\t".join(row.values()) + "\n" for row in PAIRS)
    (tmp_path / "a.tsv").write_text(text)
    (tmp_path / "a.jsonl").write_bytes(lines(PAIRS))
    expected = formats.load(str(tmp_path / "a.jsonl")).records
    assert formats.load(str(tmp_path / "a.tsv")).records == expected


# ----------------------------------------------------------------------------------------- packed and Arrow


def packed(path, data):
    with pyarrow.CompressedOutputStream(pyarrow.OSFile(str(path), "wb"), "zstd") as out:
        out.write(data)


def test_zstd(tmp_path):
    packed(tmp_path / "a.jsonl.zst", lines(PAIRS))
    packed(tmp_path / "b.csv.zst", b"prompt,chosen\np,c\n")
    assert values(tmp_path / "a.jsonl.zst") == PAIRS
    assert values(tmp_path / "b.csv.zst") == [{"prompt": "p", "chosen": "c"}]
    packed(tmp_path / "c.jsonl.zst", lines(PAIRS) * 1000)
    whole = (tmp_path / "c.jsonl.zst").read_bytes()
    for damaged in (whole[:-9], b"no zstd at all"):
        (tmp_path / "c.jsonl.zst").write_bytes(damaged)
        with pytest.raises(DataError, match=r"c\.jsonl\.zst' is no whole zstd file.*fetch it again"):
            values(tmp_path / "c.jsonl.zst")


def test_a_data_set_that_was_saved_to_disk(tmp_path):
    datasets.Dataset.from_list(PAIRS).save_to_disk(str(tmp_path / "one"))
    both = {"train": datasets.Dataset.from_list(PAIRS), "test": datasets.Dataset.from_list(PAIRS[:1])}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "several"))
    assert values(tmp_path / "one") == PAIRS
    found = list(read_rows(str(tmp_path / "several")))
    assert [row.split for row in found] == ["train"] * 3 + ["test"]
    assert found[-1].where == f"{tmp_path}/several[test] row 1"
    assert values(f"{tmp_path}/several[test]") == PAIRS[:1]
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    assert values(arrow) == PAIRS
    arrow.write_bytes(arrow.read_bytes()[:100])
    for name in (arrow, tmp_path / "one"):
        with pytest.raises(DataError, match="is no whole"):
            values(name)


def test_arrows_file_format(tmp_path):
    table = pyarrow.Table.from_pylist(PAIRS)
    with pyarrow.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert values(tmp_path / "a.arrow") == PAIRS


# -------------------------------------------------------------------------------------- cloned repositories


def clone(folder, card=None, **files):
    for name, rows in files.items():
        path = folder / name.replace("__", "/").replace("_of_", "-of-")
        path = path.with_name(path.name + ".parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    if card:
        (folder / "README.md").write_text(f"---\n{card}---\n# A data set\n")
    return folder


def test_a_cloned_repository_has_its_files_in_data(tmp_path):
    found = clone(tmp_path, "license: mit\n", **{"data__train_prefs-00000_of_00001": PAIRS})
    clone(tmp_path, **{"data__test_prefs-00000_of_00001": PAIRS[:1]})
    rows = list(read_rows(str(found)))
    assert [row.split for row in rows] == ["test_prefs"] + ["train_prefs"] * 3
    assert values(f"{found}[test_prefs]") == PAIRS[:1]
    with pytest.raises(DataError, match="no split 'dev'; it has test_prefs, train_prefs"):
        values(f"{found}[dev]")


CARD = """configs:
- config_name: pref
  data_files:
  - split: train
    path: p/train*
  - split: test
    path: [p/held.parquet]
- config_name: ratings
  data_files: r/*.parquet
"""


def test_configurations_of_a_cloned_repositorys_card(tmp_path):
    found = clone(tmp_path, CARD, p__train=PAIRS, p__held=PAIRS[:1], r__all=PAIRS[:2])
    assert [row.split for row in read_rows(f"{found}:pref")] == ["train"] * 3 + ["test"]
    assert values(f"{found}:ratings") == PAIRS[:2]
    with pytest.raises(DataError, match=r"several configurations: pref, ratings; name one, as .*:pref or "):
        values(found)
    with pytest.raises(DataError, match=r"no configuration 'x'; it has pref, ratings"):
        values(f"{found}:x")
    with pytest.raises(DataError, match=r"leave out @v1; `git checkout v1`"):
        values(f"{found}:pref@v1")
    (found / "p" / "held.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks 'p/held.parquet', which its README names"):
        values(f"{found}:pref")


def test_folders_below_are_named_where_nothing_else_is_there(tmp_path):
    found = clone(tmp_path, "license: mit\n", harmless__train=PAIRS, helpful__train=PAIRS)
    with pytest.raises(DataError, match=r"name one of the folders in it that do, as .*harmless"):
        values(found)
    assert values(f"{found}:helpful") == PAIRS


def test_folders_that_are_called_like_splits_are_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "part-0.jsonl").write_text(json.dumps({"text": f"One {split}."}) + "\n")
    assert [(row.split, row.value) for row in read_rows(str(tmp_path))] == [
        ("test", {"text": "One test."}),
        ("train", {"text": "One train."}),
    ]


def test_what_lies_beside_data_is_not_read(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "One."}) + "\n")
    for name in ("config.json", ".cache.json", "requirements.txt", "LICENSE.txt", "README.md"):
        (tmp_path / name).write_text("{}")
    assert [row.value for row in read_rows(str(tmp_path))] == [{"text": "One."}]


def test_a_pointer_of_git_lfs_is_named_as_such(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("a.parquet", "a.jsonl", "a.json", "a.csv", "a.jsonl.gz"):
        (tmp_path / name).write_text(pointer)
        with pytest.raises(
            DataError, match=rf"{name}' is a pointer of Git LFS.*`git lfs pull` in '{tmp_path}'"
        ):
            values(tmp_path / name)


def test_scripts_and_pickles_are_not_run(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text("open('ran', 'w')")
    (tmp_path / "set" / "rows.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(DataError, match=r"it has a script \(set\.py\), which is not run"):
        values(tmp_path / "set")
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", Name("org/name")),
        ("org/name:pref[test]@v1", Name("org/name", "pref", "test", "v1")),
        ("org/name@refs/convert/parquet", Name("org/name", revision="refs/convert/parquet")),
        ("hf://datasets/org/name:pref", Name("hf://datasets/org/name", "pref")),
        ("org/name[train_prefs]", Name("org/name", split="train_prefs")),
    ],
)
def test_a_name_says_configuration_split_and_revision(text, expected):
    assert Name.parse(text) == expected
    assert str(expected) == text


def test_options_say_the_same_as_the_name(tmp_path):
    assert named("org/name", config="pref", revision="v1") == "org/name:pref@v1"
    assert named("org/name:pref", config="pref") == "org/name:pref"
    with pytest.raises(DataError, match="names the config 'pref' and the option 'other'"):
        named("org/name:pref", config="other")
    odd = tmp_path / "a@b[1].jsonl"
    odd.write_bytes(lines(PAIRS))
    assert values(odd) == PAIRS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("--help", "looks like an option"),
        ("-x", "looks like an option"),
        ("pairs.jsnl", r"check the path; did you mean 'pairs\.jsonl'\?"),
        ("pears", r"did you mean 'pears2'\?"),
        ("data/other", r"'data/other' is no file or folder here; check the path \(a data set of the Hub"),
        ("pairs.cvs", "is no file or folder here"),
        ("what is this", "is no file or folder here"),
    ],
)
def test_what_looks_like_an_option_or_a_file_never_goes_to_the_hub(tmp_path, monkeypatch, name, message):
    def asked(name):
        raise AssertionError(f"asked the Hub for {name}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(containers, "hub_rows", asked)
    (tmp_path / "pairs.jsonl").write_bytes(lines(PAIRS))
    for folder in ("pears2", "data"):
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match=message):
        values(name)


# --------------------------------------------------------------------------------------------------- the Hub

PREFIX = "---\nconfigs:\n"
SEVERAL = """- config_name: pref
  data_files:
  - {split: train, path: p/train.jsonl}
  - {split: test, path: p/test.jsonl}
- config_name: ratings
  data_files:
  - {split: train, path: r/train.jsonl}
"""
USUAL = SEVERAL.replace("config_name: ratings", "config_name: ratings\n  default: true")
FILES = {"p/train.jsonl": lines(PAIRS), "p/test.jsonl": lines(PAIRS[:1]), "r/train.jsonl": lines(PAIRS[:2])}
REPOSITORIES = {
    "org/several": {"main": {"README.md": f"{PREFIX}{SEVERAL}---\n".encode(), **FILES}},
    "org/usual": {"main": {"README.md": f"{PREFIX}{USUAL}---\n".encode(), **FILES}},
    "org/folders": {
        "main": {"a/train.jsonl": lines(PAIRS), "b/train.jsonl": lines(PAIRS[:1])},
        "v1": {"a/train.jsonl": lines(PAIRS[:2])},
    },
    "org/script": {"main": {"script.py": b"raise SystemExit('ran')", "a.txt": b"x"}},
}
READ = """
import json, sys
from preferl.data.containers import read_rows
from preferl.data.records import DataError
for name in sys.argv[1:]:
    try:
        print(json.dumps([[row.where, row.split] for row in read_rows(name)]))
    except DataError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """What names of a stub Hub give: places and splits of rows, or the error."""
    names = [
        *("org/several", "org/several:pref", "org/several:ratings", "org/several:x", "org/several:pref[dev]"),
        *("org/usual", "org/folders:a", "org/folders:a@v1", "org/folders:a@v2", "org/script", "org/none"),
        *("hf://datasets/org/several:pref[test]",),
    ]
    home = tmp_path_factory.mktemp("home")
    with serving(REPOSITORIES) as url:
        environment = os.environ | {
            **{"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"},
            **{"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
            **{"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        }
        command = [sys.executable, "-c", READ, *names]
        done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True))


def test_a_configuration_of_the_hub_must_be_named_and_the_choices_are_listed(hub):
    assert "several configurations: pref, ratings; name one, as org/several:pref" in hub["org/several"]
    assert "has no configuration 'x'; it has pref, ratings" in hub["org/several:x"]


def test_a_configuration_and_a_split_of_the_hub(hub):
    assert [split for _, split in hub["org/several:pref"]] == ["train"] * 3 + ["test"]
    assert hub["org/several:ratings"][0] == ["org/several:ratings[train] row 1", "train"]
    assert "has no split 'dev'; it has train, test" in hub["org/several:pref[dev]"]
    assert hub["hf://datasets/org/several:pref[test]"] == [["org/several:pref[test] row 1", "test"]]


def test_the_usual_configuration_is_read_and_named_in_every_place(hub):
    assert [where for where, _ in hub["org/usual"]] == [f"org/usual:ratings[train] row {i}" for i in (1, 2)]


def test_a_folder_and_a_revision_of_the_hub(hub):
    assert len(hub["org/folders:a"]) == 3
    assert [where for where, _ in hub["org/folders:a@v1"]] == [
        f"org/folders:a@v1[train] row {i}" for i in (1, 2)
    ]
    assert "has no revision 'v2'; it has main, v1" in hub["org/folders:a@v2"]


def test_what_the_hub_does_not_give(hub):
    assert "is no local file, and the Hub did not give it" in hub["org/none"]
    assert "comes with a script, which is not run" in hub["org/script"]


def test_the_data_command_takes_configuration_and_revision(tmp_path, capsys):
    found = clone(tmp_path / "set", CARD, p__train=PAIRS, p__held=PAIRS[:1], r__all=PAIRS[:2])
    assert main(["data", "validate", str(found), "--config_name", "ratings"]) == 0
    assert "2 of 2 rows used" in capsys.readouterr().out
    assert main(["data", "convert", str(found), str(tmp_path / "a.jsonl"), "--config_name=pref"]) == 0
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 4
    assert main(["data", "validate", str(found), "--revision", "v1"]) == 3
    assert "leave out @v1" in capsys.readouterr().err


def test_rows_in_memory_have_no_place_on_disk():
    assert [row.file for row in read_rows(Table(PAIRS))] == [""] * 3
