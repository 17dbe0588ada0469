"""The pages: sign-in, consent, comparing, ranking, and the lead's dashboard.

Plain forms that work without JavaScript; ``static/label.js`` adds keys, dragging, drafts and the sign of
life that keeps an item's lease.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Form, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import StringConstraints
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preferl import __version__
from preferl.data.records import DataError
from preferl.label import export, statistics
from preferl.label.accounts import Account, Accounts, TooManyAttempts
from preferl.label.answers import MOST_REASON, Answer, Refused
from preferl.label.store import Store, View
from preferl.label.text import markdown_html
from preferl.runs.errors import UsageError

HERE = Path(__file__).parent
MOST_BYTES = 64 * 1024  # of a posted form
SESSION_SECONDS = 14 * 24 * 3600
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
# What each key of the scale means, for the response on the left (A) and on the right (B).
SCALE = (
    (3, "A much better"),
    (2, "A better"),
    (1, "A slightly better"),
    (0, "Tie"),
    (-1, "B slightly better"),
    (-2, "B better"),
    (-3, "B much better"),
)
BIGGEST_ID = 2**31 - 1
Nonce = Annotated[str, Form(pattern=r"^[\w-]{8,64}$")]
DEFAULT_CONSENT = (
    "You will compare texts that a computer program wrote. Some may be wrong, rude or unpleasant; you can "
    "skip any of them and stop at any time. Your answers, the time they take and your name in this project "
    "are stored, and are used to train and to study language models."
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the pages are served.

    ``public``: other machines can reach them, so that everybody needs a password.
    ``hosts``: names under which browsers may ask for the pages (a defence against DNS rebinding).
    """

    secret: str
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    public: bool = False
    https: bool = False


class SignInNeeded(Exception):
    """Nobody is signed in."""


class ConsentNeeded(Exception):
    """First use: the terms come before the items."""


