"""The wheel: what is in it, and that it works without extras, from another folder."""

import os
import subprocess
import sys
import tarfile
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
    "cryptography",
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
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a wheel and a source distribution."""
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, text=True)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path) -> Path:
    """Folder with what the wheel installs."""
    (wheel,) = built.glob("rfc_fx-*.whl")
    zipfile.ZipFile(wheel).extractall(built / "site")
    return built / "site"


def test_the_source_distribution_has_what_the_wheel_is_built_from_and_no_records(built: Path) -> None:
    (source,) = built.glob("rfc_fx-*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "LICENSE",
        "NOTICE",
        "README.md",
        "rfc/__init__.py",
        "export/rfc_export/main.py",
        "tests/conftest.py",
    } <= names
    assert "rfc_fx/zoo/emoji/transformer/diffusion_pytorch_model.safetensors" in names
    assert not [name for name in names if name.startswith(("benchmarks/results", "out/", ".venv"))]


@pytest.mark.slow  # what the wheel holds and that its command runs are below, what verify does in test_engine_cli
def test_with_extras_the_installed_command_verifies_an_engine_elsewhere(
    installed: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, onnx_small: Path
) -> None:
    program = "import rfc_export.main as main; print(main.__file__); main.main()"
    home = str(tmp_path_factory.mktemp("home"))
    environment = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "HOME": home}
    command = [sys.executable, "-c", program, "verify", str(onnx_small)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.splitlines()[0]).is_relative_to(installed)
    assert "programs  " in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_wheel_has_the_packages_with_type_markers_and_models_and_nothing_else(installed: Path) -> None:
    assert sorted(path.name for path in installed.iterdir() if path.suffix != ".dist-info") == ["rfc", "rfc_export", "rfc_fx"]
    for package, source in (("rfc", "rfc"), ("rfc_fx", "rfc_fx"), ("rfc_export", "export/rfc_export")):
        assert (installed / package / "py.typed").exists()
        modules = {path.relative_to(ROOT / source) for path in (ROOT / source).rglob("*.py")}
        assert {path.relative_to(installed / package) for path in (installed / package).rglob("*.py")} == modules
    (metadata,) = installed.glob("*.dist-info")
    assert {path.name for path in (metadata / "licenses").iterdir()} == {"LICENSE", "NOTICE"}
    assert (installed / "rfc_fx/zoo/digits/diffusion_pytorch_model.safetensors").exists()
    assert (installed / "rfc_fx/tools/serving/page.html").exists()
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
