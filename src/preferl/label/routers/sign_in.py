"""The way in: passwords, one-time links, and the terms that everybody agrees to first."""

from typing import Annotated

from fastapi import APIRouter, Form, Path, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse

from preferl.label.accounts import Account, TooManyAttempts
from preferl.label.answers import Refused
from preferl.label.dependencies import Service, SignedIn, TheService, see_other
from preferl.label.text import markdown_html
from preferl.runs.errors import UsageError

DEFAULT_CONSENT = (
    "You will compare texts that a computer program wrote. Some may be wrong, rude or unpleasant; you can "
    "skip any of them and stop at any time. Your answers, the time they take and your name in this project "
    "are stored, and are used to train and to study language models."
)
DEAD_LINK = "this link was used before, is too old or never was; ask for a new one"

router = APIRouter()


@router.get("/", response_class=RedirectResponse, status_code=303)
def root() -> Response:
    return see_other("/label")


@router.get("/health", response_class=PlainTextResponse)
def health(service: TheService) -> str:
    """Whether the database answers."""
    service.store.project()
    return "ok"


# -------------------------------------------------------------------------------------------------- passwords


@router.get("/login", response_class=HTMLResponse)
def login_page(service: TheService) -> Response:
    return service.pages.show("login.html", None, error="")


@router.post("/login", response_class=HTMLResponse)
def login(
    request: Request,
    service: TheService,
    name: Annotated[str, Form(max_length=60)],
    password: Annotated[str, Form(max_length=1000)],
) -> Response:
    try:
        address = request.client.host if request.client else ""
        account = service.accounts.sign_in(name, password, address)
    except TooManyAttempts:
        wait = "Too many wrong passwords for this name; try again in five minutes."
        return service.pages.show("login.html", None, status=429, error=wait)
    if account is None:
        return service.pages.show("login.html", None, status=401, error="Name and password do not fit.")
    return begin_session(request, service, account)


def begin_session(request: Request, service: Service, account: Account) -> Response:
    # The account is read again: a new password has ended the sessions before it.
    account = service.accounts.find(account.id) or account
    request.session.clear()
    request.session.update({"project": service.project_id, "id": account.id, "session": account.session})
    return see_other("/dashboard" if account.leads else "/label")


@router.post("/logout", response_class=RedirectResponse, status_code=303)
def logout(request: Request, service: TheService, account: SignedIn) -> Response:
    """Ends this account's sessions everywhere: a copied cookie is worth nothing any more."""
    service.accounts.end_sessions(account.id)
    request.session.clear()
    return see_other("/login")


# --------------------------------------------------------------------------------------------- one-time links


@router.get("/link/{token}", response_class=HTMLResponse)
def link_page(service: TheService, token: Annotated[str, Path(max_length=64)]) -> Response:
    """Asks before it signs in: programs that look at links must not use them up."""
    owner = service.accounts.owner_of(token)
    if owner is None:
        raise Refused(DEAD_LINK, 404)
    needed = needs_password(service, owner)
    return service.pages.show("link.html", None, owner=owner, token=token, password_needed=needed, error="")


@router.post("/link/{token}", response_class=HTMLResponse)
def use_link(
    request: Request,
    service: TheService,
    token: Annotated[str, Path(max_length=64)],
    password: Annotated[str, Form(max_length=1000)] = "",
) -> Response:
    owner = service.accounts.owner_of(token)
    if owner is not None and needs_password(service, owner):
        try:
            service.accounts.set_password(owner.id, password)
        except UsageError as error:
            reason = f"{str(error).capitalize()}."
            again = {"owner": owner, "token": token, "password_needed": True, "error": reason}
            return service.pages.show("link.html", None, status=422, **again)
    account = service.accounts.use_link(token)
    if account is None:
        raise Refused(DEAD_LINK, 404)
    return begin_session(request, service, account)


def needs_password(service: Service, owner: Account) -> bool:
    """Where others can reach the pages, nobody signs in by links alone."""
    return service.options.public and not owner.has_password


# ---------------------------------------------------------------------------------------------------- consent


@router.get("/consent", response_class=HTMLResponse)
def consent_page(service: TheService, account: SignedIn) -> Response:
    text = service.store.project().consent or DEFAULT_CONSENT
    return service.pages.show("consent.html", account, consent=markdown_html(text))


@router.post("/consent", response_class=RedirectResponse, status_code=303)
def consent(service: TheService, account: SignedIn) -> Response:
    service.accounts.consent(account.id)
    return see_other("/label")
