"""The documentation builds as a site, without a warning, and the site loads nothing from a network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


class Page(HTMLParser):
    """What a page loads, and its paragraphs."""

    def __init__(self, path: Path):
        super().__init__()
        self.loads, self.paragraphs, self.inside = [], [], False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag != "a":
            self.loads += [found[name] for name in ("src", "srcset", "href", "data") if found.get(name)]
        if tag == "p":
            self.paragraphs.append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "p"

    def handle_data(self, data):
        if self.inside:
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="needs `pip install 'preferl[docs]'`")
    site = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return site, done


@pytest.fixture(scope="module")
def pages(built):
    site, _ = built
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_it_builds_without_a_warning(built):
    _, done = built
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "WARNING" not in output, output


def test_every_page_is_there_and_in_the_navigation(pages):
    sources = [path.relative_to(DOCS) for path in DOCS.rglob("*.md")]
    assert {source.with_suffix(".html").as_posix() for source in sources} <= set(pages)
    configuration = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [s.name for s in DOCS.glob("*.md") if f": {s.name}\n" not in configuration] == []


def test_nothing_is_loaded_from_a_network(built, pages):
    site, _ = built
    far = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
    assert [(name, url) for name, page in pages.items() for url in page.loads if far.match(url)] == []
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", text), style.name


def test_lists_are_lists_as_on_github(pages):
    swallowed = [
        (name, text[:80])
        for name, page in pages.items()
        for text in page.paragraphs
        if re.search(r"\n([-*]|\d+\.) ", text)
    ]
    assert swallowed == []
