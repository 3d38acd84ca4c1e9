"""`rfc-fx serve`: an accelerated pipeline behind HTTP, by Ray Serve."""

from __future__ import annotations

import os
import signal
import threading
from ipaddress import ip_address
from types import FrameType
from typing import Annotated

import typer

from rfc_fx.tools import options
from rfc_fx.tools.arguments import OptionError, device_here
from rfc_fx.tools.load import locate
from rfc_fx.tools.requests.worker import WorkerSettings
from rfc_fx.tools.serving.deployments import Server, ServerSettings, imported

TOKEN = "RFC_FX_TOKEN"


def serve(
    model: options.SourceArgument,
    replicas: Annotated[int, typer.Option(min=1, max=1_024, help="processes that draw")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, max=1_024, help="requests that one generation draws, where they fit together")] = 8,
    max_waiting: Annotated[int, typer.Option(min=1, max=100_000, help="pictures that are waited for; more are answered by 429")] = 64,
    host: Annotated[str, typer.Option(help=f"address to listen at; beyond this machine {TOKEN} has to hold a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8_000,
    nfc: options.NFC = None,
    steps: options.RequestSteps = None,
    compile: Annotated[bool, typer.Option(help="torch.compile(fullgraph=True)")] = True,
    device: options.DeviceHere = None,
) -> None:
    """Answer POST /v1/images/generations (OpenAI's form), /health, /metrics and a page at /, until Ctrl-C."""
    token = os.environ.get(TOKEN) or None
    if not is_loopback(host) and token is None:
        raise OptionError(f"--host {host}: others can reach it; put a token into the variable {TOKEN}, or listen at 127.0.0.1")
    locate(model)
    imported()
    worker = WorkerSettings(model=model, device=(device or device_here()).type, nfc=nfc, compile=compile, steps=steps)
    settings = ServerSettings(
        worker=worker, replicas=replicas, max_batch=max_batch, most_waiting=max_waiting, host=host, port=port, token=token
    )
    server = Server(settings)
    try:
        stop = _signalled()
        typer.echo(f"http://{host}:{port}/ is ready: {replicas} {'replica' if replicas == 1 else 'replicas'} of {model}; Ctrl-C ends it")
        stop.wait()
        typer.echo("answering what is there; Ctrl-C again ends at once", err=True)
    finally:
        if not server.stop():
            typer.echo("requests were left unanswered", err=True)


def _signalled() -> threading.Event:
    """Set by the first Ctrl-C or SIGTERM; the second is a KeyboardInterrupt."""
    stop = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):  # Ray has put its own for the latter
        signal.signal(number, note)
    return stop


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
