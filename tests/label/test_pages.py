"""The pages over HTTP: who may do what, forms, exports, and what is refused."""

import csv
import io
import json
import re
import stat

import pytest
from argon2 import PasswordHasher
from starlette.testclient import TestClient

from preferl.data.records import Comparison
from preferl.label.accounts import MOST_ATTEMPTS, Accounts, TooManyAttempts, install_secret
from preferl.label.answers import Answer
from preferl.label.app import create_app
from preferl.label.dependencies import Options
from preferl.label.schema import open_database
from preferl.label.security import HEADERS
from preferl.label.store import Store
from preferl.runs.errors import UsageError
from projects import PASSWORD, judge_all, judgements, nonce, pairs, plain, triples


@pytest.fixture
def url(tmp_path):
    """One kind of database is enough here: the store's tests run on both."""
    return str(tmp_path / "label.sqlite")


@pytest.fixture
def visit(store, accounts):
    """Opens browsers: ``visit()``, ``visit("Ann")``, ``visit("Lea", role="lead")``."""

    def open_browser(name=None, role="annotator", consent=True, **options):
        app = create_app(store, accounts, Options(secret="s" * 32, hosts=("localhost",), **options))
        client = TestClient(app, base_url="http://localhost", follow_redirects=False)
        if name:
            known = {account.name: account for account in accounts.all()}
            account = known.get(name) or accounts.add(name, role)
            accounts.set_password(account.id, PASSWORD)
            answer = client.post("/login", data={"name": name, "password": PASSWORD})
            assert answer.status_code == 303
            if consent:
                assert client.post("/consent").status_code == 303
        return client

    return open_browser


def hidden(text, name):
    return re.search(rf'name="{name}" value="([^"]*)"', text)[1]


def form_of(client, **said):
    page = client.get("/label").text
    return {"assignment": hidden(page, "assignment"), "nonce": hidden(page, "nonce"), **said}


def shown(client):
    """Prompt and responses on the page."""
    page = client.get("/label").text
    return re.findall(r'<div class="text" dir="auto">(.*?)</div>', page, re.DOTALL)


# --------------------------------------------------------------------------------------------------- sign-in


PRIVATE = [("GET", "/label"), ("GET", "/dashboard"), ("GET", "/export/csv"), ("GET", "/consent")]
ACTIONS = [("POST", "/judgements"), ("POST", "/undo"), ("POST", "/consent"), ("POST", "/assignments/1/renew")]


@pytest.mark.parametrize(("method", "path"), PRIVATE + ACTIONS)
def test_nothing_is_shown_or_done_without_signing_in(visit, store, method, path):
    store.add_items(pairs(1))
    data = {"assignment": 1, "nonce": "n" * 16, "choice": "2"} if method == "POST" else None
    answer = visit().request(method, path, data=data)
    if method == "GET":
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    else:
        assert answer.status_code == 401
    assert judgements(store) == []


def test_name_and_password_sign_in(visit, accounts):
    accounts.set_password(accounts.add("Ann").id, PASSWORD)
    client = visit()
    for name, password in (("Ann", "wrong password"), ("Bob", PASSWORD), ("ann", PASSWORD), ("Ann", "")):
        answer = client.post("/login", data={"name": name, "password": password})
        assert answer.status_code in (401, 422)
        assert client.get("/label").headers["location"] == "/login"
    assert client.post("/login", data={"name": "Ann", "password": PASSWORD}).headers["location"] == "/label"
    assert client.get("/label").headers["location"] == "/consent"
    assert client.post("/logout").status_code == 303
    assert client.get("/label").headers["location"] == "/login"


def test_passwords_are_stored_as_argon2(store, accounts):
    accounts.set_password(accounts.add("Ann").id, PASSWORD)
    with store.database.read() as connection:
        (stored,) = connection.exec_driver_sql("SELECT password_hash FROM annotators").scalars()
    assert stored.startswith("$argon2id$")
    with pytest.raises(UsageError, match="10 to"):
        accounts.set_password(1, "short")


