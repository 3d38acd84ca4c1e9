"""Programs take any memory layout of their inputs, whatever the example's was."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from families import FAMILIES, sample
from torch import Tensor, nn

import rfc
import rfc_fx
from rfc_fx.capture.clean import VIEWS_OF_ONE_LAYOUT

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a slice of a longer tensor": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
    "every second entry": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "one noise for all samples, expanded": lambda x: x[:1].expand(x.shape),
    "axes in another order": lambda x: x.transpose(1, -1).contiguous().transpose(1, -1),
    "samples last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
}


def cogvideox() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=16,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
    )
    angles = torch.rand(8, 16)
    call = {
        "hidden_states": torch.randn(2, 2, 4, 4, 4),
        "image_rotary_emb": (angles.cos(), angles.sin()),
        "encoder_hidden_states": torch.randn(2, 6, 16),
        "timestep": torch.tensor([500, 500]),
    }
    return model.eval(), call


MODELS = {"cogvideox": cogvideox, "sd3": FAMILIES["sd3"], "wan": FAMILIES["wan"]}


@pytest.mark.parametrize("name", ["cogvideox", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd3", "wan"))])
def test_any_layout_of_the_inputs_is_taken_after_a_contiguous_call(name: str) -> None:
    model, call = MODELS[name]()
    cached = rfc_fx.transform(model, rfc.FullCompute(), example_inputs=call)
    assert not any(node.target in VIEWS_OF_ONE_LAYOUT for node in cached.compiled.captured.graph.nodes)
    with torch.no_grad():
        for layout in LAYOUTS.values():
            for arguments in ("hidden_states",), ("hidden_states", "encoder_hidden_states"):
                laid = {**call, **{argument: layout(call[argument]) for argument in arguments}}
                cached.reset()
                torch.testing.assert_close(sample(cached(**laid)), sample(model(**laid)))
    assert len(cached.driver.programs) == 1
