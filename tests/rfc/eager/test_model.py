"""The twin: the methods by replaced `forward`s, on tiny models of five families."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from choosing import rotated
from families import FAMILIES, Family, dit, flux, moved, sample, wan_image
from tolerances import FORECAST
from torch import Tensor, nn

from rfc import FORA, RCS, RFC, RFE, Every, FullCompute, Method, Projective, TaylorSeer
from rfc.eager.model import CachedEager, cached

METHODS: list[Method] = [
    FORA(interval=3),
    TaylorSeer(interval=3, order=2),
    RFC(tau=0.3),
    RFC(tau=0.3, order=2),
    Method(estimator=Projective(order=2), schedule=Every(interval=3)),
]

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
every_method = pytest.mark.parametrize("method", METHODS, ids=str)
families_and_methods = pytest.mark.parametrize(
    ("family", "method"),
    [pytest.param(FAMILIES[family], METHODS[int(i)]) for family, i in rotated(FAMILIES, map(str, range(len(METHODS))), partners=2)],
)
"""Each method with two families, each family with two methods."""


def generate(twin: nn.Module, kwargs: dict[str, Any], steps: int = 8) -> list[Tensor]:
    return [sample(twin(**moved(kwargs, step))) for step in range(steps)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def replaced(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


@contextmanager
def failing(module: nn.Module) -> Iterator[None]:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    hook = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


@every_family
@torch.no_grad()
def test_all_steps_full_is_the_model_bit_for_bit(family: Callable[[], Family]) -> None:
    model, kwargs = family()
    twin = cached(model, FullCompute())
    assert same(generate(twin, kwargs, 4), generate(model, kwargs, 4))
    assert twin.stats.phases == ["FULL"] * 4


@families_and_methods
@torch.no_grad()
def test_full_full_then_estimates_with_unchanged_inputs_are_the_model_bit_for_bit(family: Callable[[], Family], method: Method) -> None:
    model, kwargs = family()
    twin = cached(model, method)
    wanted = sample(model(**kwargs))
    for _ in range(4):
        assert torch.equal(sample(twin(**kwargs)), wanted)
    assert twin.stats.phases[-1] == "ESTIMATE"


@families_and_methods
def test_a_second_generation_repeats_the_first(family: Callable[[], Family], method: Method) -> None:
    model, kwargs = family()
    twin = cached(model, method)
    first, phases = generate(twin, kwargs), twin.stats.phases
    second = generate(twin, kwargs)  # recognised by its timestep
    assert twin.stats.phases == phases
    assert len(phases) == 8
    assert "ESTIMATE" in phases
    assert same(first, second)


@every_method
def test_a_generation_does_not_depend_on_what_was_generated_before(method: Method) -> None:
    model, kwargs = flux()
    used = cached(model, method)
    generate(used, {**kwargs, "hidden_states": -3 * kwargs["hidden_states"]}, 7)
    assert same(generate(used, kwargs), generate(cached(model, method), kwargs))


@every_method
def test_reset_starts_a_generation_where_the_timestep_does_not_tell(method: Method) -> None:
    model, kwargs = dit()
    twin = cached(model, method)
    generate(twin, {**kwargs, "hidden_states": -3 * kwargs["hidden_states"]}, 5)
    twin.reset()
    assert twin.stats.step == 0
    late = [sample(twin(**moved(kwargs, step))) for step in range(5, 10)]
    fresh = cached(model, method)
    assert same(late, [sample(fresh(**moved(kwargs, step))) for step in range(5, 10)])


@every_family
def test_skipped_steps_are_estimates_near_what_the_model_computes(family: Callable[[], Family]) -> None:
    model, kwargs = family()
    with torch.no_grad():
        wanted = generate(model, kwargs)
    for method in METHODS:
        twin = cached(model, method)
        for phase, got, right in zip(("FULL", "FULL", *[""] * 6), generate(twin, kwargs), wanted, strict=True):
            assert got.shape == right.shape
            assert not got.requires_grad
            assert got.isfinite().all()
            assert not phase or torch.equal(got, right)
            assert (got - right).norm() < 0.5 * right.norm()
        assert 2 <= twin.stats.nfc < 8


@every_family
def test_a_skipped_step_runs_no_projection_of_any_attention_or_mlp(family: Callable[[], Family]) -> None:
    model, kwargs = family()
    runs: list[str] = []
    heavy = ("to_q", "to_k", "to_out.0", "add_q_proj", "net.2", "net.0.proj")
    for name, module in model.named_modules():
        if "blocks" in name and name.endswith(heavy):
            module.register_forward_hook(lambda *_, name=name: runs.append(name))
    twin = cached(model, FORA(interval=3))
    for phase in ("FULL", "FULL", "ESTIMATE", "ESTIMATE", "FULL"):
        runs.clear()
        twin(**moved(kwargs, twin.stats.step))
        assert twin.stats.phases[-1] == phase
        assert bool(runs) == (phase == "FULL")


# --- the model is left alone -----------------------------------------------------------------------------------------


@every_family
def test_between_calls_the_model_is_untouched(family: Callable[[], Family]) -> None:
    model, kwargs = family()
    before = set(model.state_dict())
    twin = cached(model, RFC(tau=0.3))
    assert replaced(model) == []
    generate(twin, kwargs, 4)
    assert replaced(model) == []
    assert set(model.state_dict()) == before
    assert twin.model is model
    with torch.no_grad():
        plain = sample(model(**kwargs))
        assert torch.equal(plain, sample(family()[0](**kwargs)))


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_after_an_exception_the_model_is_untouched(step: int) -> None:
    model, kwargs = flux()
    twin = cached(model, FORA(interval=3))
    generate(twin, kwargs, step)
    with failing(model.proj_out), pytest.raises(RuntimeError, match="out of memory"):
        twin(**moved(kwargs, step))
    assert replaced(model) == []


def test_a_generation_begun_again_after_an_exception_gives_what_a_fresh_one_gives() -> None:
    model, kwargs = dit()
    method = TaylorSeer(interval=3, order=1)
    twin = cached(model, method)
    with failing(model.transformer_blocks[1]), pytest.raises(RuntimeError, match="out of memory"):
        twin(**moved(kwargs, 0))
    assert same(generate(twin, kwargs), generate(cached(model, method), kwargs))


def test_a_forward_that_others_set_on_a_module_stays() -> None:
    model, kwargs = dit()
    part = model.transformer_blocks[0].ff
    original = part.forward
    calls: list[int] = []

    def theirs(*args: Any, **named: Any) -> Any:
        calls.append(1)
        return original(*args, **named)

    part.forward = theirs
    cached(model, FullCompute())(**kwargs)
    assert calls == [1]
    assert part.forward is theirs


def test_two_twins_on_one_model_do_not_disturb_each_other() -> None:
    model, kwargs = flux()
    other = {**kwargs, "hidden_states": kwargs["hidden_states"].flip(0) * 2}
    alone = [generate(cached(model, RFC(tau=0.3)), kwargs), generate(cached(model, FORA(interval=3)), other)]
    a, b = cached(model, RFC(tau=0.3)), cached(model, FORA(interval=3))
    together = [(sample(a(**moved(kwargs, i))), sample(b(**moved(other, i)))) for i in range(8)]
    assert same([pair[0] for pair in together], alone[0])
    assert same([pair[1] for pair in together], alone[1])


@pytest.mark.parametrize(
    "family",
    [
        dit,
        flux,
    ],
)
def test_a_deep_copy_is_a_twin_of_its_own(family: Callable[[], Family]) -> None:
    model, kwargs = family()
    twin = cached(model, FORA(interval=3))
    wanted = generate(cached(model, FORA(interval=3)), kwargs)
    generate(twin, {**kwargs, "hidden_states": -kwargs["hidden_states"]}, 3)
    other = copy.deepcopy(twin)
    other.reset()
    assert same(generate(other, kwargs), wanted)
    assert twin.stats.step == 3


# --- decisions -------------------------------------------------------------------------------------------------------


def test_the_decisions_of_a_fixed_schedule_are_recorded() -> None:
    model, kwargs = dit()
    twin = cached(model, FORA(interval=3, warmup=2))
    generate(twin, kwargs, 9)
    assert "".join(phase[0] for phase in twin.stats.phases) == "FFEEFEEFE"
    assert twin.stats.nfc == 4
    assert twin.stats.eps == [None] * 9
    assert twin.stats.timestep == float(moved(kwargs, 8)["timestep"][0])


def test_rcs_measures_the_input_of_the_first_site() -> None:
    model, kwargs = dit()
    twin = cached(model, RFC(tau=float("inf"), warmup=2))
    seen: list[Tensor] = []
    norm = model.transformer_blocks[0].norm1
    norm.register_forward_hook(lambda *call: seen.append(call[2][0]))
    generate(twin, kwargs, 5)
    eps = twin.stats.eps
    assert twin.stats.phases == ["FULL"] * 2 + ["ESTIMATE"] * 3
    assert eps[0] is None
    for step in range(2, 5):
        forecast = seen[1] + (step - 1) * (seen[1] - seen[0])
        each = (seen[step] - forecast).abs().sum((1, 2)) / seen[step].abs().sum((1, 2))
        assert eps[step] == pytest.approx(float(each.mean()), rel=1e-5)


def test_tau_of_zero_computes_every_step() -> None:
    model, kwargs = dit()
    twin = cached(model, RFC(tau=0))
    with torch.no_grad():
        assert same(generate(twin, kwargs), generate(model, kwargs))
    assert twin.stats.nfc == 8


def test_rcs_watches_a_site_that_sees_the_latent() -> None:
    model, kwargs = wan_image()
    twin = cached(model, RFC(tau=0.3))
    generate(twin, kwargs, 6)
    assert all(eps is not None and eps > 0 for eps in twin.stats.eps[1:])


@pytest.mark.parametrize(
    "method",
    [FORA(interval=3), RFC()],
    ids=repr,
)
def test_the_next_generation_may_have_another_batch_size(method: Method) -> None:
    model, kwargs = dit()
    twin = cached(model, method)
    generate(twin, kwargs, 4)
    larger = {name: torch.cat([value, value.flip(0)]) for name, value in kwargs.items()}
    assert same(generate(twin, larger), generate(cached(model, method), larger))


# --- a site in the open ----------------------------------------------------------------------------------------------


class FeedForward(nn.Module):
    """An affine site: RFE of order 1 is exact for it."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ff = FeedForward()

    def forward(self, x: Tensor, timestep: float) -> Tensor:
        return x + self.ff(x)