def test_guessing_passwords_has_an_end(visit, accounts, clock):
    accounts.set_password(accounts.add("Ann").id, PASSWORD)
    client = visit()
    for _ in range(MOST_ATTEMPTS):
        assert client.post("/login", data={"name": "Ann", "password": "a wrong one"}).status_code == 401
    for name in ("Ann", "Ann ", " Ann", "Ann\u00a0"):
        assert client.post("/login", data={"name": name, "password": PASSWORD}).status_code in (401, 429)
        assert client.get("/label").headers["location"] == "/login"
    # It is whoever guesses that waits, not Ann at another machine.
    assert accounts.sign_in("Ann", PASSWORD, "10.0.0.7")
    clock.now += 301
    assert client.post("/login", data={"name": "Ann", "password": PASSWORD}).status_code == 303


def test_names_that_are_invented_fill_no_memory(accounts, monkeypatch):
    monkeypatch.setattr("preferl.label.accounts.MOST_REMEMBERED", 20)
    accounts.hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    accounts.nobody = accounts.hasher.hash("somebody else's")
    for i in range(20):
        assert accounts.sign_in(f"nobody {i}", "x") is None
    with pytest.raises(TooManyAttempts):
        accounts.sign_in("one more", "x")
    assert len(accounts.attempts) == 20
    accounts.clock.now += 301
    assert accounts.sign_in("one more", "x") is None
    assert len(accounts.attempts) == 1


def test_a_session_is_of_one_project(visit, store, tmp_path, clock):
    """Browsers send cookies to every port of a host, and people of two projects have the same numbers."""
    client = visit("Ann")
    cookie = client.cookies[f"preferl_{store.project_id()}"]
    other = Store(open_database(str(tmp_path / "other.sqlite")), clock)
    accounts = Accounts(other.database, clock)
    lead = accounts.add("Lea", "lead")
    accounts.set_password(lead.id, PASSWORD)
    app = create_app(other, accounts, Options(secret="s" * 32, hosts=("localhost",)))
    stranger = TestClient(app, base_url="http://localhost", follow_redirects=False)
    for name in (f"preferl_{store.project_id()}", f"preferl_{other.project_id()}"):
        stranger.cookies.set(name, cookie)
    assert stranger.get("/dashboard").headers["location"] == "/login"
    other.database.close()


def test_signing_out_ends_copied_cookies_too(visit, store):
    client, thief = visit("Ann"), visit()
    name = f"preferl_{store.project_id()}"
    thief.cookies.set(name, client.cookies[name])
    assert thief.get("/label").status_code == 200
    client.post("/logout")
    assert thief.get("/label").headers["location"] == "/login"


def test_odd_characters_are_no_server_error(visit, store):
    store.add_items(pairs(2))
    client = visit("Ann")
    assert client.post("/login", data={"name": "a\0b", "password": PASSWORD}).status_code == 401
    form = form_of(client, choice="1", reason="a\0b\r\n" + "x" * 1997)
    assert client.post("/judgements", data=form | {"nonce": "\0" * 12}).status_code == 422
    assert client.post("/judgements", data=form).status_code == 303
    assert judgements(store)[0].reason == "ab\n" + "x" * 1997
    assert client.post("/undo", data={"nonce": "u" * 12}, headers={"origin": "http://["}).status_code == 403


def test_a_link_signs_in_once_and_only_when_asked(visit, accounts, clock):
    ann = accounts.add("Ann")
    token = accounts.link(ann.id)
    for _ in range(3):  # programs that look at links do not use them up
        page = visit().get(f"/link/{token}")
        assert (page.status_code, "Welcome, Ann" in page.text) == (200, True)
    client = visit()
    assert client.post(f"/link/{token}").headers["location"] == "/label"
    assert client.get("/label").headers["location"] == "/consent"
    assert visit().post(f"/link/{token}").status_code == 404
    assert visit().get(f"/link/{token}").status_code == 404
    late = accounts.link(ann.id)
    clock.now += 25 * 3600
    assert visit().post(f"/link/{late}").status_code == 404


def test_where_others_can_reach_the_pages_a_link_asks_for_a_password(visit, accounts):
    ann = accounts.add("Ann")
    token = accounts.link(ann.id)
    client = visit(public=True)
    assert 'name="password"' in client.get(f"/link/{token}").text
    short = client.post(f"/link/{token}", data={"password": "short"})
    assert (short.status_code, "10 to" in short.text) == (422, True)
    assert client.post(f"/link/{token}").status_code == 422
    assert client.post(f"/link/{token}", data={"password": PASSWORD}).status_code == 303
    assert client.get("/label").headers["location"] == "/consent"
    assert accounts.sign_in("Ann", PASSWORD)


