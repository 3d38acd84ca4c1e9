"""Sites are found by structure: the right ones in five families, at three granularities, with reasons for what is none."""

from functools import cache

import pytest
import torch
from families import FAMILIES, shared_model, wan_image
from torch import nn

import rfc
import rfc_fx
from benchmarks.coverage.specs import all_specs
from rfc_fx.capture.export import Captured, capture
from rfc_fx.errors import CaptureError, NoSiteError
from rfc_fx.ir.ops import shape
from rfc_fx.sites.find import find_sites, watched

MODULE_SITES = {
    "dit": ["transformer_blocks.0.attn1", "transformer_blocks.0.ff.net", "transformer_blocks.1.attn1", "transformer_blocks.1.ff.net"],
    "pixart": [f"transformer_blocks.{b}.{part}" for b in range(2) for part in ("attn1", "attn2", "ff.net")],
    "sd3": [f"transformer_blocks.{b}.{part}" for b in range(4) for part in (("attn", "attn2", "ff.net") if b < 2 else ("attn", "ff.net"))],
    "flux": [
        *(f"transformer_blocks.{b}.{part}" for b in range(2) for part in ("attn", "attn.to_add_out", "ff.net", "ff_context.net")),
        *(f"single_transformer_blocks.{b}" for b in range(2)),
    ],
    "wan": [f"blocks.{b}.{part}" for b in range(2) for part in ("attn1", "attn2", "ffn.net")],
}
BLOCK_SITES = {"dit": 2, "pixart": 2, "sd3": 4, "flux": 6, "wan": 2}


@cache
def captured_family(name: str) -> Captured:
    return capture(*shared_model(name))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attention_and_mlp_that_an_estimate_needs_is_a_site(family: str) -> None:
    captured = captured_family(family)
    found = find_sites(captured)
    assert [site.name for site in found.sites] == MODULE_SITES[family]
    assert all(shape(site.I)[-1] == shape(site.output)[-1] for site in found.sites)
    assert watched(found.sites, captured).name == MODULE_SITES[family][0]
    assert len(find_sites(captured, "block").sites) == BLOCK_SITES[family]
    (stack,) = find_sites(captured, "stack").sites
    assert stack.base is not None
    assert shape(stack.base) == shape(stack.output)


def test_the_text_stream_of_sd3_is_rejected_because_only_skipped_attention_reads_it() -> None:
    found = find_sites(captured_family("sd3"))
    text = [rejected for rejected in found.rejected if rejected.why == "no estimated step needs its output"]
    assert [rejected.where for rejected in text] == [
        f"transformer_blocks.{b}.{part}" for b in range(3) for part in ("attn.to_add_out", "ff_context.net")
    ]


def test_a_branch_that_never_sees_the_latent_is_not_watched() -> None:
    model, kwargs = wan_image()
    captured = capture(model, kwargs)
    assert watched(find_sites(captured).sites, captured).name == "blocks.0.attn1"


class Convolutions(nn.Module):
    """No residual branch at all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(hidden_states)))


def test_a_model_without_residual_branches_is_an_error_that_says_so() -> None:
    with pytest.raises(
        NoSiteError, match=r"Convolutions: no site found in \d+ nodes, so nothing could be cached:\n  the graph has no residual add"
    ):
        find_sites(capture(Convolutions(), {"hidden_states": torch.randn(2, 3, 4), "timestep": torch.tensor([1])}))


CALL = {"hidden_states": torch.randn(2, 3, 4), "timestep": torch.tensor([1])}


class Narrowing(Convolutions):
    """One good branch, and one whose first heavy operation has a rank more than its last."""

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = hidden_states + self.a(hidden_states)
        return x + self.b(torch.matmul(x.unsqueeze(1), self.b.weight).squeeze(1))


def test_a_rejected_branch_is_listed_with_its_reason() -> None:
    found = find_sites(capture(Narrowing(), CALL))
    assert [site.name for site in found.sites] == ["a"]
    assert [rejected.why for rejected in found.rejected] == ["input (2, 1, 3, 4) and output (2, 3, 4) differ in rank"]


class Flattened(Convolutions):
    """A branch that works on (samples x tokens, channels) at its end, as the experts of a mixture do."""

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.b(torch.relu(self.a(hidden_states)).flatten(0, 1)).view(hidden_states.shape)


def test_an_output_is_taken_where_it_has_the_rank_of_the_input() -> None:
    (site,) = find_sites(capture(Flattened(), CALL)).sites
    assert shape(site.I) == shape(site.output) == (2, 3, 4)


class Nested(nn.Module):
    """A block whose feed-forward ends in a residual of its own, and reads the attention's sum, but is added to the block's input."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Ending(), Ending()])

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


