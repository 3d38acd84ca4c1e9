"""HTTP: the paths of a server, what may come in, and how errors are answered; requests and responses are Starlette's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from rfc_fx.errors import RFCError
from rfc_fx.tools.requests.request import RequestError
from rfc_fx.tools.serving.api import BODY, error_body
from rfc_fx.tools.serving.front import ClosingError, Event, Front, FullError, LostError, is_allowed
from rfc_fx.tools.serving.page import page


class Http:
    """Answers HTTP for a front."""

    def __init__(self, front: Front, model: str, token: str | None, takes_classes: bool) -> None:
        self.front, self._token = front, token
        self._page = page(model, takes_classes)

    async def answer(self, request: Any) -> Any:
        """The response to one request."""
        from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse

        match request.method, request.url.path:
            case "GET", "/":
                return HTMLResponse(self._page)
            case "GET", "/health":
                state, status = ("closing", 503) if self.front.is_closing else ("ok", 200)
                return JSONResponse({"status": state, "waiting": self.front.metrics.waiting}, status_code=status)
            case "GET", "/metrics":
                return PlainTextResponse(self.front.metrics.text(), media_type="text/plain; version=0.0.4")
            case "POST", "/v1/images/generations":
                if not is_allowed(request.headers.get("authorization"), self._token):
                    return self._error(401, "a token is needed: Authorization: Bearer TOKEN", "authentication_error")
                return await self._images(request)
            case _, ("/" | "/health" | "/metrics" | "/v1/images/generations") as path:
                return self._error(405, f"{request.method[:10]} {path}: this path is not called so", "invalid_request_error")
        return self._error(404, f"{request.method[:10]} {request.url.path[:80]}: there is no such thing here", "invalid_request_error")

    async def _images(self, request: Any) -> Any:
        from starlette.responses import JSONResponse, StreamingResponse

        try:
            body = bytearray()
            async for part in request.stream():
                body += part
                if len(body) > BODY:
                    return self._error(413, f"body: must have at most {BODY} bytes", "invalid_request_error")
            call = self.front.parsed(bytes(body))
            if call.streams:
                events = self.front.events(call)
                first = await anext(events)  # where the queue is full it is an answer of its own
                return StreamingResponse(self._lines(first, events), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
            answer = await self.front.images(call)
        except Exception as error:
            return self._failed(error)
        self.front.metrics.answers["200"] += 1
        return JSONResponse(answer)

    async def _lines(self, first: Event, events: AsyncIterator[Event]) -> AsyncIterator[str]:
        try:
            yield _line(first)
            async for event in events:
                yield _line(event)
            self.front.metrics.answers["200"] += 1
        except Exception as error:
            response = self._failed(error)
            yield f"event: error\ndata: {response.body.decode()}\n\n"

    def _failed(self, error: Exception) -> Any:
        match error:
            case FullError():
                return self._error(429, str(error), "rate_limit_error", {"Retry-After": str(error.seconds)})
            case RequestError():
                return self._error(400, str(error), "invalid_request_error")
            case LostError() | ClosingError():
                return self._error(503, str(error), "server_error", {"Retry-After": "5"})
            case RFCError():
                return self._error(500, str(error), "server_error")
        return self._error(500, f"{type(error).__name__}: {str(error)[:300]}", "server_error")

    def _error(self, status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> Any:
        from starlette.responses import JSONResponse

        self.front.metrics.answers[str(status)] += 1
        return JSONResponse(error_body(message, kind), status_code=status, headers=headers)


def _line(event: Event) -> str:
    name, data = event
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
