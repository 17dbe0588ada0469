"""--config takes what comes with preferl by name."""

import pytest

from preferl.runs.errors import UsageError
from preferl.runs.shipped import configurations, with_files


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_name_stands_for_its_file_wherever_the_command_is_given():
    files = configurations()
    assert {"demo", "hacking", "smollm2", "kl_three"} <= set(files)
    assert with_files(["--config", "hacking", "--seed=1"]) == ["--config", str(files["hacking"]), "--seed=1"]
    assert with_files(["--config=kl_three", "demo"]) == [f"--config={files['kl_three']}", "demo"]


def test_a_file_of_that_name_comes_first(tmp_path):
    (tmp_path / "demo").write_text("seed: 1\n")
    (tmp_path / "hacking").mkdir()
    assert with_files(["--config", "demo"]) == ["--config", "demo"]
    assert with_files(["--config", "hacking"])[1].endswith("hacking.yaml")


def test_neither_a_file_nor_a_name_is_refused_with_the_nearest():
    with pytest.raises(
        UsageError, match=r"--config configs/hackin.yaml is no file; did you mean --config hacking"
    ):
        with_files(["--config", "configs/hackin.yaml"])
    with pytest.raises(UsageError, match=r"none of algorithms, demo, generator_verifier"):
        with_files(["--config", "xyz"])