def create_app(store: Store, accounts: Accounts, options: Options) -> FastAPI:
    """The application over one project's database."""
    app = FastAPI(title="preferl label", version=__version__, docs_url=None, redoc_url=None)
    pages, project_id = Pages(store), store.project_id()

    def signed_in(request: Request) -> Account:
        session = request.session
        account = accounts.find(session.get("id", 0)) if session.get("project") == project_id else None
        if account is None or account.session != session.get("session"):
            raise SignInNeeded
        return account

    def annotator(account: Annotated[Account, Depends(signed_in)]) -> Account:
        if not account.consented:
            raise ConsentNeeded
        return account

    def lead(account: Annotated[Account, Depends(signed_in)]) -> Account:
        if not account.leads:
            raise Refused("only leads see this page", 403)
        return account

    def begin_session(request: Request, account: Account) -> Response:
        # The account is read again: a new password has ended the sessions before it.
        account = accounts.find(account.id) or account
        request.session.clear()
        request.session.update({"project": project_id, "id": account.id, "session": account.session})
        return see("/dashboard" if account.leads else "/label")

    # ----------------------------------------------------------------------------------------------- sign-in

    @app.get("/", response_class=RedirectResponse, status_code=303)
    def root() -> Response:
        return see("/label")

    @app.get("/health", response_class=PlainTextResponse)
    def health() -> str:
        """Whether the database answers."""
        store.project()
        return "ok"

    @app.get("/login", response_class=HTMLResponse)
    def login_page(request: Request) -> Response:
        return pages.show("login.html", None, error="")

    @app.post("/login", response_class=HTMLResponse)
    def login(
        request: Request,
        name: Annotated[str, Form(max_length=60)],
        password: Annotated[str, Form(max_length=1000)],
    ) -> Response:
        try:
            account = accounts.sign_in(name, password, request.client.host if request.client else "")
        except TooManyAttempts:
            wait = "Too many wrong passwords for this name; try again in five minutes."
            return pages.show("login.html", None, status=429, error=wait)
        if account is None:
            return pages.show("login.html", None, status=401, error="Name and password do not fit.")
        return begin_session(request, account)

    @app.get("/link/{token}", response_class=HTMLResponse)
    def link_page(token: Annotated[str, PathParameter(max_length=64)]) -> Response:
        """Asks before it signs in: programs that look at links must not use them up."""
        owner = accounts.owner_of(token)
        if owner is None:
            raise Refused("this link was used before, is too old or never was; ask for a new one", 404)
        needed = options.public and not owner.has_password
        return pages.show("link.html", None, owner=owner, token=token, password_needed=needed, error="")

    @app.post("/link/{token}", response_class=HTMLResponse)
    def use_link(
        request: Request,
        token: Annotated[str, PathParameter(max_length=64)],
        password: Annotated[str, Form(max_length=1000)] = "",
    ) -> Response:
        owner = accounts.owner_of(token)
        if owner is not None and options.public and not owner.has_password:
            try:
                accounts.set_password(owner.id, password)
            except UsageError as error:
                return pages.show(
                    "link.html",
                    None,
                    status=422,
                    owner=owner,
                    token=token,
                    password_needed=True,
                    error=f"{str(error).capitalize()}.",
                )
        account = accounts.use_link(token)
        if account is None:
            raise Refused("this link was used before, is too old or never was; ask for a new one", 404)
        return begin_session(request, account)

    @app.post("/logout", response_class=RedirectResponse, status_code=303)
    def logout(request: Request, account: Annotated[Account, Depends(signed_in)]) -> Response:
        """Ends this account's sessions everywhere: a copied cookie is worth nothing any more."""
        accounts.end_sessions(account.id)
        request.session.clear()
        return see("/login")

    @app.get("/consent", response_class=HTMLResponse)
    def consent_page(account: Annotated[Account, Depends(signed_in)]) -> Response:
        text = store.project().consent or DEFAULT_CONSENT
        return pages.show("consent.html", account, consent=markdown_html(text))

    @app.post("/consent", response_class=RedirectResponse, status_code=303)
    def consent(account: Annotated[Account, Depends(signed_in)]) -> Response:
        accounts.consent(account.id)
        return see("/label")

    # -------------------------------------------------------------------------------------------- annotating

    @app.get("/label", response_class=HTMLResponse)
    def label(account: Annotated[Account, Depends(annotator)]) -> Response:
        """The open item, or the next one."""
        return pages.view(account, store.view(account.id))

    @app.post("/judgements", response_class=HTMLResponse)
    def judge(
        account: Annotated[Account, Depends(annotator)],
        assignment: Annotated[int, Form(ge=1, le=BIGGEST_ID)],
        nonce: Nonce,
        action: Annotated[str, Form(pattern="^(judge|skip)$")] = "judge",
        choice: Annotated[str, Form(pattern="^(-?[0-3]|bad|)$")] = "",
        rank: Annotated[list[Annotated[str, StringConstraints(pattern="^[1-9]?$")]] | None, Form()] = None,
        flagged: Annotated[bool, Form()] = False,
        reason: Annotated[str, Form(max_length=4 * MOST_REASON)] = "",
    ) -> Response:
        """A judgement or a skip of the caller's own item; the same nonce again changes nothing."""
        answer = answer_of(action, choice, rank, flagged, reason)
        store.submit(account.id, assignment, nonce, answer)
        return see("/label")

    @app.post("/undo", response_class=RedirectResponse, status_code=303)
    def undo(account: Annotated[Account, Depends(annotator)], nonce: Nonce) -> Response:
        """Takes back the caller's last answer."""
        store.undo(account.id, nonce)
        return see("/label")

    @app.post("/assignments/{assignment}/renew", status_code=204)
    def renew(
        account: Annotated[Account, Depends(annotator)],
        assignment: Annotated[int, PathParameter(ge=1, le=BIGGEST_ID)],
    ) -> Response:
        """The page is still open: the item stays with the caller."""
        store.renew(account.id, assignment)
        return Response(status_code=204)

    # ----------------------------------------------------------------------------------------------- leading

    @app.get("/dashboard", response_class=HTMLResponse)
    def dashboard(account: Annotated[Account, Depends(lead)]) -> Response:
        found = statistics.dashboard(store)
        choices = {"formats": export.FORMATS, "aggregates": export.AGGREGATES}
        return pages.show("dashboard.html", account, **found, **choices)

    @app.get("/export/{name}")
    def download(
        account: Annotated[Account, Depends(lead)],
        name: Annotated[str, PathParameter(pattern=one_of(export.FORMATS))],
        aggregate: Annotated[str, Query(pattern=one_of(export.AGGREGATES))] = "none",
        kind: Annotated[str, Query(pattern=one_of(export.KINDS))] = "human",
    ) -> Response:
        """The judgements as a file."""
        body, media, ending = export.as_bytes(store, name, aggregate, kind)
        return Response(
            body,
            media_type=media,
            headers={"content-disposition": f'attachment; filename="judgements.{ending}"'},
        )

    # ------------------------------------------------------------------------------------- errors and layers

    @app.exception_handler(SignInNeeded)
    def sign_in_first(request: Request, error: Exception) -> Response:
        return see("/login") if request.method == "GET" else pages.error(401, "Sign in first.")

    @app.exception_handler(ConsentNeeded)
    def consent_first(request: Request, error: Exception) -> Response:
        return see("/consent")

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> Response:
        return pages.error(error.status, str(error))

    @app.exception_handler(DataError)
    @app.exception_handler(UsageError)
    def impossible(request: Request, error: Exception) -> Response:
        return pages.error(409, str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        fields = sorted({str(entry["loc"][-1]) for entry in error.errors()})
        return pages.error(422, f"The request was not understood: {', '.join(fields)}.")

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> Response:
        return pages.error(error.status_code, str(error.detail))

    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.add_middleware(
        SessionMiddleware,
        secret_key=options.secret,
        # Browsers send cookies to every port of a host: each project has its own.
        session_cookie=f"preferl_{project_id}",
        max_age=SESSION_SECONDS,
        same_site="lax",
        https_only=options.https,
    )
    app.add_middleware(Guard)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(options.hosts), www_redirect=False)
    return app


