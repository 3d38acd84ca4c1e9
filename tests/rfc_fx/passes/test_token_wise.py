"""Token-wise steps in the graph: equal to the twin, legal by structure, compiled once, and counted."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import drawing
import pytest
import torch
import torch._dynamo.testing
from choosing import turns
from drawing import difference
from families import FAMILIES, moved, sample, shared_model
from tolerances import INDUCTOR, PREPARED, SAME_GRAPH
from torch import Tensor, nn

import rfc
import rfc.eager
import rfc_fx
from rfc.phase import is_partial
from rfc.token_selection import Place
from rfc_fx.errors import IllegalGraphError, NoSiteError, RFCError
from rfc_fx.passes.verify import verify_programs
from rfc_fx.runtime.summary import pattern
from rfc_fx.sites.token_wise import attention_of, work_of

pytestmark = pytest.mark.usefixtures("captured_once")

STEPS = 12
generation = partial(drawing.generation, steps=STEPS)

METHODS: dict[str, rfc.Method] = {
    "toca": rfc.ToCa(num_steps=STEPS, ratio=0.2),
    "toca-value": rfc.ToCa(num_steps=STEPS, ratio=0.2, score="value", grid=(2, 2)),
    "duca": rfc.DuCa(num_steps=STEPS, ratio=0.3),
    "duca-random": rfc.DuCa(num_steps=STEPS, ratio=0.3, score="random", interval=4),
    "duca-attention": rfc.DuCa(num_steps=STEPS, ratio=0.3, score="attention", interval=6, parts=2),
}

SLOW_PAIRS = [pytest.param(*pair, marks=pytest.mark.slow) for pair in product(["pixart", "wan"], METHODS)]

COMPILED = {("dit", "duca", "eager")}
"""With which the count of frames is always tested."""

MADE = {name: partial(shared_model, name) for name in FAMILIES}
"""One model of each family: no test here changes it."""


def some_tokens(ratio: float, steps: list[str], **settings: Any) -> rfc.Method:
    """A method that computes this share of the tokens in all layers and PARTIAL steps."""
    tokens = rfc.Tokens(ratio=ratio, parts=1, step_weight=0.0, layer_weight=0.0, emphasis=1.0, **settings)
    return rfc.Method(estimator=rfc.Reuse(), schedule=rfc.Phased(phases=steps, period=3.0), tokens=tokens)


# --- laws ------------------------------------------------------------------------------------------------------------


SLOW = pytest.mark.slow
FEW = [pytest.param(family, marks=() if family in ("dit", "flux") else SLOW) for family in FAMILIES]


@pytest.mark.parametrize(("family", "method"), [*turns(["dit", "sd3", "flux"], METHODS), *SLOW_PAIRS])
def test_token_wise_steps_are_those_of_the_twin(family: str, method: str) -> None:
    model, kwargs = MADE[family]()
    twin, graph = rfc.eager.cached(model, METHODS[method]), rfc_fx.transform(model, METHODS[method])
    for _ in range(2):  # the second begins with what the first left in the state
        expected, got = generation(twin, kwargs), generation(graph, kwargs)
        assert graph.stats.phases == twin.stats.phases == list(METHODS[method].schedule.phases)  # type: ignore[attr-defined]
        assert difference(got, expected) <= SAME_GRAPH
    assert len(set(graph.stats.phases)) >= 4


@pytest.mark.parametrize(("family", "method"), turns(["dit", "flux"], ["toca", "duca"]))
def test_what_the_state_holds_is_what_the_twin_holds(family: str, method: str) -> None:
    model, kwargs = MADE[family]()
    twin, graph = rfc.eager.cached(model, METHODS[method]), rfc_fx.transform(model, METHODS[method])
    generation(twin, kwargs, steps=9), generation(graph, kwargs, steps=9)
    (run,), (context,) = twin._runs.values(), graph.driver.generations
    for name, site in graph.guarded.tokens.items():
        (own,) = (own for module, own in run.token_states.items() if name == module or name.startswith(f"{module}."))
        assert site.place.tokens == own["age"].shape[1]
        assert torch.equal(context.state[f"{name}.tokens.age"], own["age"])
        assert difference(context.state[f"{name}.tokens.score"], own["score"]) <= SAME_GRAPH
    oldest = max(float(own["age"].max()) for own in run.token_states.values())
    assert 0 < oldest <= 5
    if "last.x" in context.state:
        assert run.last is not None
        assert difference(context.state["last.x"], run.last) <= SAME_GRAPH


@pytest.mark.parametrize("family", ["dit", pytest.param("pixart", marks=SLOW), pytest.param("sd3", marks=SLOW), "wan"])
@torch.no_grad()
def test_with_all_tokens_every_feed_forward_is_recomputed_from_the_reused_attention(family: str) -> None:
    model, kwargs = MADE[family]()
    phases = ["FULL", *["PARTIAL_1"] * 3, "FULL", "PARTIAL_1"]
    got = generation(rfc_fx.transform(model, some_tokens(1.0, phases)), kwargs, steps=len(phases))
    attentions = [module for module in model.modules() if hasattr(module, "to_q")]
    kept: dict[nn.Module, Any] = {}
    computed = {module: module.forward for module in attentions}

    def attend(module: nn.Module, is_full: bool, *args: Any, **named: Any) -> Any:
        if is_full:
            kept[module] = computed[module](*args, **named)
        return kept[module]

    try:
        for step, phase in enumerate(phases):
            for module in attentions:
                module.forward = lambda *args, m=module, full=phase == "FULL", **named: attend(m, full, *args, **named)
            assert difference(got[step], sample(model(**moved(kwargs, step, len(phases))))) <= 4 * SAME_GRAPH  # rows in another order
    finally:
        for module in attentions:
            del module.forward


@pytest.mark.parametrize("family", FEW)
def test_with_no_token_a_partial_step_is_reuse(family: str) -> None:
    model, kwargs = MADE[family]()
    phases = ["FULL", "PARTIAL_1", "PARTIAL_1", "FULL", "PARTIAL_1", "PARTIAL_1"]
    none = rfc_fx.transform(model, some_tokens(0.0, phases))
    fora = rfc_fx.transform(model, rfc.Method(estimator=rfc.Reuse(), schedule=rfc.Listed(full_steps=[0, 3])))
    assert torch.equal(generation(none, kwargs, steps=6), generation(fora, kwargs, steps=6))
    assert none.plan().share("PARTIAL_1") == none.plan().estimate_share


@pytest.mark.parametrize("family", FEW)
def test_law_1_full_steps_are_the_model_bit_for_bit(family: str) -> None:
    model, kwargs = MADE[family]()
    for method in (rfc.ToCa(interval=1, num_steps=1), rfc.DuCa(interval=1, num_steps=1)):  # beyond the list all steps are full
        cached = rfc_fx.transform(model, method)
        assert torch.equal(generation(cached, kwargs, steps=4), generation(model, kwargs, steps=4))
        assert cached.stats.phases == ["FULL"] * 4


@pytest.mark.parametrize("family", [pytest.param("dit", marks=SLOW), "flux"])
def test_law_3_with_unchanged_inputs_every_phase_gives_the_full_output(family: str) -> None:
    model, kwargs = MADE[family]()
    cached = rfc_fx.transform(model, rfc.DuCa(num_steps=STEPS, ratio=0.3))
    with torch.no_grad():
        outputs = [sample(cached(**kwargs)) for _ in range(STEPS)]
    assert {"FULL", "PARTIAL_2", "REUSE"} < set(cached.stats.phases)
    assert max(difference(output, outputs[0]) for output in outputs) <= 4 * SAME_GRAPH  # products of fewer rows


@pytest.mark.parametrize("method", [pytest.param("toca", marks=SLOW), "duca"])
def test_law_9_a_result_never_depends_on_an_earlier_generation(method: str) -> None:
    model, kwargs = MADE["flux"]()
    expected = generation(rfc_fx.transform(model, METHODS[method]), kwargs)
    used = rfc_fx.transform(model, METHODS[method])
    generation(used, {**kwargs, "hidden_states": torch.full_like(kwargs["hidden_states"], float("nan"))}, steps=5)
    assert torch.equal(generation(used, kwargs), expected)


@pytest.mark.parametrize("method", ["toca", pytest.param("duca", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["dit", pytest.param("sd3", marks=pytest.mark.slow)])
def test_other_ways_to_run_the_same_programs_agree(family: str, method: str) -> None:
    model, kwargs = MADE[family]()
    expected = generation(rfc_fx.transform(model, METHODS[method]), kwargs)
    assert torch.equal(generation(rfc_fx.transform(model, METHODS[method], config=rfc_fx.Config(regional=True)), kwargs), expected)
    hoisted = rfc_fx.transform(model, METHODS[method], config=rfc_fx.Config(hoist=True))
    hoisted.prepare([float(moved(kwargs, i, STEPS)["timestep"][0]) for i in range(STEPS)])
    assert difference(generation(hoisted, kwargs), expected) <= PREPARED
    alone = rfc_fx.transform(model, METHODS[method], config=rfc_fx.Config(decision="per_sample"))
    assert difference(generation(alone, kwargs), expected) <= PREPARED


@pytest.mark.parametrize("outputs", [torch.bfloat16, torch.int8])
def test_computed_tokens_are_kept_in_the_type_of_the_state(outputs: torch.dtype) -> None:
    model, kwargs = MADE["dit"]()
    kept = rfc.Stored(estimator=rfc.Reuse(), outputs=outputs)
    method = rfc.Method(estimator=kept, schedule=METHODS["duca"].schedule, tokens=METHODS["duca"].tokens)  # type: ignore[attr-defined]
    got = generation(rfc_fx.transform(model, method), kwargs)
    assert difference(got, generation(rfc.eager.cached(model, method), kwargs)) <= SAME_GRAPH
    assert 0 < difference(got, generation(rfc_fx.transform(model, METHODS["duca"]), kwargs)) < 1e-2


def test_a_type_for_differences_changes_no_bit_where_there_are_none() -> None:
    model, kwargs = MADE["dit"]()
    plain = rfc_fx.transform(model, METHODS["duca"], config=rfc_fx.Config(state_dtype=torch.int8))
    assert torch.equal(generation(plain, kwargs), generation(rfc_fx.transform(model, METHODS["duca"]), kwargs))


# --- compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_recompiles")
@pytest.mark.parametrize(
    ("family", "method", "backend"),
    [
        pytest.param(family, method, backend, marks=() if (family, method, backend) in COMPILED else pytest.mark.slow)
        for family in ("dit", "flux")
        for method in ("toca", "duca")
        for backend in ("eager", "aot_eager")
    ],
)
def test_law_5_one_frame_per_program_and_none_for_another_table(family: str, method: str, backend: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, kwargs = shared_model(family, layers=1)
    make = {"toca": rfc.ToCa, "duca": rfc.DuCa}[method]
    settings = {"toca": {"ratio": 0.2}, "duca": {"ratio": 0.3}}[method]
    chosen, wider = (make(num_steps=STEPS, **settings, **more) for more in ({}, {"interval": 6}))
    shorter = make(num_steps=9, **settings)
    cached, plain = (rfc_fx.transform(model, chosen) for _ in range(2))
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(cached, fullgraph=True, backend=counter)
    for again in (chosen, chosen, wider, shorter):
        cached.method = plain.method = again
        steps = len(again.schedule.phases)
        assert difference(generation(compiled, kwargs, steps=steps), generation(plain, kwargs, steps=steps)) <= SAME_GRAPH
        assert cached.stats.phases == list(again.schedule.phases)
    assert counter.frame_count == len(chosen.schedule.branches)
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()


def test_another_interval_is_what_ages_are_measured_in() -> None:
    model, kwargs = MADE["dit"]()
    cached = rfc_fx.transform(model, rfc.ToCa(interval=2, num_steps=STEPS, ratio=0.2))
    generation(cached, kwargs)
    for interval in (5, 7):
        cached.method = rfc.ToCa(interval=interval, num_steps=STEPS, ratio=0.2)
        expected = generation(rfc.eager.cached(model, cached.method), kwargs)
        assert difference(generation(cached, kwargs), expected) <= SAME_GRAPH
    with pytest.raises(RFCError, match="needs other programs"):
        cached.method = rfc.ToCa(interval=5, num_steps=STEPS, ratio=0.1)


@pytest.mark.compile
@pytest.mark.parametrize("method", ["toca", "duca"])
@pytest.mark.slow
def test_compiled_by_inductor_token_wise_steps_are_the_same(method: str) -> None:
    torch._dynamo.reset()
    model, kwargs = MADE["dit"]()
    cached, plain = (rfc_fx.transform(model, METHODS[method]) for _ in range(2))
    got = generation(torch.compile(cached, fullgraph=True), kwargs)
    assert difference(got, generation(plain, kwargs)) <= INDUCTOR
    torch._dynamo.reset()


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "method"), turns(["dit", "sd3", "flux"], METHODS))
def test_tokens_cost_more_than_an_estimate_and_less_than_a_full_step_and_reuse_next_to_nothing(family: str, method: str) -> None:
    model, kwargs = MADE[family]()
    cached = rfc_fx.transform(model, METHODS[method], example_inputs=kwargs)
    plan, phases = cached.plan(), METHODS[method].schedule.branches
    shares = [plan.share(phase) for phase in phases if is_partial(phase)]
    assert shares == sorted(shares)
    assert plan.estimate_share <= shares[0] < shares[-1] < 1
    if "REUSE" in phases:
        assert plan.share("REUSE") < 0.5 * plan.estimate_share + 0.05
    for phase in phases[1:]:
        assert not [node for node in cached.programs[phase].graph.nodes if node.op == "call_module"]


def test_the_flops_of_a_partial_step_are_those_of_its_rows() -> None:
    model, kwargs = MADE["dit"]()
    method = METHODS["toca"]
    plan = rfc_fx.transform(model, method, example_inputs=kwargs).plan()
    row = 2 * 2 * 16 * 64  # a multiply-add is two, there and back
    for phase in method.tokens.phases:  # type: ignore[attr-defined]
        rows = 2 * sum(method.tokens.count(phase, Place(layer, 2, 16, None)) for layer in range(2))  # type: ignore[attr-defined]
        assert plan.phase_flops[phase] - plan.estimate_flops == rows * row


def test_scores_by_value_cost_nothing_and_by_attention_the_map() -> None:
    model, kwargs = MADE["dit"]()
    full = {
        score: rfc_fx.transform(model, rfc.ToCa(score=score), example_inputs=kwargs).plan().full_flops for score in ("attention", "value")
    }
    assert full["value"] == rfc_fx.transform(model, rfc.FORA(), example_inputs=kwargs).plan().full_flops
    assert full["attention"] - full["value"] == 2 * 2 * (2 * 16 * 16 * 8) * 2  # samples, heads, q k^T, layers


def test_the_state_is_what_the_plan_announced_and_reuse_adds_one_tensor() -> None:
    model, kwargs = MADE["dit"]()
    fora = rfc_fx.transform(model, rfc.FORA(), example_inputs=kwargs).plan().state_bytes
    toca = rfc_fx.transform(model, rfc.ToCa(), example_inputs=kwargs).plan()
    duca = rfc_fx.transform(model, rfc.DuCa(), example_inputs=kwargs).plan()
    tokens = 2 * 2 * (2 * 16 * 4)  # an age and a score for each token of two feed-forwards
    assert toca.state_bytes == fora + tokens == toca.alternatives["module"][None]
    assert duca.state_bytes == toca.state_bytes + 2 * 16 * 16 * 4
    assert "block" not in toca.alternatives


def test_the_summary_counts_every_phase_and_says_what_its_marks_mean() -> None:
    model, kwargs = MADE["dit"]()
    cached = rfc_fx.transform(model, METHODS["duca"])
    generation(cached, kwargs)
    plan, text = cached.plan(), str(cached.summary())
    saved = 1 - sum(plan.share(phase) for phase in cached.stats.phases) / STEPS
    assert f"{saved:.1%}" in text
    assert pattern(cached.stats) == "#-1-2#-33#4#"
    assert "# full, 1 to 4 some tokens, - reused" in text
    assert f"REUSE {plan.share('REUSE'):.2%}" in " ".join(text.split())


# --- structure -------------------------------------------------------------------------------------------------------


def test_feed_forwards_are_computed_by_tokens_and_the_rest_is_reused_with_a_reason() -> None:
    wanted = {"dit": ".ff.net", "pixart": ".ff.net", "sd3": ".ff.net", "wan": ".ffn.net"}
    for family, end in wanted.items():
        model, kwargs = MADE[family]()
        guarded = rfc_fx.transform(model, rfc.ToCa(), example_inputs=kwargs).guarded
        assert {name for name in guarded.tokens} == {site.name for site in guarded.sites if site.name.endswith(end)}
        assert len(guarded.tokens) + len(guarded.reused) == len(guarded.sites)
        assert all("is attention, in which every token meets others" in why for _, why in guarded.reused)


def test_joint_attention_scores_each_stream_by_its_own_columns() -> None:
    model, kwargs = MADE["flux"]()
    guarded = rfc_fx.transform(model, rfc.ToCa(), example_inputs=kwargs).guarded
    first = [site for name, site in guarded.tokens.items() if name.startswith("transformer_blocks.0")]
    scored = {site.place.tokens: site.attention and site.attention.tokens for site in first}
    assert scored == {5: slice(0, 5), 16: slice(5, 21)}  # text first
    assert {site.place.tokens: site.place.grid for site in first} == {5: None, 16: (4, 4)}
    assert {site.place.layers for site in first} == {4}
    assert not [name for name in guarded.tokens if name.startswith("single")]  # attention and feed-forward in one
    model, kwargs = MADE["sd3"]()
    guarded = rfc_fx.transform(model, rfc.ToCa(), example_inputs=kwargs).guarded
    assert all(site.attention and site.attention.tokens == slice(0, 16) for site in guarded.tokens.values())  # SD3 puts the text last


class Gated(nn.Module):
    """SwiGLU by halves, with a norm inside and a detour through heads."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(8, 32), nn.Linear(16, 8), nn.RMSNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, dim=-1)
        heads = self.norm((torch.nn.functional.silu(a) * b).view(x.shape[0], x.shape[1], 4, 4))
        centred = heads - heads.mean(-1, keepdim=True)
        return self.down(centred.transpose(1, 2).transpose(1, 2).flatten(2))


