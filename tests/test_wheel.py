"""The wheel: all of preferl is in it, and its dependencies are those that it uses."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IMPORTED_AS = {"pyyaml": "yaml", "scikit-learn": "sklearn"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which the wheel of this checkout is unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "site")
    return folder / "site"


def test_it_holds_every_file_of_the_package(installed):
    source = ROOT / "src"
    files = {
        file.relative_to(source)
        for file in (source / "preferl").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert files <= {file.relative_to(installed) for file in installed.rglob("*")}


def test_it_works_outside_of_the_checkout(installed, tmp_path):
    """Its configurations are found by name, and what the tutorial imports is there."""
    script = (
        "import preferl, preferl.cli, preferl.maths.reference as r\n"
        f"assert preferl.__file__.startswith({str(installed)!r}), preferl.__file__\n"
        "assert abs(float(r.bradley_terry_loss([0.0], [0.0])[0]) - 0.6931) < 1e-4\n"
        "raise SystemExit(preferl.cli.main(['run', '--config', 'tutorial', '--print_config']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "output_dir: runs/tutorial" in done.stdout


def test_every_dependency_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))
    for requirement in project["dependencies"]:
        name = re.match(r"[\w-]+", requirement)[0]
        module = IMPORTED_AS.get(name, name.replace("-", "_"))
        assert re.search(rf"^\s*(from|import) {module}\b", text, flags=re.M), f"{name} is not used"
