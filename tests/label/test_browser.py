"""The pages in a real Chromium: keys, touch, drafts, without JavaScript, accessibility, and hostile texts."""

import contextlib
import json
import re

import pytest
from playwright.sync_api import expect

from preferl.data.records import Comparison
from preferl.label.answers import Answer
from projects import (
    FIRST,
    PASSWORD,
    judge_all,
    judgements,
    nonce,
    pairs,
    people,
    plain,
    serving,
    triples,
)
from xss import FOREIGN, PAYLOADS, WATCH

WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}

# Everything here starts a browser.
pytestmark = pytest.mark.slow


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "label.sqlite")


@pytest.fixture
def address(store, accounts):
    with serving(store, accounts) as address:
        yield address


@pytest.fixture
def enter(browser, address, accounts):
    """Opens a browser of its own for a person, who has agreed to the terms, at the first item."""
    with contextlib.ExitStack() as stack:

        def open_page(name="Ann", role="annotator", **options):
            known = {account.name: account for account in accounts.all()}
            account = known.get(name) or accounts.add(name, role)
            accounts.consent(account.id)
            # Colours that are on their way from one to another are neither.
            context = browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce"} | options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.problems = []
            page.on("console", lambda m: m.type == "error" and page.problems.append(m.text))
            page.on("pageerror", lambda error: page.problems.append(str(error)))
            page.goto(f"{address}/link/{accounts.link(account.id)}")
            page.click("button.primary")
            page.goto(f"{address}/label")
            return page

        yield open_page


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def submitted(page, *keys):
    """Presses keys of which the last one leads to the next page."""
    with page.expect_navigation():
        press(page, *keys)


def texts(page):
    return page.locator(".response > .text").all_inner_texts()


# ---------------------------------------------------------------------------------------------------- keys


def test_pairs_are_judged_by_keys_alone(store, enter):
    plain(store)
    store.add_items(pairs(4))
    page = enter()
    first = texts(page)
    press(page, "6")
    assert page.locator(".chosen").inner_text() == "B better"
    submitted(page, "2", "Enter")
    (found,) = judgements(store)
    assert pairs(4)[found.item_id - 1].responses[found.ranks.index(1)] == first[0]
    assert abs(found.strength) == 2
    submitted(page, "0", "Enter")
    assert judgements(store)[-1].both_bad
    submitted(page, "s")
    assert judgements(store)[-1].ranks is None
    press(page, "f", "r")
    page.keyboard.type("seven, f and s are text here")
    submitted(page, "Escape", "7", "Enter")
    last = judgements(store)[-1]
    assert (last.flagged, last.reason, abs(last.strength)) == (True, "seven, f and s are text here", 3)
    assert "Nothing left for you" in page.inner_text("main")
    submitted(page, "u")
    assert page.locator("[name=reason]").input_value() == "seven, f and s are text here"
    assert page.locator("[value='-3']").is_checked()
    submitted(page, "4", "Control+Enter")
    assert judgements(store)[-1].ranks == [1, 1]
    assert not page.problems


def test_help_and_guidelines_open_by_keys(store, enter):
    store.add_items(pairs(1))
    store.configure(guidelines="Be *kind*.")
    page = enter()
    assert not page.get_by_text("Be kind.").is_visible()
    press(page, "g")
    assert page.get_by_text("Be kind.").is_visible()
    press(page, "?")
    assert page.get_by_role("dialog").is_visible()
    press(page, "2", "s")  # keys mean nothing behind the help
    press(page, "Escape")
    assert not page.get_by_role("dialog").is_visible()
    assert page.locator("[name=choice]:checked").count() == 0
    assert judgements(store) == []


def test_nothing_chosen_is_not_sent(store, enter):
    store.add_items(pairs(1) + triples(1))
    page = enter()
    press(page, "Enter")
    page.wait_for_timeout(200)
    assert judgements(store) == []


def test_rankings_are_made_by_keys_with_ties(store, enter):
    store.add_items(triples(1))
    page = enter()
    shown = texts(page)
    press(page, "2", "1", "2")
    assert page.locator(".chosen").inner_text() == "B > A = C"
    # The frame stays on the last one, C.
    press(page, "3", "ArrowUp", "ArrowUp", "2", "ArrowDown", "ArrowDown")
    assert page.locator(".chosen").inner_text() == "B > A > C"
    press(page, "2")
    submitted(page, "Enter")
    (found,) = judgements(store)
    assert [found.ranks[triples(1)[0].responses.index(text)] for text in shown] == [2, 1, 2]