def test_a_new_password_ends_open_sessions(visit, accounts):
    client = visit("Ann")
    assert client.get("/label").status_code == 200
    accounts.set_password(accounts.named("Ann").id, PASSWORD + "!")
    assert client.get("/label").headers["location"] == "/login"


def test_sessions_cannot_be_forged(visit, store, accounts):
    client = visit("Ann")
    cookie = client.cookies[f"preferl_{store.project_id()}"]
    assert "HttpOnly" in visit("Ann").post("/consent").headers.get("set-cookie", "HttpOnly")
    other = visit()
    payload, rest = cookie.split(".", 1)
    for forged in (
        payload[:-1] + ("A" if payload[-1] != "A" else "B") + "." + rest,
        payload,
        "",
        cookie[:-2],
    ):
        other.cookies.set(f"preferl_{store.project_id()}", forged)
        assert other.get("/label").headers["location"] == "/login"
    foreign = create_app(store, accounts, Options(secret="t" * 32, hosts=("localhost",)))
    stranger = TestClient(foreign, base_url="http://localhost", follow_redirects=False)
    stranger.cookies.set(f"preferl_{store.project_id()}", cookie)
    assert stranger.get("/label").headers["location"] == "/login"


def test_cookies_are_for_this_site_alone(visit, accounts):
    accounts.set_password(accounts.add("Ann").id, PASSWORD)
    signing_in = {"name": "Ann", "password": PASSWORD}
    cookie = visit().post("/login", data=signing_in).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie
    assert "secure" in visit(https=True).post("/login", data=signing_in).headers["set-cookie"].lower()


def test_the_secret_is_made_once_and_for_its_owner(tmp_path):
    path = tmp_path / "config" / "secret"
    secret = install_secret(path)
    assert len(secret) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert install_secret(path) == secret
    path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        install_secret(path)
    path.chmod(0o600)
    path.write_text("")
    with pytest.raises(UsageError, match="no secret"):
        install_secret(path)


def test_terms_come_before_the_first_item(visit, store):
    store.add_items(pairs(1))
    store.configure(consent="We *keep* everything.")
    client = visit("Ann", consent=False)
    assert client.get("/label").headers["location"] == "/consent"
    assert (
        client.post("/judgements", data={"assignment": 1, "nonce": "n" * 16, "choice": "1"}).headers[
            "location"
        ]
        == "/consent"
    )
    assert "We <em>keep</em> everything." in client.get("/consent").text
    client.post("/consent")
    assert client.get("/label").status_code == 200
    assert visit("Ann", consent=False).get("/label").status_code == 200


# ------------------------------------------------------------------------------------------------ annotating


def test_a_pair_is_judged_by_its_form(visit, store):
    plain(store)
    store.add_items(pairs(3))
    client = visit("Ann")
    for choice, better in (("3", 0), ("-1", 1), ("0", None)):
        prompt, *texts = shown(client)
        form = form_of(client, choice=choice, reason="because", flagged="true")
        assert client.post("/judgements", data=form).headers["location"] == "/label"
        found = judgements(store)[-1]
        assert (found.reason, found.flagged) == ("because", True)
        item = next(item for item in pairs(3) if item.prompt == prompt)
        if better is None:
            assert found.ranks == [1, 1]
        else:
            assert item.responses[found.ranks.index(1)] == texts[better]
            assert abs(found.strength) == abs(int(choice))
    assert "Nothing left for you" in client.get("/label").text


def test_undo_is_there_after_skips_alone(visit, store):
    store.add_items(pairs(1))
    client = visit("Ann")
    client.post("/judgements", data=form_of(client, action="skip"))
    page = client.get("/label").text
    assert "Nothing left for you" in page
    assert not re.search(r'data-key="u"\s+disabled', page)


def test_both_bad_skip_and_undo_by_form(visit, store):
    plain(store)
    store.add_items(pairs(2))
    client = visit("Ann")
    client.post("/judgements", data=form_of(client, choice="bad"))
    client.post("/judgements", data=form_of(client, action="skip"))
    assert [(j.both_bad, j.ranks) for j in judgements(store)] == [(True, [1, 1]), (False, None)]
    page = client.get("/label").text
    client.post("/undo", data={"nonce": hidden(page, "nonce")})
    assert [j.ranks for j in judgements(store)] == [[1, 1]]
    assert 'value="bad" data-key="0"' in client.get("/label").text


