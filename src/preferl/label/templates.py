"""What the pages look like: the templates in ``pages/``, filled."""

import secrets
from collections.abc import Callable
from typing import Any

from fastapi import Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from preferl import __version__
from preferl.label.accounts import Account
from preferl.label.answers import MOST_REASON
from preferl.label.store import View
from preferl.label.text import markdown_html

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


class Pages:
    """The templates with what all of them show."""

    def __init__(self, project_id: str):
        self.project_id = project_id
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
