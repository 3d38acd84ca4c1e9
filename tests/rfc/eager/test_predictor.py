"""DisCa as a method: a configuration that names a predictor, is encoded as JSON, and refuses what is not the model's."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import drawing
import pytest
import torch
from families import FAMILIES, moved, sample
from predictors import random_predictor
from safetensors.torch import load_file, save_file

import rfc
import rfc.eager
from rfc.encoding import decode_method, encode_method
from rfc.predictor import CONFIG, WEIGHTS
from rfc_fx.zoo import DIGITS_PREDICTOR, load_digits

predictions = partial(drawing.predictions, steps=5)


@pytest.fixture(scope="module")
def dit() -> Any:
    return FAMILIES["dit"](layers=3)


@pytest.fixture(scope="module")
def made(dit: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_predictor(dit[0], tmp_path_factory.mktemp("predictor"), channels=16)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "predictor"))


def test_the_method_is_a_value_with_the_published_list_of_steps(made: Path) -> None:
    method = rfc.DisCa(predictor=made, full_steps=[0, 7, 2, 4])
    assert method == rfc.DisCa(predictor=str(made), full_steps=(0, 2, 4, 7))
    assert {method: 1}[rfc.DisCa(predictor=made, full_steps=(0, 2, 4, 7))] == 1
    assert method.schedule == rfc.Listed(full_steps=(0, 2, 4, 7))
    assert rfc.DisCa(predictor=made, interval=3).schedule == rfc.Every(interval=3, warmup=1)
    assert isinstance(method, rfc.Method)


def test_the_method_goes_through_json_and_the_twin_of_what_comes_back_is_the_same(dit: Any, made: Path) -> None:
    model, kwargs = dit
    method = rfc.DisCa(predictor=made, full_steps=(0, 2, 3))
    back = decode_method(json.loads(json.dumps(encode_method(method))))
    assert (back.estimator, back.schedule, back.granularity) == (method.estimator, method.schedule, "output")
    for a, b in zip(*(predictions(rfc.eager.cached(model, one), kwargs) for one in (method, back)), strict=True):
        assert torch.equal(a, b)


def test_a_skipped_step_of_the_twin_is_the_formula_and_all_full_is_the_model(dit: Any, made: Path) -> None:
    model, kwargs = dit
    method = rfc.DisCa(predictor=made, full_steps=(0,))
    predictor = method.estimator.load(model)  # type: ignore[attr-defined]
    first, second = (moved(kwargs, i, 5) for i in range(2))
    twin = rfc.eager.cached(model, method)
    streams: list[torch.Tensor] = []
    hook = model.transformer_blocks[-1].register_forward_hook(lambda module, args, output: streams.append(output))
    with torch.no_grad():
        model(**first)
        hook.remove()
        x = model.pos_embed(second["hidden_states"])
        h = predictor.project_out(torch.nn.functional.silu(predictor.project_in(torch.cat([x, streams[0]], -1))))
        for block in predictor.blocks:
            h = block(h, timestep=second["timestep"], class_labels=second["class_labels"])
        whole, model.transformer_blocks = model.transformer_blocks, torch.nn.ModuleList([_Gives(whole_first(model), h)])
        try:
            wanted = sample(model(**second))
        finally:
            model.transformer_blocks = whole
        sample(twin(**first))
        assert torch.equal(sample(twin(**second)), wanted)
    every = rfc.eager.cached(model, rfc.DisCa(predictor=made, full_steps=range(5)))
    assert all(map(torch.equal, predictions(every, kwargs), predictions(model, kwargs)))


def whole_first(model: Any) -> Any:
    return model.transformer_blocks[0]


class _Gives(torch.nn.Module):
    """A block that returns one tensor, with the conditioning that the last layer borrows."""

    def __init__(self, block: Any, h: torch.Tensor) -> None:
        super().__init__()
        self.norm1, self.h = block.norm1, h

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.h


def damaged(folder: Path, change: Any) -> Path:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder


def test_a_missing_predictor_is_refused_when_the_method_is_made(tmp_path: Path) -> None:
    with pytest.raises(
        rfc.PredictorError, match=r"no predictor in .*: expected predictor\.json and predictor\.safetensors, predictor\.json"
    ):
        rfc.DisCa(predictor=tmp_path)
    with pytest.raises(ValueError, match="steps must contain 0"):
        rfc.DisCa(predictor=None, full_steps=(1, 2))
    with pytest.raises(rfc.PredictorError, match="predictor is None; pass the folder"):
        rfc.eager.cached(torch.nn.Linear(1, 1), rfc.preset("disca", "hunyuanvideo"))


def test_weights_that_changed_since_the_method_was_made_are_refused(dit: Any, folder: Path) -> None:
    method = rfc.DisCa(predictor=folder)
    damaged(folder, lambda tensors: tensors["project_in.bias"].add_(1))
    with pytest.raises(rfc.PredictorError, match=r"SHA-256 .*the file was changed; make the method anew"):
        rfc.eager.cached(dit[0], method)
    assert rfc.DisCa(predictor=folder) != method
    rfc.eager.cached(dit[0], rfc.DisCa(predictor=folder))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda t: t.update({"project_in.weight": torch.zeros(16, 31)}),
            r"project_in\.weight: expected shape \(16, 32\) .* got \(16, 31\)",
        ),
        (lambda t: t.pop("project_out.bias"), r"project_out\.bias is not in the file"),
        (lambda t: t.update({"blocks.9.x": torch.zeros(1)}), r"blocks\.9\.x is in the file, but of no such block"),
    ],
)
def test_weights_of_another_shape_or_name_are_refused(dit: Any, folder: Path, change: Any, text: str) -> None:
    with pytest.raises(rfc.PredictorError, match=text):
        rfc.eager.cached(dit[0], rfc.DisCa(predictor=damaged(folder, change)))


def test_a_damaged_file_is_refused(dit: Any, folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for data in (b"", whole[:100], whole[:-4], b"\x05" + bytes(7) + b"hello"):
        (folder / WEIGHTS).write_bytes(data)
        with pytest.raises(rfc.PredictorError, match="no safetensors file"):
            rfc.eager.cached(dit[0], rfc.DisCa(predictor=folder))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a predictor's description"),
        ("[]", "expected a predictor's description of schema version 1, got None"),
        ('{"schema_version": 1, "channels": 16, "blocks": 1000000}', "blocks must be an integer from 1 to 64, got 1000000"),
        ('{"schema_version": 1, "channels": true, "blocks": 1}', "channels must be an integer from 1 to 1048576, got True"),
    ],
)
def test_a_description_that_is_none_is_refused(dit: Any, folder: Path, text: str, said: str) -> None:
    (folder / CONFIG).write_text(text)
    with pytest.raises(rfc.PredictorError, match=said):
        rfc.eager.cached(dit[0], rfc.DisCa(predictor=folder))


def test_another_model_is_refused_with_both_names(made: Path) -> None:
    model, _ = FAMILIES["pixart"]()
    with pytest.raises(
        rfc.PredictorError,
        match="model_class: the predictor was trained for DiTTransformer2DModel, the model's is PixArtTransformer2DModel",
    ):
        rfc.eager.cached(model, rfc.DisCa(predictor=made))
    flux, _ = FAMILIES["flux"]()
    with pytest.raises(rfc.PredictorError, match="has blocks of the classes FluxTransformerBlock, FluxSingleTransformerBlock"):
        rfc.eager.cached(flux, rfc.DisCa(predictor=made))


def test_a_method_that_asks_what_no_predictor_can_is_refused(dit: Any, made: Path) -> None:
    predicted, every = rfc.DisCa(predictor=made).estimator, rfc.Every(interval=2)
    with pytest.raises(rfc.PredictorError, match="granularity 'output', got None"):
        rfc.eager.cached(dit[0], rfc.Method(estimator=predicted, schedule=every))
    kept = rfc.Stored(estimator=predicted, outputs=torch.bfloat16)
    with pytest.raises(rfc.PredictorError, match="stays in the model's type"):
        rfc.eager.cached(dit[0], rfc.Method(estimator=kept, schedule=every, granularity="output"))


def test_the_shipped_predictor_is_small_and_that_of_the_digits_model() -> None:
    assert (DIGITS_PREDICTOR / WEIGHTS).stat().st_size < 2_000_000
    predictor = rfc.DisCa(predictor=DIGITS_PREDICTOR).estimator.load(load_digits()[0])  # type: ignore[attr-defined]
    assert (predictor.channels, predictor.training) == (128, False)
    assert not any(parameter.requires_grad for parameter in predictor.parameters())
