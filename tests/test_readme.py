"""README's Python runs, block after block in one namespace."""

from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

README = Path(__file__).parents[1] / "README.md"


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it writes an engine
    examples = list(Sybil(parsers=[PythonCodeBlockParser()]).parse(README).examples())
    assert len(examples) >= 2
    for example in examples:
        example.evaluate()