def one_of(words: tuple[str, ...]) -> str:
    return f"^({'|'.join(words)})$"


def see(path: str) -> Response:
    return RedirectResponse(path, status_code=303)


def answer_of(action: str, choice: str, rank: list[str] | None, flagged: bool, reason: str) -> Answer:
    """A form as an answer.

    Raises:
        Refused: nothing was chosen.
    """
    said: dict[str, Any] = {"flagged": flagged, "reason": reason}
    if action == "skip":
        return Answer(**said)
    if rank and choice == "bad":
        return Answer(ranks=[1] * len(rank), both_bad=True, **said)
    if rank:
        if not all(rank):
            raise Refused("give every response a place, or skip", 422)
        return Answer(ranks=[int(place) for place in rank], **said)
    if not choice:
        raise Refused("choose one of the seven strengths, or skip", 422)
    if choice == "bad":
        return Answer(ranks=[1, 1], strength=0, both_bad=True, **said)
    strength = int(choice)
    return Answer(ranks=[1 + (strength < 0), 1 + (strength > 0)], strength=strength, **said)


class Pages:
    """The templates with what all of them show."""

    def __init__(self, store: Store):
        self.project_id = store.project_id()
        self.environment = Environment(
            loader=PackageLoader("preferl.label", "pages"), autoescape=True, undefined=StrictUndefined
        )
        self.environment.filters["percent"] = lambda share: f"{100 * share:.0f} %"

    def show(self, name: str, account: Account | None, status: int = 200, **values: Any) -> Response:
        text = self.environment.get_template(name).render(account=account, version=__version__, **values)
        return HTMLResponse(text, status_code=status, headers={"cache-control": "no-store"})

    def error(self, status: int, reason: str) -> Response:
        reason = reason[:1].upper() + reason[1:]
        return self.show("error.html", None, status=status, code=status, reason=reason)

    def view(self, account: Account, view: View) -> Response:
        project, claim = view.project, view.claim
        shared = {
            "project": project,
            "progress": view.progress,
            "guidelines": markdown_html(project.guidelines) if project.guidelines else "",
            "nonce": secrets.token_urlsafe(16),
        }
        if claim is None:
            return self.show("done.html", account, **shared)
        messages = [{"role": "", "content": claim.prompt}] if isinstance(claim.prompt, str) else claim.prompt
        render: Callable[[str], Any] = markdown_html if project.markdown else str
        return self.show(
            "pair.html" if len(claim.shown) == 2 else "rank.html",
            account,
            claim=claim,
            messages=messages,
            responses=[render(text) for text in claim.shown],
            scale=SCALE,
            beat=max(1, int(project.lease_seconds / 3)),
            draft=f"{self.project_id}:{account.id}:{claim.id}",
            most_reason=MOST_REASON,
            **shared,
        )


class Guard:
    """Refuses posts from other sites and large bodies, and puts the security headers on every answer.

    A browser says where a request comes from (``Sec-Fetch-Site``, ``Origin``); a request that says neither
    comes from a program, which holds no one's cookies.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = None
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            length = headers.get("content-length", "0")
            if cross_site(headers):
                refusal = PlainTextResponse("Requests from other sites are refused.", 403)
            elif "transfer-encoding" in headers or not length.isdigit() or int(length) > MOST_BYTES:
                refusal = PlainTextResponse(f"At most {MOST_BYTES} bytes, of a stated length.", 413)
        await (refusal or self.app)(scope, receive, send_guarded)


def cross_site(headers: Headers) -> bool:
    """Whether a browser says that a request comes from elsewhere."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site not in ("same-origin", "none")
    try:
        return origin is not None and urlsplit(origin).netloc != headers.get("host")
    except ValueError:  # no address that a browser could send
        return True
