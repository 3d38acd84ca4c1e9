"""The GPU that is not there, for all tests of this folder, and the counts of what was tried."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

COUNTS = Counter[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many combinations of the choices are tried; without an option every pair of values occurs."""
    parser.addoption("--every-value", action="store_true", help="tests/cuda: every value of each choice once, minutes")
    parser.addoption("--every-combination", action="store_true", help="tests/cuda: all combinations, days")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Nothing here is looked at where these tests are not asked for."""
    return True if "not cuda" in config.getoption("markexpr") else None


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> Iterator[None]:
    from absent_gpu import absent_gpu, is_possible

    if not is_possible():
        pytest.skip("needs a CUDA build of torch with Triton: make test-cuda")
    with absent_gpu():
        yield


@pytest.fixture(scope="session")
def counts() -> Counter[str]:
    """What was tried, by name; shown at the end."""
    return COUNTS


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Kernels that were generated, by their source without its name."""
    return {}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line for each count."""
    if COUNTS:
        terminalreporter.section("compiled for a GPU that is not there")
        for name, count in COUNTS.items():
            terminalreporter.write_line(f"{count:6d} {name}")
