"""What an installation without extras has: it imports, and its command starts."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ["onnx", "onnxscript", "onnxruntime", "torch_tensorrt", "tensorrt", "sklearn", "cache_dit", "pytest", "peft", "accelerate"]
WITHOUT_EXTRAS = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS}))  # None: not found
import rfc, rfc_fx, rfc_export, rfc_fx.zoo
from importlib import import_module
module, _, function = sys.argv[1].partition(":")
sys.argv = ["rfc-fx", "--version"]
getattr(import_module(module), function)()
"""


def test_without_extras_the_packages_import_and_the_command_says_its_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    entry = project["project"]["scripts"]["rfc-fx"]
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS, entry], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rfc-fx ")


def test_every_package_is_in_the_wheel_with_its_type_marker() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["rfc", "rfc_fx", "export/rfc_export"]
    for package in packages:
        assert (ROOT / package / "py.typed").exists()
        assert (ROOT / package / "__init__.py").exists()
