"""Deployments: Ray Serve runs replicas of a worker, batches their requests, and starts those that died anew."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.load import LoadError, one_line
from rfc_fx.tools.requests.ray_node import LOGS, imported_ray, listen_on_loopback, start_ray
from rfc_fx.tools.requests.request import Request
from rfc_fx.tools.requests.worker import WorkerSettings, ray_resources
from rfc_fx.tools.serving.front import Front
from rfc_fx.tools.serving.http import Http
from rfc_fx.tools.serving.replica import Replica, Ticket

NAME = "rfc-fx"
"""Of the application."""


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


def application(settings: ServerSettings) -> Any:
    """The application of Ray Serve; LoadError where Ray is missing."""
    serve = imported()
    from ray import exceptions

    lost = (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.ObjectLostError,
        exceptions.NodeDiedError,
        exceptions.LocalRayletDiedError,
    )

    @serve.deployment(
        name="replica",
        num_replicas=settings.replicas,
        max_ongoing_requests=2 * settings.max_batch,
        health_check_period_s=2,
        ray_actor_options=ray_resources(settings.worker, settings.replicas),
    )
    class Served(Replica):
        def __init__(self, settings: WorkerSettings) -> None:
            listen_on_loopback()
            super().__init__(settings)

        @serve.batch(max_batch_size=settings.max_batch, batch_wait_timeout_s=settings.wait)
        async def batched(self, tickets: list[Ticket]) -> AsyncIterator[list[Any]]:
            async for events in self.draw(tickets):
                yield events

        async def __call__(self, request: Request, streams: bool) -> AsyncIterator[Any]:
            ticket = Ticket(request, streams)
            try:
                async for event in self.batched(ticket):
                    if event is not None:
                        yield event
            finally:
                ticket.is_gone = True

    @serve.deployment(name="front", num_replicas=1, max_ongoing_requests=10_000)
    class Ingress:
        def __init__(self, replica: Any) -> None:
            from rfc_fx.tools.pipeline.folder import pipeline_folder

            listen_on_loopback()
            calls = replica.options(stream=True)

            async def draw(request: Request, streams: bool) -> AsyncIterator[Any]:
                events = calls.remote(request, streams)
                try:
                    async for event in events:
                        yield event
                finally:
                    events.cancel()

            at_once = settings.replicas * settings.max_batch
            front = Front(draw, lost=lost, most_waiting=settings.most_waiting, at_once=at_once)
            takes_classes = "class_labels" in pipeline_folder(settings.worker.model).parameters
            self.http = Http(front, PurePath(settings.worker.model).name, settings.token, takes_classes)

        async def __call__(self, request: Any) -> Any:
            return await self.http.answer(request)

        async def drained(self) -> None:
            await self.http.front.drained()

    replica: Any = Served
    front: Any = Ingress
    return front.bind(replica.bind(settings.worker))


def imported() -> Any:
    """Ray Serve; LoadError where it is missing."""
    try:
        imported_ray()
        from ray import serve
    except ImportError as error:
        raise LoadError("rfc-fx serve needs Ray Serve: pip install 'rfc-fx[ray]'") from error
    return serve


class Server:
    """Ray, started here with the server; `stop` ends both."""

    def __init__(self, settings: ServerSettings) -> None:
        """Wait until all replicas are ready. OptionError for a port that is taken, LoadError where Ray or a replica does not start."""
        self._serve = imported()
        check_port(settings.host, settings.port)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        self._ray = start_ray(settings.replicas, others=2)
        try:
            self._serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config={"log_level": "ERROR"})
            self._front = self._serve.run(application(settings), name=NAME, route_prefix="/")
        except BaseException as error:
            self._end()
            if not isinstance(error, Exception):
                raise
            raise LoadError(f"the server did not start: {one_line(error, width=400)}; see {LOGS}/serve") from error

    def stop(self, patience: float = 60.0) -> bool:
        """Take no more requests, answer those that are here, and end Ray; whether all were answered within `patience` seconds."""
        try:
            self._front.drained.remote().result(timeout_s=patience)
            return True
        except TimeoutError:
            return False
        finally:
            self._end()

    def _end(self) -> None:
        self._serve.shutdown()
        self._ray.shutdown()


def check_port(host: str, port: int) -> None:
    """OptionError where nothing can listen at this address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise OptionError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}; pass another port") from error
