"""Deployments: Ray Serve runs replicas of a worker, batches their requests, and starts those that died anew."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from rfc_fx.errors import RFCError
from rfc_fx.tools.load import LoadError, one_line
from rfc_fx.tools.requests.request import Request, RequestError
from rfc_fx.tools.requests.worker import Worker, WorkerSettings
from rfc_fx.tools.serving.api import BODY, Call, error_body
from rfc_fx.tools.serving.front import Front, FullError, is_allowed
from rfc_fx.tools.serving.page import page


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where and how a worker is served."""

    worker: WorkerSettings
    replicas: int = 1
    max_batch: int = 8
    wait: float = 0.05
    """Seconds that a batch waits for more requests."""
    most_waiting: int = 64
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None


class Replica:
    """One worker; its batches are drawn one after the other, off the event loop."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.worker = Worker(settings)
        self._turn = asyncio.Lock()

    async def draw(self, requests: Sequence[Request]) -> list[Any]:
        """Pictures of some requests, each generation with those that fit together; a RequestError in the place of one that is refused."""
        found: dict[int, Any] = {}
        for fit in dict.fromkeys(request.fit for request in requests):
            places = [index for index, request in enumerate(requests) if request.fit == fit]
            async with self._turn:
                pictures = await asyncio.to_thread(self._drawn, [requests[index] for index in places])
            found |= dict(zip(places, pictures, strict=True))
        return [found[index] for index in range(len(requests))]

    def _drawn(self, requests: list[Request]) -> list[Any]:
        try:
            return list(self.worker.draw(requests))
        except RequestError as error:
            return [error] if len(requests) == 1 else [each for request in requests for each in self._drawn([request])]


class Http:
    """Answers HTTP for a front; requests and responses are Starlette's."""

    def __init__(self, front: Front, settings: ServerSettings, takes_classes: bool) -> None:
        self.front, self.settings = front, settings
        self._page = page(settings.worker.model, takes_classes)

    async def answer(self, request: Any) -> Any:
        """The response to one request."""
        from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse

        match request.method, request.url.path:
            case "GET", "/":
                return HTMLResponse(self._page)
            case "GET", "/health":
                return JSONResponse({"status": "ok", "waiting": self.front.metrics.waiting})
            case "GET", "/metrics":
                return PlainTextResponse(self.front.metrics.text(), media_type="text/plain; version=0.0.4")
            case "POST", "/v1/images/generations":
                if not is_allowed(request.headers.get("authorization"), self.settings.token):
                    return self._error(401, "a token is needed: Authorization: Bearer TOKEN", "authentication_error")
                return await self._images(request)
        return self._error(404, f"{request.method} {request.url.path[:80]}: there is no such thing here", "invalid_request_error")

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
                return StreamingResponse(self._events(call), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
            answer = await self.front.images(call)
        except Exception as error:
            return self._failed(error)
        self.front.metrics.answers["200"] += 1
        return JSONResponse(answer)

    async def _events(self, call: Call) -> AsyncIterator[str]:
        try:
            async for name, data in self.front.events(call):
                yield f"event: {name}\ndata: {json.dumps(data)}\n\n"
            self.front.metrics.answers["200"] += 1
        except Exception as error:
            response = self._failed(error)
            yield f"event: error\ndata: {response.body.decode()}\n\n"

    def _failed(self, error: Exception) -> Any:
        if isinstance(error, FullError):
            return self._error(429, str(error), "rate_limit_error", {"Retry-After": str(error.seconds)})
        if isinstance(error, RequestError):
            return self._error(400, str(error), "invalid_request_error")
        return self._error(503 if isinstance(error, RFCError) else 500, f"{type(error).__name__}: {str(error)[:300]}", "server_error")

    def _error(self, status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> Any:
        from starlette.responses import JSONResponse

        self.front.metrics.answers[str(status)] += 1
        return JSONResponse(error_body(message, kind), status_code=status, headers=headers)


def application(settings: ServerSettings) -> Any:
    """The application of Ray Serve; LoadError where Ray is missing."""
    serve = imported()
    from ray.exceptions import RayError

    @serve.deployment(name="replica", num_replicas=settings.replicas, max_ongoing_requests=2 * settings.max_batch, health_check_period_s=2)
    class Served(Replica):
        @serve.batch(max_batch_size=settings.max_batch, batch_wait_timeout_s=settings.wait)
        async def __call__(self, requests: list[Request]) -> list[Any]:
            return await self.draw(requests)

    @serve.deployment(name="front", num_replicas=1, max_ongoing_requests=10_000)
    class Ingress:
        def __init__(self, replica: Any) -> None:
            from rfc_fx.tools.pipeline.folder import pipeline_folder

            async def draw(request: Request) -> Any:
                picture = await replica.remote(request)
                if isinstance(picture, RequestError):
                    raise picture
                return picture

            front = Front(draw, lost=(RayError,), most_waiting=settings.most_waiting, replicas=settings.replicas)
            self.http = Http(front, settings, "class_labels" in pipeline_folder(settings.worker.model).parameters)

        async def __call__(self, request: Any) -> Any:
            return await self.http.answer(request)

    replica: Any = Served
    front: Any = Ingress
    return front.bind(replica.bind(settings.worker))


def imported() -> Any:
    """Ray Serve; LoadError where it is missing."""
    try:
        from ray import serve
    except ImportError as error:
        raise LoadError("rfc-fx serve needs Ray Serve: pip install 'rfc-fx[ray]'") from error
    return serve


def start(settings: ServerSettings) -> Any:
    """Start Ray here with the server, and wait until all replicas are ready; returns Ray Serve, whose `shutdown` ends it."""
    serve = imported()
    import ray

    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the node's address is the loopback
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nothing listens beyond this machine but the server
    os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")  # a loaded machine takes its time
    try:
        ray.init(include_dashboard=False, num_cpus=settings.replicas + 2, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises plain exceptions where its node does not come up
        raise LoadError(f"Ray did not start: {one_line(error, width=200)}; see /tmp/ray/session_latest/logs") from error
    serve.start(http_options={"host": settings.host, "port": settings.port})
    serve.run(application(settings), name="rfc-fx", route_prefix="/")
    return serve