class Mixed(Gated):
    """Each token sees the mean of all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(1, keepdim=True))


class Positioned(Gated):
    """Each place has a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 16, 32))

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self.up(x) + self.places).chunk(2, dim=-1)
        return self.down(a * b)


class Softmaxed(Gated):
    """A competition among tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x)[..., :16].softmax(1))


class Folded(Gated):
    """Pairs of tokens are one row."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).reshape(x.shape[0], x.shape[1] // 2, 64)[..., :32].reshape(*x.shape[:2], 16))


class SelfAttention(nn.Module):
    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(8, 8) for _ in range(4))
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.to_q, self.to_k, self.to_v))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=0.3)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, ff: nn.Module, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.ff = nn.LayerNorm(8), SelfAttention(causal), nn.LayerNorm(8), ff

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ff(self.norm2(x))


class Small(nn.Module):
    """A transformer of no library."""

    def __init__(self, *feed_forwards: nn.Module, causal: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(ff, causal) for ff in feed_forwards)
        self.out = nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> tuple[Tensor]:
        x = hidden_states * (1 + timestep[:, None, None] / 1000)
        for block in self.blocks:
            x = block(x)
        return (self.out(x),)


SMALL = {"hidden_states": torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)), "timestep": torch.tensor([500.0, 500.0])}


