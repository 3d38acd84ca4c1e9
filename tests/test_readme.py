"""The Python of the READMEs runs, block after block, each file in one namespace."""

from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[1]

BLOCKS = {"README.md": 2, "rfc/README.md": 5}
"""READMEs by the number of blocks they have at least."""


@pytest.mark.parametrize("name", BLOCKS)
def test_the_python_of_a_readme_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an engine is written
    examples = list(Sybil(parsers=[PythonCodeBlockParser()]).parse(ROOT / name).examples())
    assert len(examples) >= BLOCKS[name]
    for example in examples:
        example.evaluate()
