"""One thread, fixed seeds, hypothesis without randomness or deadlines, and the helpers in `tests/` importable by name."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.append(HERE)  # `families` and `tolerances`; at the end, so that tests/rfc never stands before the package rfc

torch.set_num_threads(1)

# Tracing makes many objects that live and torch has many that never go: at Python's 700 a sixth of the time is garbage collection.
gc.set_threshold(50_000, 10, 10)

settings.register_profile(
    "specification",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("specification")

LONGEST = ("rfc_export/test_aoti.py", "test_readme.py", "rfc_fx/test_pipelines.py", "rfc_fx/test_methods.py", "rfc_fx/zoo/test_emoji.py")
"""Files of 15 seconds and more; a file's tests stay on one worker."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, for which one worker would wait at the end."""
    longest = [Path(HERE) / name for name in LONGEST]
    items.sort(key=lambda item: longest.index(item.path) if item.path in longest else len(longest))


def pytest_collection_finish() -> None:
    """Leave what is imported and collected out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def captures() -> dict[Any, Any]:
    """Captured graphs by model and call."""
    return {}


@pytest.fixture(scope="module")
def captured_once(captures: dict[Any, Any]) -> Iterator[None]:
    """Transformations of models that are alike share one capture, in all files that use this."""
    from alike import alike

    from benchmarks.capturing import captured_once

    with captured_once(captures, alike):
        yield


@pytest.fixture(scope="session")
def one_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the digits model with its first block."""
    from small_digits import first_blocks

    folder = tmp_path_factory.mktemp("models") / "digits"
    for part in first_blocks(1):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def few_blocks(one_block: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line's model "digits" has one block: an eighth of the time to trace."""
    from rfc_fx.tools import load

    monkeypatch.setitem(load.SHIPPED, "digits", one_block)


@pytest.fixture
def no_recompiles() -> Iterator[None]:
    """A frame that torch.compile compiles again because a guard failed is an error."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@pytest.fixture(scope="session")
def digits_inputs() -> dict[str, torch.Tensor]:
    """One call for one sample with guidance."""
    from rfc_fx.zoo import digits_noise

    labels = torch.tensor([3, 10])
    return {"hidden_states": digits_noise([0, 0]), "timestep": torch.tensor([500, 500]), "class_labels": labels}


@pytest.fixture(scope="session")
def onnx_two_calls(onnx_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That engine with a second call, of four rows instead of two. Copy it before you change it."""
    import shutil

    from digits_models import small_digits

    import rfc
    import rfc_export
    from rfc_fx.zoo import digits_noise

    path = shutil.copytree(onnx_small, tmp_path_factory.mktemp("engines") / "onnx-two-calls")
    four = {
        "hidden_states": digits_noise([0, 1, 0, 1]),
        "timestep": torch.tensor([500] * 4),
        "class_labels": torch.tensor([3, 7, 10, 10]),
    }
    return rfc_export.export(small_digits(), path, backend="onnx", example_inputs=four, method=rfc.RFC(tau=0.15), add=True)


@pytest.fixture(scope="session")
def onnx_small(digits_inputs: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as ONNX, for tests of files, manifests and commands. Copy it before you change it."""
    pytest.importorskip("onnxruntime", reason="pip install 'rfc-fx[onnx]'")
    from digits_models import small_digits

    import rfc
    import rfc_export

    path = tmp_path_factory.mktemp("engines") / "onnx-small"
    return rfc_export.export(small_digits(), path, backend="onnx", example_inputs=digits_inputs, method=rfc.RFC(tau=0.15))
