"""The GPU that is not there, for all tests of this folder, and the record of what passed."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many combinations of the choices are tried; without an option every pair of values occurs."""
    parser.addoption("--every-value", action="store_true", help="tests/cuda: every value of each choice once, minutes")
    parser.addoption("--every-combination", action="store_true", help="tests/cuda: all combinations, days")
    parser.addoption("--resume", metavar="FOLDER", help="tests/cuda: what passed there is not run again; empty it after a change")


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
def passed(request: pytest.FixtureRequest) -> Any:
    """What all tests found that passed, in this run and in those that it resumes (`record.Passed`)."""
    from record import Passed

    folder = request.config.getoption("--resume")
    request.config.stash[PASSED] = every = Passed(None if folder is None else Path(folder))
    return every


PASSED = pytest.StashKey[Any]()
REPORT = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Let `found` know whether its test has passed."""
    report: Any = yield
    if report.when == "call":
        item.stash[REPORT] = report
    return report


@pytest.fixture
def found(passed: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """What this test finds; kept where it passes. A test that has passed already in a run that is resumed is done at once."""
    name = request.node.nodeid.rpartition("::")[2]
    if passed.has(name):
        pytest.skip("passed already")
    from record import Found

    yield (record := Found())
    if request.node.stash[REPORT].passed:
        passed.keep(name, record)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What passed, in numbers."""
    if (passed := config.stash.get(PASSED, None)) is not None:
        terminalreporter.section("compiled for a GPU that is not there")
        for line in passed.lines():
            terminalreporter.write_line(line)
