"""The web server of a review: this machine only, one secret address, nothing from outside.

Every address begins with a random token. A request must be for this machine by name (`Host`), which defeats DNS
rebinding, and one that changes something must come from the page itself (`Origin`), as JSON of bounded size and time.
"""

from __future__ import annotations

import asyncio
import io
import json
import secrets
from importlib import resources
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from mineral_batch.errors import DataError
from mineral_batch.review.labels import LABELS
from mineral_batch.review.session import LARGE, SMALL, UnknownError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from mineral_batch.review.session import Review

HOST = "127.0.0.1"
LARGEST_BODY = 64 * 1024
SECONDS_FOR_A_BODY = 10.0
_ASSETS = {"review.js": "text/javascript", "review.css": "text/css"}
_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}


def new_token() -> str:
    """A secret that cannot be guessed: 256 bits, for an address."""
    return secrets.token_urlsafe(32)


def make_app(review: Review, token: str, port: int) -> ASGIApp:
    """The application.

    Args:
        review: what it shows and records.
        token: first part of every address.
        port: that it is served on, which `Host` and `Origin` must name.
    """
    pages = _Pages(review)
    routes = [
        Route("/", pages.page),
        Route("/{name:str}.{ending:str}", pages.asset),
        Route("/api/state", pages.state),
        Route("/api/left", pages.left),
        Route("/api/queue", pages.queue),
        Route("/api/item/{row:int}", pages.item),
        Route("/api/decide", pages.decide, methods=["POST"]),
        Route("/api/undo", pages.undo, methods=["POST"]),
        Route("/image/{row:int}", pages.image),
        Route("/thumbnail/{row:int}", pages.thumbnail),
        Route("/map/{row:int}/{number:int}", pages.map),
    ]
    return _Guard(Starlette(routes=[Mount(f"/{token}", routes=routes)]), port)


class _Guard:
    """Refuses what does not come from this machine's own page, and adds the headers of every answer."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS.items()]
            await send(message)

        problem = self._problem(scope)
        app = self._app if problem is None else PlainTextResponse(problem, 403)
        await app(scope, receive, send_with_headers)

    def _problem(self, scope: Scope) -> str | None:
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        if scope["type"] != "http" or headers.get(b"host") not in self._hosts:
            return "this page is served to this machine only"
        if scope["method"] in ("GET", "HEAD"):
            return None
        if headers.get(b"origin") not in {f"http://{host}" for host in self._hosts}:
            return "only the page itself may change something"
        if not headers.get(b"content-type", "").startswith("application/json"):
            return "only JSON is accepted"
        return None


def _answering(handler: Callable[[_Pages, Request], Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """Turn what a request asked wrongly into 404, and a disk that refuses into 507, each with its line."""

    async def answer(pages: _Pages, request: Request) -> Response:
        try:
            return await handler(pages, request)
        except UnknownError as error:
            return PlainTextResponse(str(error), 404)
        except DataError as error:
            return PlainTextResponse(str(error), 507)
        except (ValueError, KeyError, TypeError) as error:
            return PlainTextResponse(f"not understood: {error}", 400)

    return answer


class _Pages:
    """The handlers. What reads files or decodes runs in threads, so that no image holds up another."""

    def __init__(self, review: Review) -> None:
        self._review = review

    @_answering
    async def page(self, request: Request) -> Response:
        if not request.url.path.endswith("/"):
            return Response(status_code=308, headers={"location": request.url.path + "/"})
        return Response(_asset("page.html"), media_type="text/html")

    @_answering
    async def asset(self, request: Request) -> Response:
        name = f"{request.path_params['name']}.{request.path_params['ending']}"
        if name == LABELS:
            return await run_in_threadpool(self._labels)
        if name not in _ASSETS:
            raise UnknownError(f"there is no {name}")
        return Response(_asset(name), media_type=_ASSETS[name])

    def _labels(self) -> Response:
        file = io.BytesIO()
        self._review.label_table().stream(file)
        headers = {"content-disposition": f'attachment; filename="{LABELS}"'}
        return Response(file.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)

    @_answering
    async def state(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._review.state))

    @_answering
    async def left(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._review.left))

    @_answering
    async def queue(self, request: Request) -> Response:
        ask = request.query_params
        found = await run_in_threadpool(
            self._review.queue,
            ask.get("order", "teaches"),
            ask.get("label", ""),
            int(ask.get("offset", 0)),
            int(ask.get("limit", 20)),
            undecided=ask.get("undecided") == "1",
            called=ask.get("called") == "1",
            edition=int(ask["edition"]) if "edition" in ask else None,
        )
        return JSONResponse(found)

    @_answering
    async def item(self, request: Request) -> Response:
        return JSONResponse(self._review.item(request.path_params["row"]))

    @_answering
    async def decide(self, request: Request) -> Response:
        body = await _json(request)
        choices = [(int(one["row"]), str(one["status"]), _texts(one["minerals"])) for one in body["decisions"]]
        await run_in_threadpool(self._review.decide, choices)
        return JSONResponse({"counts": self._review.counts()})

    @_answering
    async def undo(self, request: Request) -> Response:
        await _json(request)
        row = await run_in_threadpool(self._review.undo)
        return JSONResponse({"row": row, "counts": self._review.counts()})

    @_answering
    async def image(self, request: Request) -> Response:
        content = await run_in_threadpool(self._review.jpeg, request.path_params["row"], LARGE)
        return Response(content, media_type="image/jpeg")

    @_answering
    async def thumbnail(self, request: Request) -> Response:
        content = await run_in_threadpool(self._review.jpeg, request.path_params["row"], SMALL)
        return Response(content, media_type="image/jpeg")

    @_answering
    async def map(self, request: Request) -> Response:
        row, number = request.path_params["row"], request.path_params["number"]
        return Response(await run_in_threadpool(self._review.map, row, number), media_type="image/png")


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("minerals is a list of names")
    return value


async def _json(request: Request) -> dict[str, Any]:
    """The body of a request, of bounded size and time.

    Raises:
        ValueError: if it is too large or too slow, or no JSON object.
    """

    async def read() -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_BODY:
                raise ValueError(f"more than {LARGEST_BODY} bytes")
        return bytes(body)

    try:
        body = await asyncio.wait_for(read(), SECONDS_FOR_A_BODY)
    except TimeoutError:
        raise ValueError(f"not complete after {SECONDS_FOR_A_BODY:g} seconds") from None
    except ClientDisconnect:
        raise ValueError("the connection was closed") from None
    content = json.loads(body)
    if not isinstance(content, dict):
        raise ValueError("the body is a JSON object")
    return content


def _asset(name: str) -> bytes:
    return resources.files("mineral_batch.review").joinpath("assets", name).read_bytes()
