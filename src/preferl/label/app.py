"""The application: routes, errors as pages, and the layers around them.

Plain forms that work without JavaScript; ``static/label.js`` adds keys, dragging, drafts and the sign of
life that keeps an item's lease. What the pages do is in ``routers``, what they look like in ``templates.py``.
"""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError, TimeoutError
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles

from preferl import __version__
from preferl.data.records import DataError
from preferl.label.accounts import Accounts
from preferl.label.answers import Refused
from preferl.label.dependencies import ConsentNeeded, Options, Service, SignedIn, SignInNeeded, see_other
from preferl.label.routers import annotating, leading, sign_in
from preferl.label.security import Guard
from preferl.label.store import Store
from preferl.label.templates import Pages
from preferl.runs.errors import UsageError

HERE = Path(__file__).parent
SESSION_SECONDS = 14 * 24 * 3600


def create_app(store: Store, accounts: Accounts, options: Options) -> FastAPI:
    """The application over one project's database."""
    project_id = store.project_id()
    app = FastAPI(
        title="preferl label",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # below, for those who are signed in
        exception_handlers=ERROR_PAGES,
    )
    app.state.service = Service(project_id, store, accounts, Pages(project_id), options)
    for area in (sign_in, annotating, leading):
        app.include_router(area.router)

    @app.get("/openapi.json", include_in_schema=False)
    def description(account: SignedIn) -> dict[str, Any]:
        """What the pages take, for programs."""
        return app.openapi()

    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    # A request passes through the layers from the last to the first.
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


# -------------------------------------------------------------------------------------------- errors as pages


def error_page(request: Request, status: int, reason: str) -> Response:
    return request.app.state.service.pages.error(status, reason)


def sign_in_first(request: Request, error: Exception) -> Response:
    return see_other("/login") if request.method == "GET" else error_page(request, 401, "Sign in first.")


def consent_first(request: Request, error: Exception) -> Response:
    return see_other("/consent")


def refused(request: Request, error: Refused) -> Response:
    return error_page(request, error.status, str(error))


def impossible(request: Request, error: Exception) -> Response:
    return error_page(request, 409, str(error))


def invalid(request: Request, error: RequestValidationError) -> Response:
    fields = sorted({str(entry["loc"][-1]) for entry in error.errors()})
    return error_page(request, 422, f"The request was not understood: {', '.join(fields)}.")


def http_error(request: Request, error: HTTPException) -> Response:
    return error_page(request, error.status_code, str(error.detail))


def away(request: Request, error: Exception) -> Response:
    return error_page(
        request,
        503,
        "The database does not answer just now, and this request stored nothing. Please try again in a "
        "minute; what was stored before is safe.",
    )


ERROR_PAGES = {
    DBAPIError: away,
    TimeoutError: away,
    SignInNeeded: sign_in_first,
    ConsentNeeded: consent_first,
    Refused: refused,
    DataError: impossible,
    UsageError: impossible,
    RequestValidationError: invalid,
    HTTPException: http_error,
}
