"""Comparing and ranking: the open item, an answer to it, and taking the answer back."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Path, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import StringConstraints

from preferl.label.answers import MOST_REASON, Answer, Refused
from preferl.label.dependencies import Annotator, TheService, see_other

BIGGEST_ID = 2**31 - 1
Nonce = Annotated[str, Form(pattern=r"^[\w-]{8,64}$")]

router = APIRouter()


@router.get("/label", response_class=HTMLResponse)
def label(service: TheService, account: Annotator) -> Response:
    """The open item, or the next one."""
    return service.pages.view(account, service.store.view(account.id))


@router.post("/judgements", response_class=HTMLResponse)
def judge(
    service: TheService,
    account: Annotator,
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
    service.store.submit(account.id, assignment, nonce, answer)
    return see_other("/label")


@router.post("/undo", response_class=RedirectResponse, status_code=303)
def undo(service: TheService, account: Annotator, nonce: Nonce) -> Response:
    """Takes back the caller's last answer."""
    service.store.undo(account.id, nonce)
    return see_other("/label")


@router.post("/assignments/{assignment}/renew", status_code=204)
def renew(
    service: TheService, account: Annotator, assignment: Annotated[int, Path(ge=1, le=BIGGEST_ID)]
) -> Response:
    """The page is still open: the item stays with the caller."""
    service.store.renew(account.id, assignment)
    return Response(status_code=204)


def answer_of(action: str, choice: str, rank: list[str] | None, flagged: bool, reason: str) -> Answer:
    """A form as an answer.

    Raises:
        Refused: nothing was chosen.
    """
    remarks: dict[str, Any] = {"flagged": flagged, "reason": reason}
    if action == "skip":
        return Answer(**remarks)
    if rank and choice == "bad":
        return Answer(ranks=[1] * len(rank), both_bad=True, **remarks)
    if rank:
        if not all(rank):
            raise Refused("give every response a place, or skip", 422)
        return Answer(ranks=[int(place) for place in rank], **remarks)
    if not choice:
        raise Refused("choose one of the seven strengths, or skip", 422)
    if choice == "bad":
        return Answer(ranks=[1, 1], strength=0, both_bad=True, **remarks)
    strength = int(choice)
    return Answer(ranks=[1 + (strength < 0), 1 + (strength > 0)], strength=strength, **remarks)
