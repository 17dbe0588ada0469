"""What guards the pages: posts from other sites and large bodies are refused, answers get their headers."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 64 * 1024  # of a posted form
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


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