@pytest.mark.parametrize("estimator", [RFE(order=1), Projective(order=1, ridge=1e-5)], ids=repr)
@torch.no_grad()
def test_an_affine_site_with_collinear_motion_is_computed_without_being_run(estimator: RFE | Projective) -> None:
    model = Residual()
    twin = cached(model, Method(estimator=estimator, schedule=Every(interval=5, warmup=2)))
    start, along = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for step, reached in enumerate([0.0, 1.0, 1.5, 3.5, 4.0, 9.0]):
        x = start + reached * along
        got, wanted = twin(x, 1.0 - step / 10), model(x, 0.0)  # also positionally
        assert (got - wanted).norm() <= FORECAST * wanted.norm() * (1 + reached)
    assert twin.stats.nfc == 2


def test_a_model_without_attention_and_mlp_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^Sequential: no attention \(with to_q\) or feed-forward module found to cache$"):
        cached(nn.Sequential(nn.Linear(2, 2)), FORA())


@every_family
def test_a_half_precision_model_stays_in_its_type(family: Callable[[], Family]) -> None:
    model, kwargs = family()
    half = {
        name: value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() and "timestep" not in name else value
        for name, value in kwargs.items()
    }
    twin: CachedEager = cached(model.bfloat16(), Method(estimator=RFE(order=2), schedule=RCS(tau=0.5)))
    for output in generate(twin, half):
        assert output.dtype == torch.bfloat16
        assert output.isfinite().all()
