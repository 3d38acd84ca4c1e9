"""The GPU that is not there, for all tests of this folder, and the record of what passed."""

import json
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
    parser.addoption("--totals", metavar="FILE", help="tests/cuda: write what passed, in numbers")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Nothing here is looked at where these tests are not asked for."""
    return True if "not cuda" in config.getoption("markexpr") else None


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of one case stay on one worker: they share its programs."""
    from xdist.scheduler import LoadScopeScheduling

    class ByCase(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("[")[2] or nodeid

    return ByCase(config, log)


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> Iterator[None]:
    from absent_gpu import absent_gpu, is_possible

    if not is_possible():
        pytest.skip("needs a CUDA build of torch with Triton: make test-cuda")
    with absent_gpu():
        yield


@pytest.fixture(scope="session")
def passed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What all tests found that passed, in this run and in those that it resumes (`record.Passed`)."""
    from record import Passed

    folder = request.config.getoption("--resume")
    request.config.stash[FOLDER] = path = Path(folder) if folder else tmp_path_factory.mktemp("passed")
    return Passed(path)


FOLDER = pytest.StashKey[Path]()
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
    """What passed, in numbers; with workers it is they who know a folder that nobody has named."""
    folder = config.stash.get(FOLDER, config.getoption("--resume"))
    if folder is None or config.getoption("collectonly"):
        return
    import torch
    from cases import pairwise
    from record import Passed

    passed = Passed(Path(folder))
    terminalreporter.section(f"compiled for a GPU that is not there, torch {torch.__version__}")
    for line in passed.lines():
        terminalreporter.write_line(line)
    if file := config.getoption("--totals"):
        Path(file).write_text(json.dumps({"torch": torch.__version__, "pairwise": len(pairwise()), **passed.totals()}, indent=1) + "\n")