def test_all_bad_needs_no_places(store, enter):
    store.add_items(triples(1))
    page = enter()
    press(page, "0")
    submitted(page, "Enter")
    (found,) = judgements(store)
    assert (found.ranks, found.both_bad) == ([1, 1, 1], True)


# ------------------------------------------------------------------------------------------------- dragging


def drag(page, card, onto, part):
    """Drags a card by its handle to a part (0 top, 1 bottom) of another."""
    handle = page.locator(f"li[aria-label='Response {card}'] .handle").bounding_box()
    target = page.locator(f"li[aria-label='Response {onto}']").bounding_box()
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(target["x"] + target["width"] / 2, target["y"] + target["height"] * part, steps=5)
    page.mouse.up()


def test_rankings_are_made_by_dragging(store, enter):
    store.add_items(triples(2))
    page = enter()
    shown = texts(page)
    drag(page, "C", "A", 0.1)
    assert page.locator(".chosen").inner_text() == "C > A > B"
    drag(page, "B", "C", 0.5)
    assert page.locator(".chosen").inner_text() == "B = C > A"
    drag(page, "B", "A", 0.9)
    assert page.locator(".chosen").inner_text() == "C > A > B"
    submitted(page, "Enter")
    (found,) = judgements(store)
    own = triples(2)[found.item_id - 1].responses
    assert [found.ranks[own.index(text)] for text in shown] == [2, 3, 1]


def test_dragging_keeps_the_places_that_keys_gave(store, enter):
    store.add_items([Comparison("Rank?", [f"{word}." for word in "abcd"], [1] * 4)])
    page = enter()
    press(page, "4", "2", "1")
    drag(page, "D", "C", 0.9)
    assert page.locator(".chosen").inner_text() == "C > D > B > A"
    page.reload()
    press(page, "ArrowDown")
    assert page.locator(".chosen").inner_text() == "C > D > B > A"


def test_what_has_no_place_keeps_none(store, enter):
    store.add_items([Comparison("Rank?", [f"{word}." for word in "abcd"], [1] * 4)])
    page = enter()
    press(page, "1")
    drag(page, "B", "A", 0.1)
    assert [page.locator("select").nth(i).input_value() for i in range(4)] == ["1", "2", "", ""]
    assert page.locator(".chosen").inner_text() == "Give every response a place."


def test_all_bad_by_the_mouse_needs_no_places(store, enter):
    store.add_items(triples(1))
    page = enter()
    page.locator("label", has_text="All bad").click()
    with page.expect_navigation():
        page.get_by_role("button", name="Submit").click()
    assert judgements(store)[0].both_bad


def test_a_key_that_is_held_is_pressed_once(store, enter):
    plain(store)
    store.add_items(pairs(9))
    page = enter()
    page.keyboard.down("s")
    for _ in range(12):
        page.keyboard.down("s")  # what a browser sends while a key is held
        page.wait_for_timeout(60)
    page.keyboard.up("s")
    page.wait_for_timeout(300)
    assert len(judgements(store)) == 1


def test_rankings_are_made_by_touch_on_a_phone(store, enter):
    store.add_items(triples(1))
    page = enter(viewport=PHONE, has_touch=True, is_mobile=True)
    shown = texts(page)
    touch = page.context.new_cdp_session(page)
    handle = page.locator("li[aria-label='Response C'] .handle").bounding_box()
    target = page.locator("li[aria-label='Response A']").bounding_box()
    points = [
        (handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2),
        (target["x"] + 100, target["y"] + 60),
        (target["x"] + 100, target["y"] + 6),
    ]

    def finger(kind, *points):
        points = [{"x": x, "y": y} for x, y in points]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    finger("touchStart", points[0])
    for point in points[1:]:
        finger("touchMove", point)
    finger("touchEnd")
    assert page.locator(".chosen").inner_text() == "C > A > B"
    page.get_by_role("button", name="Submit").tap()
    page.wait_for_selector("text=Nothing left")
    (found,) = judgements(store)
    assert [found.ranks[triples(1)[0].responses.index(text)] for text in shown] == [2, 3, 1]


# --------------------------------------------------------------------------------------------------- phones