@torch.no_grad()
def test_gates_norms_and_views_that_keep_tokens_apart_are_computed_for_some() -> None:
    model = Small(Gated(), Gated()).eval()
    phases = ["FULL", "PARTIAL_1", "PARTIAL_1", "REUSE"]
    some = rfc_fx.transform(model, some_tokens(0.4, phases), example_inputs=SMALL)
    assert list(some.guarded.tokens) == ["blocks.0.ff", "blocks.1.ff"]
    assert {site.attention.scale for site in some.guarded.tokens.values() if site.attention is not None} == {0.3}
    with torch.no_grad():
        outputs = [some(**moved(SMALL, step, 4))[0] for step in range(4)]
    everything = rfc_fx.transform(model, some_tokens(1.0, phases), example_inputs=SMALL)
    whole = [everything(**moved(SMALL, step, 4))[0] for step in range(4)]
    first = (outputs[1] - whole[1]).abs().amax(-1)
    assert torch.equal(outputs[0], whole[0])
    assert ((first > 1e-5).sum(-1) > 0).all()  # the tokens that were not computed
    assert torch.equal(outputs[2].isfinite(), torch.ones_like(outputs[2], dtype=torch.bool))
    program = some.programs["PARTIAL_1"]
    rows = [node.meta["val"].shape for node in program.graph.nodes if node.target is torch.ops.aten.linear.default]
    assert rows == [(2, 6, 32), (2, 6, 8)] * 2 + [(2, 16, 8)]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Mixed, r"mean\S* \(aten\.mean\.dim\) is not known"),
        (Positioned, r"add\S* \(aten\.add\.Tensor\) is not known"),
        (Softmaxed, r"softmax\S* \(aten\.softmax\.int\) is not known"),
        (Folded, r"reshape\S* \(aten\.reshape\.default\) is not known"),
    ],
)
def test_a_site_whose_work_mixes_or_distinguishes_tokens_is_reused(make: Callable[[], nn.Module], why: str) -> None:
    cached = rfc_fx.transform(Small(make(), Gated()).eval(), rfc.ToCa(), example_inputs=SMALL)
    reasons = {where: reason for where, reason in cached.guarded.reused if ".ff" in where}
    if make is Mixed:  # the mean is taken before the first heavy operation, so it is part of the input
        assert not reasons
        return
    assert list(cached.guarded.tokens) == ["blocks.1.ff"]
    (reason,) = reasons.values()
    assert re.search(why, reason), reason


