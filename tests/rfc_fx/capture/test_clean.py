"""Programs take any memory layout of their inputs, whatever the example's was."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from families import FAMILIES, sample
from torch import Tensor, fx, nn

import rfc
import rfc_fx
from rfc_fx.capture.clean import VIEWS_OF_ONE_LAYOUT
from rfc_fx.capture.export import capture
from rfc_fx.ir.ops import aten

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


class Offsets(nn.Module):
    """Where the rows of each expert end, as NucleusMoEImage's grouped product takes them."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        ends = torch.full((4,), 3, device=hidden_states.device).cumsum(0, dtype=torch.int32)
        masked = (hidden_states > 0).cumsum(-1, dtype=torch.int8)
        return hidden_states[ends.long() - 3] + masked.sum(-1, keepdim=True)[ends.long() - 3] + hidden_states.double().cumsum(0).float()[:4]


def test_running_sums_of_integers_are_of_int64_and_cast() -> None:
    x = torch.randn(12, 3)
    captured = capture(Offsets(), {"hidden_states": x})
    sums = [node for node in captured.graph.nodes if node.target is aten.cumsum.default]
    assert [node.meta["val"].dtype for node in sums] == [torch.int64, torch.int64, torch.float64]
    assert not any(node.kwargs for node in sums)
    assert torch.equal(fx.GraphModule(nn.Module(), captured.graph)(x)[0], Offsets()(x))
