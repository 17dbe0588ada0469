"""Responses to read: their numbers by their names, bad ones marked, turns as turns; in a browser they can be
searched and sorted, and nothing in them runs, with the page's script and without."""

import itertools
import re
from types import SimpleNamespace

import pytest

from preferl.reporting.page import SHOWN, Section, Table, Verdict, write_page
from preferl.reporting.samples import MOST, MOST_TURNS, examples
from xss import FOREIGN, PAYLOADS, WATCH


def row(i, **more):
    return {
        "prompt": f"prompt {i}", "policy": f"after {i}", "reference": f"before {i}", "kl": float(i),
        "policy_score": 2.0 * i, "reference_score": 1.0, "policy_finished": True, "reference_finished": True,
    } | more  # fmt: skip


def shown(rows, measures=("score",)):
    summary = {"comparison": {key: {} for key in measures}}
    return examples({"evaluate": SimpleNamespace(samples=rows, summary=summary)})


def page_of(tmp_path, rows, tables=()):
    sections = [Section("Tables", [], list(tables))]
    return write_page(
        tmp_path / "report.html", "run", Verdict("Better", "good", "It gained."), [], sections, [], ["run"],
        examples=shown(rows),
    )  # fmt: skip


def test_every_number_of_a_response_has_its_name():
    gold = {"policy_gold": 0.5, "reference_gold": -0.5, "policy_held_out": 1.0, "reference_held_out": 0.0}
    (found,) = shown([row(3, **gold)], ("score", "gold", "held_out"))
    before, after = (response["numbers"] for response in found["responses"])
    assert before == [("reward", "1.00", False), ("gold reward", "−0.50", False),
                      ("held-out reward", "0.00", False)]  # fmt: skip
    assert after == [("reward", "6.00", False), ("gold reward", "0.50", False),
                     ("held-out reward", "1.00", False), ("log π/π_ref", "3.00", False)]  # fmt: skip
    assert found["gain"] == 1.0


def test_numbers_that_are_none_are_marked_and_no_extremes(tmp_path):
    rows = [row(0), row(1), row(2, policy_score="nan", kl="inf"), row(3)]
    del rows[3]["reference_score"]
    found = {one["prompt"]: one for one in shown(rows)}
    assert found["prompt 2"]["responses"][1]["numbers"] == [
        ("reward", "nan", True), ("log π/π_ref", "inf", True)
    ]  # fmt: skip
    assert found["prompt 3"]["responses"][0]["numbers"] == [("reward", "missing", True)]
    assert [found[f"prompt {i}"]["gain"] for i in range(4)] == [-1.0, 1.0, None, None]
    text = page_of(tmp_path, rows).read_text()
    assert '<b class="bad">nan</b>' in text
    assert '<b class="bad">missing</b>' in text


def test_many_responses_are_in_the_page_and_not_all():
    found = shown([row(i) for i in range(MOST + 50)])
    assert len(found) == MOST
    assert len({one["prompt"] for one in found}) == MOST
    assert [one["why"] for one in found[:5]] == ["drawn at random"] * 5
    whys = [one["why"] for one in found[:SHOWN]]
    assert "largest gain in reward" in whys
    assert "largest loss of reward" in whys


def test_turns_are_turns_and_a_long_dialogue_has_its_last_ones(tmp_path):
    turns = [{"role": "user" if i % 2 else "assistant", "content": f"turn {i}"} for i in range(20)]
    (few, many) = (shown([row(0, turns=turns[:n])])[0]["turns"] for n in (3, 20))
    assert few == [("assistant", "turn 0"), ("user", "turn 1"), ("assistant", "turn 2")]
    assert many[0] == ("…", f"{20 - MOST_TURNS} earlier turns")
    assert many[1:] == [(turn["role"], turn["content"]) for turn in turns[-MOST_TURNS:]]
    text = page_of(tmp_path, [row(0, turns=turns[:3])]).read_text()
    assert text.count('<div class="turn">') == 3
    assert "prompt 0" not in text  # it is the last of the turns


def test_the_policy_of_a_page_lets_its_own_script_run_alone(tmp_path):
    many = page_of(tmp_path, [row(0), row(1)]).read_text()
    assert len(re.findall("<script", many)) == 1
    (policy,) = re.findall('Security-Policy" content="(.*?)"', many)
    assert re.fullmatch(
        r"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-[\w+/]{43}='",
        policy,
    )
    one = page_of(tmp_path, [row(0)]).read_text()  # nothing to sort
    assert "<script" not in one
    assert "script-src" not in one


# ----------------------------------------------------------------------------------------------- in a browser