def test_feed_forwards_without_an_attention_of_their_tokens_are_reused_unless_chance_chooses() -> None:
    model = Small(Gated(), causal=True).eval()
    with pytest.raises(NoSiteError) as error:
        rfc_fx.transform(model, rfc.DuCa(), example_inputs=SMALL)
    assert "no site works on each token for itself" in str(error.value)
    assert "blocks.0.ff: no attention of its 16 tokens to themselves before it in blocks.0 could score them" in str(error.value)
    assert rfc_fx.transform(model, rfc.DuCa(score="random"), example_inputs=SMALL).plan().share("REUSE") < 0.2


def test_the_work_of_a_site_is_found_in_its_region_and_in_the_graph() -> None:
    for family in ("dit", "sd3"):  # regions; and a graph in which all work stands by itself
        model, kwargs = MADE[family]()
        guarded = rfc_fx.transform(model, rfc.ToCa(), example_inputs=kwargs).guarded
        for site in guarded.sites:
            is_attention = attention_of(site) is not None
            assert is_attention == (site.name not in guarded.tokens)
            if not is_attention:
                assert [str(node.target) for node in work_of(site).nodes] == [
                    "aten.linear.default",
                    "aten.gelu.default",
                    "aten.linear.default",
                ]


@pytest.mark.parametrize("granularity", ["block", "stack"])
def test_coarser_sites_have_no_tokens_to_choose(granularity: str) -> None:
    model, kwargs = MADE["dit"]()
    with pytest.raises(ValueError, match=r"^transform: granularity: ToCa works on 'module', got"):
        rfc_fx.transform(model, rfc.ToCa(), example_inputs=kwargs, config=rfc_fx.Config(granularity=granularity))
    with pytest.raises(NoSiteError, match="no site works on each token for itself"):
        rfc_fx.transform(
            model, some_tokens(0.5, ["FULL", "PARTIAL_1"]), example_inputs=kwargs, config=rfc_fx.Config(granularity=granularity)
        )


