"""One server of two replicas for all tests that need Ray."""

from collections.abc import Iterator
from typing import NamedTuple

import psutil
import pytest

TOKEN = "a secret"
WAITING = 12


class Served(NamedTuple):
    """A server of the digits model, which every address of this machine reaches."""

    address: str
    process: psutil.Process


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    pytest.importorskip("ray.serve", reason="pip install 'rfc-fx[ray]'")
    from benchmarks.serving.server import server

    options = ("--replicas", 2, "--max-batch", 4, "--max-waiting", WAITING, "--steps", 20, "--no-compile")
    with server("digits", *options, host="0.0.0.0", token=TOKEN) as (address, process):
        yield Served(address, process)