@pytest.mark.parametrize("items", [pairs(1), triples(1)], ids=["pair", "ranking"])
def test_everything_fits_a_phone_and_a_thumb(store, enter, items):
    long = "Donaudampfschifffahrtsgesellschaftskapitänsmütze" * 3
    store.add_items(
        [Comparison(long, [long + text for text in item.responses], item.ranks) for item in items]
    )
    page = enter(viewport=PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for box in page.locator(".actions button, .face, .check, select").all():
        size = box.bounding_box()
        assert size["height"] >= 44 or size["width"] >= 200, box
        assert size["width"] >= 40


def test_pairs_are_judged_by_touch(store, enter):
    store.add_items(pairs(1))
    page = enter(viewport=PHONE, has_touch=True, is_mobile=True)
    page.locator(".step", has_text="B much better").tap()
    page.locator("label", has_text="Flag").tap()
    page.get_by_role("button", name="Submit").tap()
    page.wait_for_selector("text=Nothing left")
    (found,) = judgements(store)
    assert (abs(found.strength), found.flagged) == (3, True)
    page.get_by_role("button", name="Undo").tap()
    page.wait_for_selector("text=Which response is better?")
    assert judgements(store) == []


# --------------------------------------------------------------------------------------------------- drafts


def test_a_draft_outlives_a_reload_and_only_its_item(store, enter):
    plain(store)
    store.add_items(pairs(2))
    page = enter()
    press(page, "3", "f", "r")
    page.keyboard.type("half a thou")
    page.reload()
    assert page.locator("[name=choice][value='1']").is_checked()
    assert page.locator("[name=flagged]").is_checked()
    assert page.locator("[name=reason]").input_value() == "half a thou"
    assert page.locator(".chosen").inner_text() == "A slightly better"
    submitted(page, "Enter")
    assert judgements(store)[0].reason == "half a thou"
    assert page.locator("[name=choice]:checked").count() == 0
    assert page.locator("[name=reason]").input_value() == ""
    assert not page.locator("[name=flagged]").is_checked()


def test_a_draft_is_of_one_project(store, enter, browser, tmp_path, accounts):
    """Numbers of items begin at 1 in every project, also in the next one at the same address."""
    store.add_items(pairs(1))
    page = enter()
    press(page, "1")
    key = page.evaluate("JSON.parse(localStorage.getItem('preferl-draft')).item")
    assert key == f"{store.project_id()}:{accounts.named('Ann').id}:1"
    page.evaluate(
        "(key) => localStorage.setItem('preferl-draft', "
        "localStorage.getItem('preferl-draft').replace(key, 'another'))",
        store.project_id(),
    )
    page.reload()
    assert page.locator("[name=choice]:checked").count() == 0


def test_a_draft_of_a_ranking_outlives_a_reload(store, enter):
    store.add_items(triples(1))
    page = enter()
    press(page, "3", "1")
    page.reload()
    assert [page.locator("select").nth(i).input_value() for i in range(3)] == ["3", "1", ""]


def test_a_person_goes_on_at_the_same_item(store, enter):
    plain(store)
    store.add_items(pairs(9))
    shown = texts(enter())
    assert texts(enter()) == shown
    assert texts(enter("Bob")) != shown


def test_two_presses_are_one_judgement(store, enter):
    plain(store)
    store.add_items(pairs(3))
    page = enter()
    press(page, "1")
    page.get_by_role("button", name="Submit").dblclick()
    page.wait_for_load_state()
    page.wait_for_timeout(300)
    assert len(judgements(store)) == 1


def test_the_page_says_that_it_is_open(store, enter, clock):
    plain(store, lease_seconds=3)
    store.add_items(pairs(1))
    page = enter()
    with page.expect_response(re.compile("/renew$")) as answer:
        page.wait_for_timeout(1500)
    assert answer.value.status == 204


def test_everything_works_without_javascript(store, enter):
    plain(store)
    store.add_items(pairs(1))
    page = enter(java_script_enabled=False)
    page.check("[value='-2']", force=True)
    page.fill("[name=reason]", "plain")
    page.get_by_role("button", name="Submit").click()
    assert judgements(store)[0].reason == "plain"
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Skip").click()
    assert judgements(store)[0].ranks is None
    store.add_items(triples(1))
    page.get_by_text("look again").click()
    for i, place in enumerate(("1", "2", "2")):
        page.locator("select").nth(i).select_option(place)
    page.get_by_role("button", name="Submit").click()
    assert sorted(judgements(store)[-1].ranks) == [1, 2, 2]


def test_signing_in_by_password(store, accounts, browser, address):
    store.add_items(pairs(1))
    accounts.set_password(accounts.add("Ann").id, PASSWORD)
    page = browser.new_page()
    page.goto(address)
    expect(page.get_by_label("Name")).to_be_focused()  # a busy machine focuses some time after the load
    page.keyboard.type("Ann")
    press(page, "Tab")
    page.keyboard.type(PASSWORD)
    submitted(page, "Enter")
    page.get_by_role("button", name="I agree").click()
    assert len(texts(page)) == 2
    page.get_by_role("button", name="Sign out").click()
    assert "Sign in" in page.inner_text("h1")
    page.close()


# -------------------------------------------------------------------------------------------- accessibility


LOOKS = {"light": {"color_scheme": "light"}, "dark": {"color_scheme": "dark"}, "phone": {"viewport": PHONE}}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_axe_finds_nothing_serious(store, accounts, enter, address, look):
    from axe_playwright_python.sync_playwright import Axe

    rules = "# Rules\n\n- [x](http://localhost/)\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    plain(store, overlap=2, guidelines=rules)
    store.add_items(pairs(2))
    bob, *_ = people(accounts, 1)
    judge_all(store, bob, lambda claim: Answer(ranks=[2, 1], strength=-1, flagged=True, reason="odd"))
    sim = accounts.add("sim", kind="sim")
    store.record(sim.id, [(1, FIRST)])
    page = enter("Lea", role="lead", **look)

    def check(what):
        found = Axe().run(page)
        serious = [v for v in found.response["violations"] if v["impact"] in ("serious", "critical")]
        assert not serious, (what, json.dumps(serious, indent=1)[:3000])

    press(page, "2", "g")
    check("pair")
    press(page, "?")
    check("help")
    press(page, "Escape")
    page.wait_for_function("!document.querySelector('dialog[open]')")  # no key counts before it is closed
    submitted(page, "Enter")
    submitted(page, "5", "Enter")
    check("done")
    store.add_items(triples(1))
    page.goto(f"{address}/label")
    press(page, "2")
    check("ranking")
    for path in ("/dashboard", "/consent", "/nowhere"):
        page.goto(address + path)
        check(path)
    page.goto(f"{address}/link/{accounts.link(bob)}")
    check("link")
    page.context.clear_cookies()
    page.goto(f"{address}/login")
    check("login")


# --------------------------------------------------------------------------------------------- hostile texts


def test_there_are_enough_payloads():
    assert len(set(PAYLOADS)) >= 100


@pytest.mark.parametrize("markdown", [False, True], ids=["plain text", "markdown"])
def test_no_text_of_an_item_runs(store, accounts, enter, markdown):
    plain(store, markdown=markdown)
    distinct = list(dict.fromkeys(PAYLOADS))
    for i in range(0, len(distinct), 8):
        few = distinct[i : i + 8]
        # As text, as a turn of a dialogue, in a ranking and in a pair.
        prompt = few[0] if i % 16 else [{"role": "user", "content": few[0]}]
        store.add_items(
            [Comparison(prompt, few, [1] * len(few)), Comparison("\n".join(few), few[:2], [1, 1])]
        )
    page = enter()
    page.context.add_init_script(WATCH)
    page.reload()
    seen = []
    while page.locator("#judgement").count():
        found = page.locator(".response").all_inner_texts()
        assert page.evaluate("window.ran") == [], found
        assert page.evaluate(FOREIGN) == [], found
        seen += found
        submitted(page, "s")
    assert len(seen) >= len(distinct), page.inner_text("main")


def test_no_name_reason_title_or_guideline_runs(store, accounts, enter, address):
    store.add_items(pairs(len(PAYLOADS)))
    everything = "\n\n".join(PAYLOADS)
    plain(store, title=everything, guidelines=everything, consent=everything)
    usable = [f"{i} {payload}"[:60] for i, payload in enumerate(PAYLOADS) if payload.isprintable()]
    names = [accounts.add(name).id for name in usable]
    for i, payload in enumerate(PAYLOADS):
        person = names[i % len(names)]
        claim = store.claim(person)
        answer = Answer(ranks=[1, 2], strength=1, flagged=True, reason=payload)
        store.submit(person, claim.id, nonce(i), answer)
    page = enter("Lea", role="lead")
    page.context.add_init_script(WATCH)
    for path in ("/label", "/dashboard", "/consent"):
        page.goto(address + path)
        assert page.evaluate("window.ran") == [], path
        assert page.evaluate(FOREIGN) == [], path
    for payload in PAYLOADS[::4]:
        page.goto(f"{address}/nowhere/{payload.replace('/', '')}")
        assert page.evaluate("window.ran") == [], payload
        assert page.evaluate(FOREIGN) == [], payload
    page.goto(f"{address}/link/{accounts.link(names[0])}")
    assert page.evaluate("window.ran") == []
