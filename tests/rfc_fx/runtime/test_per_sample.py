"""decision="per_sample": no sample's result depends on its batch mates, and the programs are those of a batch of one."""

import math
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from families import moved, sample, shared_model
from torch import nn

import rfc
import rfc_fx

pytestmark = pytest.mark.usefixtures("captured_once")

STEPS = 10
METHOD = rfc.RFC(tau=0.5)


def generation(model: Any, kwargs: dict[str, Any], scale: torch.Tensor) -> list[torch.Tensor]:
    """Predictions of a generation whose samples swing with different strength, so that their decisions differ."""
    start, calls = kwargs["hidden_states"], []
    direction = torch.randn(start.shape[1:], generator=torch.Generator().manual_seed(3))
    for i in range(STEPS):
        latent = start + math.sin(2 * i) * scale.view(-1, *(1,) * direction.dim()) * direction
        calls.append({**moved(kwargs, i, STEPS), "hidden_states": latent})
    with torch.no_grad(), model.generation():
        return [sample(model(**call)) for call in calls]


def rows(kwargs: dict[str, Any], chosen: list[int]) -> dict[str, Any]:
    """A batch of some of the samples of a batch of two."""
    return {key: value[chosen] if isinstance(value, torch.Tensor) and len(value) == 2 else value for key, value in kwargs.items()}


@pytest.mark.parametrize("family", ["dit", pytest.param("flux", marks=pytest.mark.slow)])
def test_a_sample_is_the_same_to_the_last_bit_with_any_batch_mates(family: str) -> None:
    model, kwargs = shared_model(family)
    if kwargs["hidden_states"].shape[0] != 2:
        kwargs = {key: torch.cat([v, v]) if isinstance(v, torch.Tensor) and len(v) == 1 and v.dim() > 0 else v for key, v in kwargs.items()}
    calm, wild = 0.01, 0.3
    made = {
        name: rfc_fx.transform(model, METHOD, config=rfc_fx.Config(decision=name))  # type: ignore[arg-type]
        for name in ("per_sample", "batch")
    }
    drawn = {name: generation(cached, kwargs, torch.tensor([calm, wild])) for name, cached in made.items()}
    alone = generation(rfc_fx.transform(model, METHOD), rows(kwargs, [0]), torch.tensor([calm]))
    mirrored = generation(made["per_sample"], rows(kwargs, [1, 0]), torch.tensor([wild, calm]))
    assert all(torch.equal(batch[:1], one) for batch, one in zip(drawn["per_sample"], alone, strict=True))
    assert all(torch.equal(batch[1:], one) for batch, one in zip(mirrored, alone, strict=True))
    shared = made["batch"].stats.phases  # with one decision for both, the calm sample follows the wild one
    own = made["per_sample"].contexts["default[1]"].phases
    assert shared != own
    assert max(float((batch[:1] - one).abs().max()) for batch, one in zip(drawn["batch"], alone, strict=True)) > 1e-4


def test_all_steps_full_give_the_models_own_results() -> None:
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.0), config=rfc_fx.Config(decision="per_sample"))
    result = cached(**kwargs)
    expected = model(**kwargs)
    assert type(result) is type(expected)
    torch.testing.assert_close(result.sample, expected.sample)
    assert isinstance(cached(**kwargs, return_dict=False), tuple)


@pytest.mark.usefixtures("no_recompiles")
def test_every_batch_size_runs_on_the_same_frames() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, kwargs = shared_model("dit")
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    cached = rfc_fx.transform(model, METHOD, config=rfc_fx.Config(decision="per_sample"))
    compiled = torch.compile(cached, fullgraph=True, backend=counter)
    for chosen in ([0, 1], [0], [0, 1, 0, 1]):
        cached.reset()
        generation(compiled, rows(kwargs, chosen), torch.linspace(0.01, 0.3, len(chosen)))
    assert counter.frame_count == 3
    assert not torch._dynamo.utils.counters["graph_break"]
    assert sorted(cached.contexts) == [f"default[{i}]" for i in range(4)]


def test_named_contexts_are_kept_for_each_sample() -> None:
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, METHOD, config=rfc_fx.Config(decision="per_sample"))
    for name in ("cond", "uncond"):
        with cached.cache_context(name):
            cached(**kwargs)
    assert sorted(cached.contexts) == ["cond[0]", "cond[1]", "uncond[0]", "uncond[1]"]
    assert 2 * cached.plan().state_bytes == rfc_fx.transform(model, METHOD, example_inputs=kwargs).plan().state_bytes


class Mixing(nn.Module):
    """Every sample reads the batch's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.a(hidden_states - hidden_states.mean(0, keepdim=True))


class Shifted(Mixing):
    """Reads a table with one row for each token."""

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.a(hidden_states + table)


class Listed(Mixing):
    """Takes and returns a list with a tensor per sample."""

    def forward(self, x: list[torch.Tensor], t: torch.Tensor, cap_feats: list[torch.Tensor]) -> tuple[list[torch.Tensor], dict[str, Any]]:
        y = torch.stack(x)
        return list((y + self.a(y + torch.stack(cap_feats))).unbind()), {}


def test_lists_of_samples_come_apart_and_go_together() -> None:
    model = Listed().eval()
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.0), config=rfc_fx.Config(decision="per_sample"))
    call = {"x": [torch.randn(3, 4) for _ in range(3)], "t": torch.ones(3), "cap_feats": [torch.randn(3, 4) for _ in range(3)]}
    with torch.no_grad():
        (result, nothing), (expected, _) = cached(**call), model(**call)
    assert nothing == {}
    torch.testing.assert_close(result, expected)


def test_a_model_that_mixes_its_samples_is_refused() -> None:
    cached = rfc_fx.transform(Mixing().eval(), config=rfc_fx.Config(decision="per_sample"))
    with (
        pytest.raises(rfc_fx.SignatureError, match=r"Mixing: decision='per_sample': the 2 samples alone give another result"),
        torch.no_grad(),
    ):
        cached(torch.randn(2, 3, 4), torch.tensor([1.0]))


def test_a_shared_argument_as_long_as_the_batch_is_named() -> None:
    cached = rfc_fx.transform(Shifted().eval(), config=rfc_fx.Config(decision="per_sample"))
    call = {"hidden_states": torch.randn(2, 3, 4), "timestep": torch.tensor([1.0])}
    with torch.no_grad():
        cached(**call, table=torch.randn(3, 4))
        with pytest.raises(rfc_fx.SignatureError, match="or one of hidden_states, table belongs to all samples and is 3 long by chance"):
            cached(**{**call, "hidden_states": torch.randn(3, 3, 4)}, table=torch.randn(3, 4))
