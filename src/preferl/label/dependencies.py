"""What a route has at hand: the service that it belongs to, and who is asking.

A route names these as the types of its arguments (``account: Lead``), and FastAPI fills them in or stops
there: nobody is signed in, the terms come first, or the page is for leads.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.responses import RedirectResponse

from preferl.label.accounts import Account, Accounts
from preferl.label.answers import Refused
from preferl.label.store import Store
from preferl.label.templates import Pages


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


@dataclass(frozen=True)
class Service:
    """One project's service: what all of its routes work with."""

    project_id: str
    store: Store
    accounts: Accounts
    pages: Pages
    options: Options


class SignInNeeded(Exception):
    """Nobody is signed in."""


class ConsentNeeded(Exception):
    """First use: the terms come before the items."""


async def service_of(request: Request) -> Service:
    # A coroutine, as nothing here waits: others are run in a thread.
    return request.app.state.service


TheService = Annotated[Service, Depends(service_of)]


def signed_in(request: Request, service: TheService) -> Account:
    """Whose session this is; it ends with the account's other sessions."""
    session = request.session
    ours = session.get("project") == service.project_id
    account = service.accounts.find(session.get("id", 0)) if ours else None
    if account is None or account.session != session.get("session"):
        raise SignInNeeded
    return account


SignedIn = Annotated[Account, Depends(signed_in)]


def annotator(account: SignedIn) -> Account:
    if not account.consented:
        raise ConsentNeeded
    return account


def lead(account: SignedIn) -> Account:
    if not account.leads:
        raise Refused("only leads see this page", 403)
    return account


Annotator = Annotated[Account, Depends(annotator)]
Lead = Annotated[Account, Depends(lead)]


def see_other(path: str) -> Response:
    """A post is answered by a redirection: loading the page again posts nothing again."""
    return RedirectResponse(path, status_code=303)
