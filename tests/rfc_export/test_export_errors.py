"""Errors of an export name model, phase and way out and leave nothing; what no engine can serve is refused before anything is built."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from digits_models import small_digits
from families import dit
from torch import Tensor, nn

import rfc
import rfc_export
import rfc_fx
from rfc_export import aoti, exporter
from rfc_export.building import check_timestep
from rfc_export.errors import BackendError, ExportError
from rfc_export.model_facts import plain_config
from rfc_export.parity import check_parity
from rfc_fx.io.method_file import method_of

METHOD = rfc.RFC(tau=0.15)


def raising(error: Exception) -> Callable[..., Any]:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    return raises


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize(
    ("backend", "place", "config", "told"),
    [
        ("aoti", "rfc_export.aoti._compiled", {"hoist": False}, r"compiling \w+ failed with aoti.*try backend='onnx' or hoist=True"),
        ("aoti", "rfc_export.call_programs.lower_host", {}, r"making programs failed with aoti.*try backend='onnx' or hoist=False"),
        ("onnx", "rfc_export.onnx.writer._exported", {}, r"exporting \w+ failed with onnx.*try backend='aoti' or hoist=False"),
    ],
)
def test_what_a_library_raises_is_told_with_model_phase_and_way_out(
    backend: Any, place: str, config: Any, told: str, digits_inputs: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'rfc-fx[onnx]'")
    monkeypatch.setattr(place, raising(KeyError("buf161")))
    monkeypatch.setattr(aoti, "compile_seconds", lambda device: 0.0)
    with pytest.raises(ExportError, match=rf"export: DiTTransformer2DModel: {told}") as found:
        rfc_export.export(
            small_digits(), tmp_path / "e", backend=backend, example_inputs=digits_inputs, method=METHOD, config=rfc_fx.Config(**config)
        )
    assert "nothing was written: KeyError: 'buf161'" in str(found.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [BackendError("onnx: missing"), MemoryError()])
def test_errors_that_say_what_to_do_stay_as_they_are(
    error: Exception, digits_inputs: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "cached_for", raising(error))
    with pytest.raises(type(error)) as found:
        rfc_export.export(small_digits(), tmp_path / "e", backend="aoti", example_inputs=digits_inputs, method=METHOD)
    assert found.value is error


class Decoder(nn.Module):
    """A module without a timestep, as a VAE's decoder."""

    def forward(self, z: Tensor) -> Tensor:
        return z


def test_a_model_without_a_timestep_is_refused_unless_all_is_computed(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Decoder.forward has no timestep.*RFC would estimate a picture.*FullCompute"):
        rfc_export.export(Decoder(), tmp_path / "e", backend="aoti", example_inputs={"z": torch.zeros(1)})
    check_timestep(Decoder(), rfc.FullCompute())


class _Foreign:
    def to_dict(self) -> dict[str, Any]:
        return {"width": 4, "odd": object()}

    def __iter__(self) -> Any:
        return iter(["x" * 20])


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (_Foreign(), {"width": 4}),
        ({"width": 4, 3: 5, "_name_or_path": "/home", "_use_default_values": ["depth"]}, {"width": 4}),
        (SimpleNamespace(width=4, dtype=torch.float32), {"width": 4}),
        (None, {}),
        (7, {}),
    ],
)
def test_a_configuration_of_any_library_is_kept_as_far_as_json_has_words(config: Any, plain: dict[str, Any]) -> None:
    model = nn.Module()
    model.config = config
    assert plain_config(model) == plain


@pytest.mark.parametrize(("inputs", "told"), [(None, "example_inputs are needed"), ([], "an empty list")])
def test_example_inputs_that_are_no_call_are_refused(inputs: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=told):
        rfc_export.export(small_digits(), tmp_path / "e", backend="aoti", example_inputs=inputs, method=METHOD)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"example_inputs": 3}, "DiTTransformer2DModel cannot be called with example_inputs: TypeError"),
        ({"example_inputs": [{"foo": 1}]}, "cannot be called with example_inputs: TypeError: .*missing a required argument"),
        ({"example_inputs": {"hidden_states": torch.zeros(2, 3, 8, 8)}}, "pass the arguments of a call that the model answers"),
        ({"config": rfc_fx.Config(granularity="prediction")}, "DiTTransformer2DModel: granularity: RFC estimates .* expected 'output'"),
    ],
)
def test_what_the_model_itself_refuses_names_no_other_back_end(
    changes: dict[str, Any], told: str, digits_inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"example_inputs": digits_inputs, "method": METHOD, **changes}
    model = dit()[0] if "config" in changes else small_digits()  # one that predicts a variance, too
    if "config" in changes:
        settings["example_inputs"] = dit()[1]
    with pytest.raises(ExportError, match=told) as found:
        rfc_export.export(model, tmp_path / "e", backend="aoti", **settings)
    assert "backend=" not in str(found.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "rfc"}, "method must be an rfc method .* got 'rfc'"),
        ({"config": "block"}, "config must be a rfc_fx.Config"),
        ({"model": 3}, "model must be a torch.nn.Module, got int"),
    ],
)
def test_arguments_of_another_type_are_refused_by_name(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=rf"export: {told}"):
        rfc_export.export(path=tmp_path / "e", backend="aoti", **{"model": Decoder(), **changes})


def test_a_method_file_is_read_as_transform_reads_it(tmp_path: Path) -> None:
    rfc_fx.write_method(tmp_path / "method.json", rfc.FORA(interval=4), {})
    assert method_of(tmp_path / "method.json") == method_of(str(tmp_path / "method.json")) == rfc.FORA(interval=4)


class Choosing(nn.Module):
    """Stands for a router that picks by scores: rounding alone changes signs of its output."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own, self.config = own, own.config

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        (sample,) = self.own(hidden_states, timestep, class_labels, return_dict=False)
        return torch.where(((sample * 1e6).floor() % 2).bool(), sample, -sample)


def test_a_model_that_rounding_alone_changes_is_refused_with_that_reason(digits_inputs: dict[str, Tensor]) -> None:
    models = [Choosing(small_digits()) for _ in range(2)]
    with torch.no_grad():
        models[1].get_parameter("own.proj_out_2.weight").mul_(1 + 1e-6)
    model, engine = (cast("Any", rfc_fx.transform(one, METHOD, example_inputs=digits_inputs)) for one in models)
    engine.manifest = SimpleNamespace(call=SimpleNamespace(timestep="timestep"), model=SimpleNamespace(dtype="float32"))
    told = (
        r"own output moves by \S+ when its latent is rounded otherwise.*no engine follows it in float32; export the model in a wider type"
    )
    with pytest.raises(ExportError, match=told):
        check_parity(engine, model, digits_inputs)
