"""For the project's leads: how the labelling goes, and the judgements as files."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import HTMLResponse

from preferl.label import export, statistics
from preferl.label.dependencies import Lead, TheService

router = APIRouter()


@router.get("/dashboard", response_class=HTMLResponse)
def dashboard(service: TheService, account: Lead) -> Response:
    """Progress, agreement, and how each annotator works."""
    found = statistics.dashboard(service.store)
    choices = {"formats": export.FORMATS, "aggregates": export.AGGREGATES}
    return service.pages.show("dashboard.html", account, **found, **choices)


def one_of(words: tuple[str, ...]) -> str:
    return f"^({'|'.join(words)})$"


@router.get("/export/{name}")
def download(
    service: TheService,
    account: Lead,
    name: Annotated[str, Path(pattern=one_of(export.FORMATS))],
    aggregate: Annotated[str, Query(pattern=one_of(export.AGGREGATES))] = "none",
    kind: Annotated[str, Query(pattern=one_of(export.KINDS))] = "human",
) -> Response:
    """The judgements as a file."""
    body, media, ending = export.as_bytes(service.store, name, aggregate, kind)
    return Response(
        body,
        media_type=media,
        headers={"content-disposition": f'attachment; filename="judgements.{ending}"'},
    )
