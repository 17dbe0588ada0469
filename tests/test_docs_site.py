"""The documentation builds as a site, without a warning; the site loads nothing from a network, and works
where it is opened as files."""

import dataclasses
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import preferl
from preferl.pipeline import KINDS, RunOptions

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
        timeout=300,
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
    assert [str(s) for s in sources if f": {s.as_posix()}\n" not in configuration] == []


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


def test_every_option_and_every_public_name_has_its_place(built):
    site, _ = built
    text = (site / "options.html").read_text(encoding="utf-8")
    sections = dict(re.findall(r'<h2 id="([\w-]+)">(.*?)(?=<h2|</article>)', text, flags=re.S))
    for kind, options in {**KINDS, "run-demo": RunOptions}.items():
        rows = [re.findall(r"<td>(.*?)</td>", row, flags=re.S) for row in sections[kind].split("<tr>")[2:]]
        assert {f"<code>{f.name}</code>" for f in dataclasses.fields(options)} == {row[0] for row in rows}
        assert all(len(row) == 4 and row[3] for row in rows), kind
    assert "if initialised by preferl 0.1; if pretrained 0.05" in sections["rl"]
    api = (site / "api.html").read_text(encoding="utf-8")
    assert [name for name in preferl.__all__ if not re.search(rf'id="preferl\.[\w.]*\b{name}"', api)] == []


def test_a_console_is_copied_without_what_it_prints(built, browser):
    site, _ = built
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto((site / "tutorial" / "09-people.html").as_uri())
    block = page.locator(".language-console", has_text="preferl design-reward").first
    block.hover()
    block.locator(".md-code__button").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.length > 0)")
    copied = page.evaluate("navigator.clipboard.readText()")
    context.close()
    assert copied == (
        'preferl design-reward "helpfulness" --output_dir runs/design\nhead -n 11 runs/design/guidelines.md'
    )


def test_it_is_searched_and_filtered_where_it_is_opened_as_files(built, browser):
    site, _ = built
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.locator("[data-md-component=search-query]").click()
    page.keyboard.type("kl_horizon")
    found = page.locator(".md-search-result__item", has_text="Options")
    found.first.wait_for(timeout=60_000)
    page.goto((site / "options.html").as_uri())
    page.locator(".filter").fill("kl_horizon")
    shown = page.locator("article tbody tr:visible td:first-child").all_inner_texts()
    headings = page.locator("article h2:visible").all_inner_texts()
    page.close()
    assert shown == ["kl_horizon"]
    assert [heading.rstrip("¶") for heading in headings] == ["rl"]


def test_a_page_is_no_wider_than_a_phone_and_its_code_wraps(built, browser):
    site, _ = built
    page = browser.new_page(viewport={"width": 390, "height": 844})
    for name in ("quickstarts/judge", "from-trl", "options", "exercises"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        wide = (
            "[...document.querySelectorAll('pre code')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        )
        assert page.evaluate(wide) == 0, name
    page.close()