def test_a_ranking_is_judged_by_its_form(visit, store):
    store.add_items(triples(1))
    client = visit("Ann")
    texts = shown(client)[1:]
    client.post("/judgements", data=form_of(client, rank=["2", "1", "2"]))
    (found,) = judgements(store)
    assert triples(1)[0].responses[found.ranks.index(1)] == texts[1]
    assert sorted(found.ranks) == [1, 2, 2]


def test_the_page_starts_from_the_answer_that_was_taken_back(visit, store):
    store.add_items(pairs(1))
    client = visit("Ann")
    client.post("/judgements", data=form_of(client, choice="-2", reason="old <reason>"))
    client.post("/undo", data={"nonce": "u" * 16})
    page = client.get("/label").text
    assert re.search(r'value="-2"[^>]*checked', page, re.DOTALL)
    assert "old &lt;reason&gt;" in page
    assert len(re.findall(r'type="radio"[^>]*\schecked', page, re.DOTALL)) == 1


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"choice": "4"},
        {"choice": "x"},
        {"rank": ["1"]},
        {"rank": ["1", "x"]},
        {"rank": ["1", ""]},
        {"action": "destroy"},
        {"choice": "1", "reason": "x" * 2001},
        {"choice": "1", "reason": "x" * 9000},
        {"choice": "1", "nonce": "short"},
        {"choice": "1", "assignment": "x"},
        {"choice": "1", "assignment": str(2**40)},
    ],
)
def test_forms_that_make_no_sense_are_refused_in_words(visit, store, said):
    store.add_items(pairs(1))
    client = visit("Ann")
    answer = client.post("/judgements", data=form_of(client) | said)
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert judgements(store) == []


def test_one_annotator_cannot_touch_or_see_another_s(visit, store):
    plain(store)
    store.add_items(pairs(4))
    ann, bob = visit("Ann"), visit("Bob")
    form = form_of(ann, choice="1", reason="a secret of Ann's")
    assert bob.post("/judgements", data=form).status_code == 404
    assert bob.post(f"/assignments/{form['assignment']}/renew").status_code == 404
    ann.post("/judgements", data=form)
    assert bob.post("/undo", data={"nonce": "u" * 16}).status_code == 303
    (found,) = judgements(store)
    assert found.annotator == "Ann"
    pages = [bob.get(path).text for path in ("/label", "/dashboard", "/export/csv")]
    assert not any("secret" in page or "Ann" in page for page in pages)


def test_only_leads_see_the_dashboard_and_exports(visit, store):
    store.add_items(pairs(1))
    for path in ("/dashboard", "/export/explicit"):
        assert visit("Ann").get(path).status_code == 403
        assert visit("Lea", role="lead").get(path).status_code == 200


def test_guidelines_are_markdown_without_danger(visit, store):
    store.add_items(pairs(1))
    store.configure(guidelines="# Rules\n\n[x](javascript:alert(1)) <b onclick=x>b</b> ![i](http://a/b.png)")
    page = visit("Ann").get("/label").text
    assert "<h1>Rules</h1>" in page
    assert 'href="javascript' not in page
    assert "<b onclick" not in page
    assert "<img" not in page


# ------------------------------------------------------------------------------------------------- defences


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
        {"origin": "http://localhost.evil.example"},
        {"origin": "http://localhost:81"},
        {"origin": "null"},
    ],
)
def test_posts_from_other_sites_are_refused(visit, store, headers):
    store.add_items(pairs(1))
    client = visit("Ann")
    form = form_of(client, choice="1")
    for path, data in (
        ("/judgements", form),
        ("/undo", {"nonce": "u" * 16}),
        ("/logout", {}),
        ("/login", {}),
    ):
        assert client.post(path, data=data, headers=headers).status_code == 403
    assert judgements(store) == []
    own = {"sec-fetch-site": "same-origin", "origin": "http://localhost"}
    assert client.post("/judgements", data=form, headers=own).status_code == 303


def test_other_host_names_are_refused(visit):
    assert visit().get("/login", headers={"host": "rebound.example"}).status_code == 400
    assert visit().get("/login", headers={"host": "localhost:8000"}).status_code == 200


def test_large_bodies_are_refused(visit):
    assert visit("Ann").post("/undo", content=b"x" * 70_000).status_code == 413
    assert visit("Ann").post("/undo", content=iter([b"x"] * 10)).status_code == 413


