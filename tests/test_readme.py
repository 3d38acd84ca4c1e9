"""The Python of every README runs, block after block in one namespace; README.md is short and its results are the records'."""

import re
from pathlib import Path

import pytest
import torch
from small_digits import first_blocks
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from rfc_fx import zoo
from rfc_fx.runtime.compiled_runs import CompiledRuns

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = ("README.md", "rfc/README.md", "rfc_fx/README.md", "export/README.md")
WITH_DIGITS = [page for page in PAGES if page != "rfc/README.md"]


@pytest.mark.parametrize(
    ("page", "whole"), [*((page, False) for page in PAGES), *(pytest.param(page, True, marks=pytest.mark.slow) for page in WITH_DIGITS)]
)
def test_the_python_of_the_page_runs(
    page: str, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first block of README.md prints the summary that stands below it. `whole`: with all blocks of the digits model."""
    monkeypatch.chdir(tmp_path)  # some write engines
    monkeypatch.setattr(CompiledRuns, "of", lambda runs, run: run)  # other tests compile
    if not whole:
        monkeypatch.setattr(zoo, "load_digits", lambda dtype=torch.float32: first_blocks(1))
    examples = list(Sybil(parsers=[PythonCodeBlockParser()]).parse(ROOT / page).examples())
    assert examples
    for number, example in enumerate(examples):
        example.evaluate()
        if page == "README.md" and number == 0:
            shown = README.read_text().partition("```\nFluxTransformer2DModel:")[2].partition("```")[0]
            assert shown.split() == capsys.readouterr().out.split()[1:]


def test_readme_has_at_most_200_lines() -> None:
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", [*PAGES, "benchmarks/README.md", "CHANGELOG.md", ".github/CONTRIBUTING.md"])
def test_links_to_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in target]
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]
    assert not missing


def test_the_results_are_those_of_the_records() -> None:
    from benchmarks.overview import readme_rows

    between = README.read_text().partition("<!-- results: begin -->\n")[2].partition("<!-- results: end -->")[0]
    assert between.strip() == readme_rows().strip()


def test_the_changelog_begins_with_the_packages_version() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version[1]