def test_a_torch_cond_has_two_phases() -> None:
    model, kwargs = MADE["dit"]()
    with pytest.raises(
        RFCError, match=r"^Phased has the phases FULL, PARTIAL_1, .*, REUSE, a torch.cond has two; use dispatch='host'(\n|$)"
    ):
        rfc_fx.transform(model, rfc.DuCa(), example_inputs=kwargs, config=rfc_fx.Config(dispatch="cond"))


def test_every_phase_writes_what_is_its_own() -> None:
    model, kwargs = MADE["dit"]()
    cached = rfc_fx.transform(model, rfc.DuCa(ratio=0.3), example_inputs=kwargs)
    programs = cached.programs
    sites = [f"transformer_blocks.{i}.ff.net" for i in range(2)]
    wanted = [*(f"{site}.{slot}" for site in sites for slot in ("O", "tokens.age")), "last.x"]
    assert sorted(programs["PARTIAL_1"].written()) == sorted(wanted)
    assert sorted(programs["FULL"].written()) == sorted(cached.guarded.slots)
    assert programs["REUSE"].written() == programs["ESTIMATE"].written() == []
    assert programs["REUSE"].read() == ["last.x"]
    for swapped, law in (
        ({"PARTIAL_1": replace(programs["ESTIMATE"], phase="PARTIAL_1")}, "only FULL writes"),
        ({"REUSE": replace(programs["PARTIAL_1"], phase="REUSE")}, "only FULL writes"),
        ({"REUSE": replace(programs["ESTIMATE"], phase="REUSE")}, "REUSE reads the stream behind the last block alone"),
        ({"REUSE": replace(programs["FULL"], phase="REUSE")}, "only FULL writes"),
    ):
        with pytest.raises(IllegalGraphError, match=law):
            verify_programs(cached.guarded, {**programs, **swapped})


@pytest.mark.slow
def test_dit_xl_is_as_much_cheaper_as_published() -> None:
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        model = DiTTransformer2DModel(num_layers=28, sample_size=32, out_channels=8)  # DiT-XL/2 at 256 x 256
        kwargs = {
            "hidden_states": torch.empty(2, 4, 32, 32),
            "timestep": torch.empty(2, dtype=torch.long),
            "class_labels": torch.empty(2, dtype=torch.long),
        }
    for kind, published in ((rfc.ToCa, {3: 2.32}), (rfc.DuCa, {3: 2.48, 5: 3.78})):  # the tables of ProCache and of TaylorSeer
        plan = rfc_fx.transform(model.eval(), kind(), example_inputs=kwargs).plan()
        assert 50 * plan.full_flops == pytest.approx(23.74e12, rel=0.02)  # ToCa's scores need the attention map
        for interval, speed_up in published.items():
            spent = plan.full_flops * sum(map(plan.share, kind(interval=interval).schedule.phases))
            assert 23.74e12 / spent == pytest.approx(speed_up, rel=0.03)