@pytest.fixture
def open_page(browser):
    """Opens a page, with scripts or without; what ran or was stopped is in ``window.ran``."""
    contexts = []

    def opened(path, scripts=True, **options):
        contexts.append(browser.new_context(java_script_enabled=scripts, **options))
        page = contexts[-1].new_page()
        page.add_init_script(WATCH)
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


def visible(page):
    return [p.split()[-1] for p in page.locator(".example:visible .prompt").all_inner_texts()]


def test_samples_can_be_searched_and_sorted(tmp_path, open_page):
    rows = [row(i, policy_finished=i != 7) for i in range(30)]
    rows[5]["policy_score"] = "nan"
    page = open_page(page_of(tmp_path, rows))
    drawn = visible(page)
    assert len(drawn) == SHOWN
    page.select_option("[name=order]", "gain down")
    assert visible(page) == [str(i) for i in range(29, 19, -1)]
    page.select_option("[name=order]", "gain up")
    assert visible(page)[:3] == ["0", "1", "2"]
    page.select_option("[name=order]", "ratio down")
    assert visible(page)[0] == "29"
    page.select_option("[name=order]", "drawn")
    assert visible(page) == drawn
    page.fill("[name=words]", "AFTER 12")
    assert visible(page) == ["12"]
    assert page.locator("output").inner_text() == "1 of 30"
    page.press("[name=words]", "Enter")  # loads nothing
    assert visible(page) == ["12"]
    page.fill("[name=words]", "")
    page.select_option("[name=which]", "lost")
    assert visible(page) == ["0"]
    page.select_option("[name=which]", "cut")
    assert visible(page) == ["7"]
    page.select_option("[name=which]", "all")
    page.select_option("[name=order]", "gain down")
    page.get_by_text("All 30 prompts").click()
    assert len(visible(page)) == 30
    assert visible(page)[-1] == "5"  # what has no number stands last
    assert page.evaluate("window.ran") == []


def test_without_scripts_the_page_is_whole(tmp_path, open_page):
    tables = [Table("Long", ["n"], [[str(n)] for n in range(40)]), Table("Short", ["n"], [["a"]] * 15)]
    page = open_page(page_of(tmp_path, [row(i) for i in range(30)], tables), scripts=False)
    assert page.locator(".choose").is_hidden()
    assert len(visible(page)) == SHOWN
    assert page.locator("tbody tr:visible").count() == SHOWN + 15
    page.get_by_text("All 40 rows").click()
    assert page.locator("tbody tr:visible").count() == 40 + 15
    page.get_by_text("All 30 prompts").click()
    assert len(visible(page)) == 30


def test_print_has_every_row_and_every_response(tmp_path, open_page):
    tables = [Table("Long", ["n"], [[str(n)] for n in range(40)])]
    page = open_page(page_of(tmp_path, [row(i) for i in range(30)], tables))
    page.emulate_media(media="print")
    assert page.locator("tbody tr:visible").count() == 40
    assert len(visible(page)) == 30
    assert page.locator(".choose").is_hidden()


def test_nothing_but_tables_is_wider_than_a_telephone(tmp_path, open_page):
    long = "w" * 400
    turns = [{"role": "user", "content": long}, {"role": long, "content": long}]
    rows = [row(0, prompt=long, policy=long, reference=long), row(1, turns=turns, policy_score=long)]
    tables = [Table(long, ["a", "b"], [[long, "short"]] * 3, note=long)]
    path = write_page(
        tmp_path / "report.html", long, Verdict(long, "good", long), [(long, long, long)] * 3,
        [Section(long, [], tables)], [(long, long)], [long], examples=shown(rows), remarks=[long],
        notes=[long],
    )  # fmt: skip
    page = open_page(path, viewport={"width": 390, "height": 800})
    assert page.evaluate("document.scrollingElement.scrollWidth") == 390


@pytest.mark.parametrize("scripts", [True, False], ids=["with the script", "without"])
def test_no_text_of_a_response_runs(tmp_path, open_page, scripts):
    texts = list(dict.fromkeys(PAYLOADS))
    upcoming = itertools.cycle(texts)
    for start in range(0, len(texts), 50):
        rows = []
        for i, payload in enumerate(texts[start : start + 50]):
            turns = [{"role": next(upcoming), "content": payload}, {"role": "user", "content": payload}]
            rows.append(row(i, prompt=payload, policy=payload, reference=payload, policy_score=payload))
            rows[-1] |= {"turns": turns} if i % 2 else {}
        page = open_page(page_of(tmp_path, rows), scripts)
        page.get_by_text(re.compile(r"^All \d+ prompts$")).click()
        if scripts:
            for order in ("gain down", "ratio down", "length up"):
                page.select_option("[name=order]", order)
            page.fill("[name=words]", "xss")
            assert page.evaluate("window.ran") == []
        assert page.evaluate(FOREIGN) == []