class Ending(Convolutions):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return x + (y + self.b(torch.relu(y)))


def test_the_outer_branch_wins_over_a_residual_at_its_end() -> None:
    found = find_sites(capture(Nested(), CALL))
    assert [site.name for site in found.sites] == ["blocks.0", "blocks.1"]
    assert all("lies inside the branch" in rejected.why for rejected in found.rejected)
    assert len(found.rejected) == 2


class Folding(Convolutions):
    """A branch that folds tokens into samples at its start, as convolutions over the frames of a video do, and forks at its end."""

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        y = self.a(hidden_states.flatten(0, 1)).view(hidden_states.shape)
        return hidden_states + (torch.relu(y) + self.b(y))


def test_an_input_is_taken_where_it_has_the_samples_of_the_output() -> None:
    (site,) = find_sites(capture(Folding(), CALL)).sites
    assert shape(site.I) == shape(site.output) == (2, 3, 4)
    assert site.I.op == "placeholder"


class Joined(Convolutions):
    """A skip that is joined and projected: between the two residual branches the stream itself is the result of heavy work."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.Linear(8, 4)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = hidden_states + self.a(hidden_states)
        x = self.skip(torch.cat([x, hidden_states], dim=-1))
        return x + self.b(x)


@pytest.mark.parametrize(("granularity", "sites"), [("module", ["a", "skip", "b"]), ("block", ["a", "skip", "b"]), ("stack", ["stack"])])
def test_the_projection_of_a_joined_skip_is_a_site(granularity: str, sites: list[str]) -> None:
    found = find_sites(capture(Joined(), CALL), granularity)
    assert [site.name for site in found.sites] == sites
    assert not found.rejected


class Early(Convolutions):
    """A residual layer on the text before any on the latent."""

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        text = text + self.a(text)
        return hidden_states + self.b(hidden_states + text.mean(1, keepdim=True))


def test_what_never_sees_the_latent_is_no_site() -> None:
    captured = capture(Early(), {**CALL, "text": torch.randn(2, 5, 4)})
    found = find_sites(captured)
    assert [site.name for site in found.sites] == ["b"]
    assert [rejected.why for rejected in found.rejected] == ["does not depend on the latent"]
    assert watched(found.sites, captured).name == "b"


class Branching(Convolutions):
    """A Python branch on a tensor's values."""

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if timestep.sum() > 3:
            return hidden_states + self.a(hidden_states)
        return hidden_states


def test_a_forward_that_cannot_be_traced_names_the_line() -> None:
    with pytest.raises(
        CaptureError,
        match=r"Branching: the forward's Python reads the values of timestep[^\n]*\n  at [^\n]*test_find.py:\d+: if timestep.sum\(\) > 3",
    ):
        capture(Branching(), {"hidden_states": torch.randn(2, 3, 4), "timestep": torch.tensor([1])})


class Counting(Convolutions):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return hidden_states + self.a(hidden_states)


def test_a_model_with_state_of_its_own_is_refused() -> None:
    with pytest.raises(CaptureError, match="Counting: forward writes to its buffers calls"):
        capture(Counting(), {"hidden_states": torch.randn(2, 3, 4), "timestep": torch.tensor([1])})


def test_weights_are_referenced_not_copied() -> None:
    captured = captured_family("dit")
    model, graph = captured.model, captured.graph
    targets = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    names = {f"model.{name}" for name, _ in (*model.named_parameters(), *model.named_buffers())}
    assert targets <= names


def test_with_tokens_a_reused_site_of_another_width_leaves_nothing_to_the_sites_before_it() -> None:
    """MiniMaxMusic3 ends in a projection that is a site of its own, in no block: once it is reused, no token is computed."""
    spec = all_specs()["MiniMaxMusic3Transformer1DModel"]
    model = spec.model(layers=1)
    with pytest.raises(NoSiteError, match=r"a PARTIAL step would compute nothing; [^\n]*:\n  proj_out: lies in no block"):
        rfc_fx.transform(model, rfc.ToCa(interval=3), example_inputs=spec.arguments(model))
