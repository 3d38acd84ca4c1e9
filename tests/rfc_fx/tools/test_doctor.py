"""Doctor: compiles for real, says versions, and where it cannot compile says what to install."""

import pytest
import torch
from torch._inductor import config
from torch._inductor.utils import fresh_cache
from typer.testing import CliRunner

from rfc_fx.tools.cli import app


@pytest.mark.compile
def test_doctor_compiles_and_prints_versions():
    result = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"{torch.__version__}" in result.stdout
    assert "works," in result.stdout


def test_without_a_compiler_doctor_says_what_to_install_on_one_line():
    torch.compiler.reset()
    with fresh_cache(), config.patch({"cpp.cxx": (None, "/no/such/compiler")}):
        result = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "No working C++ compiler found" in line
    assert "apt install g++" in line


def test_doctor_refuses_a_device_that_is_not_there():
    result = CliRunner().invoke(app, ["doctor", "--device", "cuda:77"], catch_exceptions=False)
    assert result.exit_code == 2
    assert "--device cuda:77: not available here" in result.stderr
