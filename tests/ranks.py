"""Several ranks for tests: torch's fake group in this process, and worker processes that form a gloo group."""

import multiprocessing
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist


@contextmanager
def one_device() -> Iterator[None]:
    """diffusers divides a rank by the number of accelerators, which is none on a CPU."""
    with mock.patch.object(torch.accelerator, "device_count", return_value=1):
        yield


@contextmanager
def fake_ranks(size: int, rank: int = 0) -> Iterator[None]:
    """This process plays one rank of a group whose others are not there: structure is right, numbers are not."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        with one_device():
            yield
    finally:
        dist.destroy_process_group()


def split(model: torch.nn.Module, degree: int) -> torch.nn.Module:
    """The model with its sequence split over the ranks (Ulysses)."""
    return parallelize(model, ulysses_degree=degree)


def parallelize(model: Any, **settings: Any) -> Any:
    """The model with its sequence split as `ContextParallelConfig(**settings)` says."""
    from diffusers import ContextParallelConfig

    model.enable_parallelism(config=ContextParallelConfig(**settings))
    return model


class Workers:
    """Processes that run one function each time, as the ranks of a new gloo group; those that were killed start anew."""

    def __init__(self, size: int = 2) -> None:
        self.size = size
        self.processes: list[Any] = [None] * size
        self.pipes: list[Any] = [None] * size

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process is not None:
                process.kill()
                process.join()

    def _start(self, rank: int) -> None:
        context = multiprocessing.get_context("fork")  # nothing is imported again
        here, there = context.Pipe()
        self.pipes[rank] = here
        self.processes[rank] = context.Process(target=_serve, args=(there, [pipe for pipe in self.pipes if pipe]), daemon=True)
        self.processes[rank].start()
        there.close()

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
        """Call function(rank, *args) on every rank; its results, an exception where it raised one, None where the process has died."""
        missing = [rank for rank, process in enumerate(self.processes) if process is None or not process.is_alive()]
        for rank in missing:
            self._start(rank)
        port = _free_port()
        for rank in range(self.size):
            self.pipes[rank].send((rank, self.size, port, timeout, function, args))
        results = []
        for pipe in self.pipes:
            try:
                results.append(pipe.recv())
            except EOFError:
                results.append(None)
        return results


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _serve(pipe: Connection, others: list[Connection]) -> None:
    """`others`: ends of the parent, which came along with the fork; held here, none would ever read that the parent has gone."""
    import logging
    import warnings

    for other in others:
        other.close()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    while True:
        try:
            rank, size, port, timeout, function, args = pipe.recv()
        except EOFError:
            return
        try:
            dist.init_process_group(
                "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
            )
            with one_device():
                result: Any = function(rank, *args)
        except Exception as error:
            error.add_note("")  # what travels is the text
            result = type(error)(str(error)) if type(error).__module__ in ("builtins", "rfc_fx.errors") else RuntimeError(repr(error))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        pipe.send(result)