def test_every_answer_carries_the_policy(visit, store):
    store.add_items(pairs(1))
    client = visit("Lea", role="lead")
    paths = (
        "/login",
        "/label",
        "/dashboard",
        "/static/label.js",
        "/static/style.css",
        "/nowhere",
        "/export/csv",
    )
    answers = [client.get(path) for path in paths]
    answers += [client.post("/judgements"), client.post("/undo", headers={"origin": "http://evil.example"})]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, (answer.url, name)
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    for path in ("/login", "/label", "/dashboard"):
        page = client.get(path).text
        assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", page), path
        assert client.get(path).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd"]
)
def test_static_files_stay_in_their_folder(visit, path):
    assert visit().get(f"/static/{path}").status_code == 404


def test_what_is_not_there_is_said_in_a_page(visit):
    for path, status in (("/nowhere", 404), ("/export/nothing", 303), ("/link/unknown", 404)):
        answer = visit().get(path)
        assert answer.status_code == status
    assert "That did not work" in visit().get("/nowhere").text
    assert visit().get("/health").text == "ok"


# --------------------------------------------------------------------------------------------------- exports


def test_exports_come_in_every_layout(visit, store, accounts):
    plain(store)
    store.add_items(pairs(3))
    judge_all(store, accounts.add("Bob").id)
    client = visit("Lea", role="lead")
    keys = {
        "explicit": {"prompt", "chosen", "rejected"},
        "implicit": {"chosen", "rejected"},
        "hh": {"chosen", "rejected"},
        "ranking": {"prompt", "responses", "ranks"},
        "comparison": {"prompt", "response_a", "response_b", "z"},
    }
    for layout, needed in keys.items():
        answer = client.get(f"/export/{layout}")
        rows = [json.loads(line) for line in answer.text.splitlines()]
        assert len(rows) == 3
        assert needed <= set(rows[0])
        assert rows[0]["annotator"] == "Bob"
        assert answer.headers["content-disposition"] == 'attachment; filename="judgements.jsonl"'
    assert len(client.get("/export/ranking?aggregate=majority").text.splitlines()) == 3
    for bad in ("/export/xml", "/export/ranking?aggregate=best", "/export/ranking?kind=alien"):
        assert client.get(bad).status_code == 422


def test_what_a_layout_cannot_hold_is_said(visit, store, accounts):
    plain(store)
    store.add_items(triples(1))
    client = visit("Lea", role="lead")
    empty = client.get("/export/ranking?aggregate=dawid_skene")
    assert (empty.status_code, "no judgements" in empty.text) == (409, True)
    judge_all(store, accounts.add("Bob").id, lambda claim: Answer(ranks=[1, 2, 3]))
    answer = client.get("/export/comparison")
    assert (answer.status_code, "write rankings or pairs" in answer.text) == (409, True)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_cell_of_a_csv_is_a_formula(visit, store, accounts, start):
    danger = f'{start}HYPERLINK("http://evil.example","x")'
    store.add_items([Comparison(danger, [danger + "1", danger + "2"], [1, 1], None, {danger: danger})])
    person = accounts.add("=name").id
    claim = store.claim(person)
    store.submit(person, claim.id, nonce(1), Answer(ranks=[1, 2], strength=1, reason="x" + danger))
    text = visit("Lea", role="lead").get("/export/csv").content.decode("utf-8-sig")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) == 2
    assert len(rows[0]) == len(rows[1])
    for cell in rows[0] + rows[1]:
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")), cell


# --------------------------------------------------------------------------------------------------- fuzzing


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_no_request_breaks_the_server(visit, store, accounts):
    """schemathesis makes requests out of the OpenAPI schema, good and bad ones, signed in as a lead."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    store.add_items(pairs(30) + triples(5))
    client = visit("Lea", role="lead")
    app = create_app(store, accounts, Options(secret="s" * 32, hosts=("*",)))
    cookie = client.cookies[f"preferl_{store.project_id()}"]
    signed_in = {"Cookie": f"preferl_{store.project_id()}={cookie}"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=signed_in)
    calls = []

    @settings(
        max_examples=40, deadline=None, derandomize=True, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=schema.as_strategy())
    def check(case):
        answer = case.call(cookies={f"preferl_{store.project_id()}": cookie})
        calls.append((case.method, case.path, answer.status_code))
        assert answer.status_code < 500, (case.method, case.path, answer.text)

    check()
    assert len({path for _, path, _ in calls}) > 5
