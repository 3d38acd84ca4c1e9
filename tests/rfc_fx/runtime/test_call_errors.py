"""A call that the plain model refuses says whose call it was, and the next one is none the worse for it."""

from typing import Any

import pipelines
import pytest
import torch
from families import shared_model

import rfc
import rfc_fx

pytestmark = pytest.mark.usefixtures("captured_once")


def notes(error: pytest.ExceptionInfo[Any]) -> str:
    return "\n".join(getattr(error.value, "__notes__", []))


WRONG: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "channels": ({"hidden_states": torch.zeros(2, 5, 8, 8)}, RuntimeError),
    "rank": ({"hidden_states": torch.zeros(2, 4, 8)}, RuntimeError),
    "dtype": ({"hidden_states": torch.zeros(2, 4, 8, 8, dtype=torch.float64)}, RuntimeError),
    "batch": ({"hidden_states": torch.zeros(3, 4, 8, 8)}, RuntimeError),
    "nothing": ({"hidden_states": None}, AttributeError),
}


@pytest.mark.parametrize("method", [rfc.RFC(), rfc.ToCa(), rfc.Chebyshev(num_steps=10)], ids=["RFC", "tokens", "placed"])
def test_what_the_plain_model_refuses_is_its_own_error_with_the_name_of_the_model_and_the_call(method: rfc.Method) -> None:
    plain, call = shared_model("dit")
    model = rfc_fx.transform(plain, method)
    with torch.no_grad():
        model(**call)
        for wrong, kind in WRONG.values():
            with pytest.raises(kind) as expected:
                plain(**{**call, **wrong})
            with pytest.raises(kind) as error:
                model(**{**call, **wrong})
            assert str(error.value) == str(expected.value)
            assert "DiTTransformer2DModel: raised while the plain model was run and traced for a call with hidden_states" in notes(error)
        assert len(model.cache) == 1
        model.reset()
        assert torch.equal(model(**call).sample, plain(**call).sample)


def test_what_a_program_refuses_names_the_model() -> None:
    plain, call = shared_model("dit")
    model = rfc_fx.transform(plain)
    with torch.no_grad():
        expected = model(**call).sample
        with pytest.raises(IndexError) as error:
            model(**{**call, "class_labels": torch.tensor([99, 99])})
        assert notes(error) == "DiTTransformer2DModel: raised by a program that was captured from the model"
        model.reset()
        assert torch.equal(model(**call).sample, expected)


def test_arguments_that_the_forward_does_not_have_are_named_with_the_model() -> None:
    plain, call = shared_model("dit")
    with pytest.raises(TypeError, match=r"^DiTTransformer2DModel\.forward: got an unexpected keyword argument 'foo'; the signature is"):
        rfc_fx.transform(plain)(**call, foo=1)


def test_a_pipeline_whose_latents_do_not_fit_is_none_the_worse_for_it() -> None:
    pipe, prompt = pipelines.sd3()
    plain = pipelines.run(pipe, prompt())
    rfc_fx.accelerate(pipe, rfc.FullCompute(), config=rfc_fx.Config(hoist=False), compile=False)
    with pytest.raises(RuntimeError) as error:
        pipelines.run(pipe, prompt(), latents=torch.zeros(1, 5, 8, 8))
    assert notes(error).startswith(
        "SD3Transformer2DModel: raised while the plain model was run and traced for a call with hidden_states (2, 5,"
    )
    assert torch.equal(pipelines.run(pipe, prompt()), plain)
