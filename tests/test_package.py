"""The wheel: what is in it, and that it works without extras, from another folder."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = [
    "onnx",
    "onnxscript",
    "onnxruntime",
    "torch_tensorrt",
    "tensorrt",
    "sklearn",
    "cache_dit",
    "pytest",
    "peft",
    "accelerate",
    "av",
    "transformers",
]
WITHOUT_EXTRAS = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS}))  # None: not found
import rfc, rfc_fx, rfc_export, rfc_fx.zoo
from importlib import import_module
module, _, function = sys.argv[1].partition(":")
for package in (rfc, rfc_fx, rfc_export): print(package.__file__)
sys.argv = ["rfc-fx", "--version"]
getattr(import_module(module), function)()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("rfc_fx-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_the_packages_with_type_markers_and_models_and_nothing_else(installed: Path) -> None:
    assert sorted(path.name for path in installed.iterdir() if path.suffix != ".dist-info") == ["rfc", "rfc_export", "rfc_fx"]
    for package, source in (("rfc", "rfc"), ("rfc_fx", "rfc_fx"), ("rfc_export", "export/rfc_export")):
        assert (installed / package / "py.typed").exists()
        modules = {path.relative_to(ROOT / source) for path in (ROOT / source).rglob("*.py")}
        assert {path.relative_to(installed / package) for path in (installed / package).rglob("*.py")} == modules
    assert (installed / "rfc_fx/zoo/digits/diffusion_pytorch_model.safetensors").exists()
    emoji = {path.relative_to(ROOT) for path in (ROOT / "rfc_fx/zoo/emoji").rglob("*") if path.is_file()}
    assert Path("rfc_fx/zoo/emoji/transformer/diffusion_pytorch_model.safetensors") in emoji
    assert emoji == {path.relative_to(installed) for path in (installed / "rfc_fx/zoo/emoji").rglob("*") if path.is_file()}


def test_without_extras_the_installed_packages_import_and_the_command_says_its_version(installed: Path, tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    command = [sys.executable, "-c", WITHOUT_EXTRAS, project["scripts"]["rfc-fx"]]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    *files, version = done.stdout.splitlines()
    assert all(Path(file).is_relative_to(installed) for file in files)
    assert version.startswith(f"rfc-fx {project['version']}")
