"""Token-wise steps: which tokens are computed, what becomes of the others, and which step is what (ToCa, DuCa)."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from families import dit, moved, sample
from tolerances import ROUND
from torch import Tensor

import rfc
import rfc.eager
from rfc import Clock, DuCa, Method, Phased, Reuse, Taylor, ToCa, Tokens
from rfc.phase import is_partial
from rfc.published import countdown
from rfc.token_selection import (
    Operands,
    Place,
    aged,
    attention_received,
    layers,
    put,
    random_score,
    renewed,
    take,
    token_score,
    with_bonus,
)

CLOCK = Clock.at(2.0, 3.0, 4.0)
ONE = torch.tensor(1.0)


def letters(phases: Any) -> str:
    """F full, C conservative (tokens), A aggressive (the final layer alone)."""
    return "".join("F" if phase == "FULL" else "A" if phase == "REUSE" else "C" for phase in phases)


# --- steps -----------------------------------------------------------------------------------------------------------


def full_in_the_first_layer(interval: int, steps: int = 50) -> list[int]:
    """What the released code calls full: the first layer decides with the interval as it was before the step."""
    now, found = interval, []
    for left in reversed(range(steps)):
        if left == steps - 1 or left % now == 0:
            found.append(left)
            now = 2 if 10 <= left < 20 else round(interval / (1.4 - 0.8 * left / steps))
    return found


@pytest.mark.parametrize(("interval", "first_layer", "all_layers"), [(4, 17, 14), (5, 14, 11), (6, 13, 10), (7, 14, 8)])
def test_the_published_counts_of_full_steps_are_of_the_first_layer_and_a_step_here_is_full_in_all(
    interval: int, first_layer: int, all_layers: int
) -> None:
    assert len(full_in_the_first_layer(interval)) == first_layer
    left = countdown(interval, 50)
    assert left.count(0) == all_layers
    assert {49 - step for step, rest in enumerate(left) if rest == 0} <= set(full_in_the_first_layer(interval))
    for method in (ToCa(interval=interval), DuCa(interval=interval)):
        assert list(method.schedule.phases).count("FULL") == all_layers  # type: ignore[attr-defined]


@pytest.mark.parametrize("interval", [3, 4, 5, 6])
def test_the_step_before_a_full_one_computes_tokens_and_those_before_take_turns(interval: int) -> None:
    steps = letters(DuCa(interval=interval).schedule.phases)  # type: ignore[attr-defined]
    assert "AF" not in steps
    assert "AA" not in steps
    assert set(letters(ToCa(interval=interval).schedule.phases)) == {"F", "C"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("interval", "cycle"), [(3, "FAC"), (4, "FCAC"), (5, "FACAC")])
def test_an_interval_of_duca_is_as_published(interval: int, cycle: str) -> None:
    inside = letters(DuCa(interval=interval).schedule.phases).split("F")  # type: ignore[attr-defined]
    assert cycle[1:] in inside


def test_intervals_grow_shorter_and_the_sensitive_steps_are_full_every_second_time() -> None:
    full = [step for step, rest in enumerate(countdown(4, 50)) if rest == 0]
    gaps = [b - a for a, b in pairwise(full)]
    assert gaps[1] > 4
    assert gaps[-1] == 3
    assert 2 in gaps[7:12]


def test_another_number_of_steps_is_another_list_of_the_same_phases() -> None:
    for kind in (ToCa, DuCa):
        long, short = kind().schedule, kind(num_steps=20, interval=6).schedule
        assert len(short.phases) == 20  # type: ignore[attr-defined]
        assert long.in_graph == short.in_graph
        assert {name: tensor.shape for name, tensor in long.numbers().items()} == {n: t.shape for n, t in short.numbers().items()}


def test_a_list_of_phases_says_what_each_step_is_and_a_step_beyond_is_full() -> None:
    schedule = Phased(phases=["FULL", "PARTIAL_1", "REUSE", "FULL", "ESTIMATE"])
    assert schedule.branches == ("FULL", "PARTIAL_1", "REUSE", "ESTIMATE")
    generation, numbers = rfc.Record(), schedule.numbers()
    assert [generation.decide(schedule, numbers, None, None) for _ in range(7)] == [*schedule.phases, "FULL", "FULL"]
    assert generation.nfc == 4
    assert (schedule.warmup, schedule.can_skip(1), schedule.can_skip(2)) == (1, False, True)
    assert not schedule.full(numbers, ONE, ONE, ONE)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Phased(phases=[]), r"^Phased: the first step must be FULL"),
        (lambda: Phased(phases=["REUSE", "FULL"]), r"^Phased: the first step must be FULL, got \('REUSE',\); it has nothing to reuse$"),
        (lambda: Phased(phases="FULL"), r"^Phased: phases and branches must be lists of phases"),
        (lambda: Phased(phases=["FULL", "HALF"]), r"^Phased: a phase is FULL, ESTIMATE, REUSE or PARTIAL_<number>, got 'HALF'$"),
        (lambda: Phased(phases=["FULL", "VERIFY"]), r"got 'VERIFY'$"),
        (
            lambda: Phased(phases=["FULL", "REUSE"], branches=("PARTIAL_1",)),
            r"^Phased: REUSE is in phases, but not in branches FULL, PARTIAL_1$",
        ),
        (lambda: Phased(phases=["FULL"] * 5000), r"^Phased: at most 4096 steps, got 5000$"),
        (lambda: Phased(phases=["FULL"], period=0), r"^Phased: period must be a number of steps above 0, got 0$"),
        (lambda: ToCa(interval=0), r"^ToCa: interval must be an integer of at least 1, got 0$"),
        (lambda: DuCa(num_steps=0), r"^DuCa: num_steps must be an integer of at least 1, got 0$"),
        (lambda: ToCa(ratio=1.5), r"^Tokens: ratio must be a finite number from 0 to 1, got 1.5$"),
        (lambda: ToCa(bonus=-1), r"^Tokens: bonus must be a finite number of at least 0, got -1$"),
        (lambda: ToCa(score="norm"), r"^Tokens: score must be one of attention, value, random, got 'norm'$"),  # type: ignore[arg-type]
        (lambda: ToCa(grid=(3, 4)), r"^Tokens: grid must be two even numbers, rows and columns of tokens, got \(3, 4\)$"),
        (lambda: ToCa(parts=0), r"^Tokens: parts must be an integer of at least 1, got 0$"),
        (lambda: ToCa(step_weight=float("nan")), r"^Tokens: step_weight must be a finite number, got nan$"),
        (
            lambda: Method(estimator=Reuse(), schedule=Phased(phases=["FULL", "PARTIAL_5"]), tokens=Tokens()),
            r"^tokens: PARTIAL_5 of the schedule is none of its phases: PARTIAL_1, PARTIAL_2, PARTIAL_3, PARTIAL_4$",
        ),
        (lambda: Method(estimator=Reuse(), schedule=Phased(phases=["FULL", "PARTIAL_1"])), r"is none of its phases: tokens is None$"),
        (
            lambda: Method(estimator=Taylor(order=1), schedule=Phased(phases=["FULL", "PARTIAL_1"]), tokens=Tokens()),
            r"^tokens: PARTIAL steps put computed tokens among those of the last output, no forecast, got Taylor\(order=1\)$",
        ),
    ],
)
def test_lists_and_methods_are_checked_when_they_are_made(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_the_defaults_are_those_published_for_dit() -> None:
    assert ToCa() == ToCa(interval=4, ratio=0.07, score="attention", freshness=0.25, bonus=0.6, step_weight=2.0, layer_weight=-0.2)
    assert DuCa() == DuCa(interval=3, ratio=0.05, score="value", freshness=0.25, bonus=0.8, step_weight=0.4, layer_weight=0.8)
    for method in (ToCa(), DuCa()):
        assert isinstance(method, rfc.Method)
        assert method == copy.deepcopy(method) == pickle.loads(pickle.dumps(method)) == replace(method)
        assert hash(method) == hash(replace(method))
        assert method.granularity == "module"


# --- how many --------------------------------------------------------------------------------------------------------


def published_ratio(left: int, layer: int, steps: int = 50, number_of_layers: int = 28) -> float:
    """Of ToCa's code for DiT: base x step factor x layer factor x module factor, cut to [0, 1]."""
    step_factor, layer_factor = 1 + 2.0 - 4.0 * left / steps, 1 - 0.2 + 0.4 * layer / (number_of_layers - 1)
    return min(max(0.07 * step_factor * layer_factor * 2.5, 0.0), 1.0)


@pytest.mark.parametrize("layer", [0, 9, 27])
def test_the_share_of_tokens_is_the_mean_of_the_published_one_over_its_part_of_the_steps(layer: int) -> None:
    tokens = ToCa().tokens
    for part, phase in enumerate(tokens.phases):
        places = [step for step in range(1000) if tokens.phase(step, 1000) == phase]
        assert len(places) == 250
        mean = sum(published_ratio(999 - step, layer, 1000) for step in places) / len(places)
        assert tokens.share(phase, layer, 28) == pytest.approx(mean, abs=5e-4)
        assert tokens.count(phase, Place(layer, 28, 256, None)) == int(tokens.share(phase, layer, 28) * 256)
        assert (tokens.share(phase, layer, 28) > 0) == (part > 0)  # as published, nothing is computed in the first quarter


def test_more_parts_follow_the_ratio_more_closely_and_none_leaves_a_share_out_of_its_bounds() -> None:
    for tokens in (Tokens(ratio=1.0, parts=7), Tokens(parts=50), Tokens(ratio=0.0), Tokens(parts=1)):
        shares = [tokens.share(phase, 3, 4) for phase in tokens.phases]
        assert shares == sorted(shares)
        assert all(0 <= share <= 1 for share in shares)
    everything = Tokens(ratio=1.0, step_weight=0.0, layer_weight=0.0, emphasis=1.0)
    assert {everything.count(phase, Place(1, 3, 49, None)) for phase in everything.phases} == {49}


def test_the_layers_are_the_blocks_in_order() -> None:
    names = ["embed.ff", "double.0.attn", "double.0.ff", "double.1.ff", "single.0", "single.0.ff"]
    assert layers(names) == {
        "double.0.attn": (0, 3),
        "double.0.ff": (0, 3),
        "double.1.ff": (1, 3),
        "single.0": (2, 3),
        "single.0.ff": (2, 3),
    }


# --- scores ----------------------------------------------------------------------------------------------------------


def operands(queries: int = 6, keys: int = 6) -> Operands:
    return Operands(torch.randn(2, 3, queries, 4), torch.randn(2, 3, keys, 4), torch.randn(2, 3, keys, 4))


@pytest.mark.parametrize("rows", [1, 2, 5, 1024])
def test_the_attention_score_is_the_column_sum_of_the_mean_map_however_many_rows_are_made_at_a_time(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rfc.token_selection.QUERIES", rows)
    q, k, v, _ = operands()
    allowed, bias = torch.rand(2, 1, 6, 6) > 0.3, torch.randn(2, 1, 1, 6)
    allowed |= torch.eye(6, dtype=torch.bool)
    logits = q.double() @ k.double().transpose(-2, -1) * 0.7
    for mask, wanted in ((None, logits), (allowed, logits.masked_fill(~allowed, -torch.inf)), (bias, logits + bias)):
        columns = wanted.softmax(-1).mean(1).sum(1)
        got = attention_received(q, k, mask, 0.7)
        torch.testing.assert_close(got.double(), columns, rtol=ROUND, atol=ROUND)
        torch.testing.assert_close(got.sum(-1), torch.full((2,), 6.0))
        score = token_score("attention", Operands(q, k, v, mask), 0.7, slice(2, 6))
        torch.testing.assert_close(score.double(), torch.nn.functional.normalize(columns[:, 2:6], dim=-1), rtol=ROUND, atol=ROUND)


def test_the_value_score_prefers_tokens_of_small_values() -> None:
    given = operands()
    v = given.v.clone()
    v[:, :, 4] *= 0.01
    score = token_score("value", given._replace(v=v), None, slice(0, 6))
    assert score.argmax(-1).tolist() == [4, 4]
    torch.testing.assert_close(score.norm(dim=-1), torch.ones(2))
    assert torch.equal(score, token_score("value", given._replace(v=v, q=given.q * 5), None, slice(0, 6)))  # no map is needed


def test_random_scores_differ_from_step_to_step_and_layer_to_layer_and_repeat() -> None:
    one = random_score(4096, 3, CLOCK)
    assert torch.equal(one, random_score(4096, 3, CLOCK))
    assert 0 <= float(one.min()) < 0.01 < 0.99 < float(one.max()) <= 1
    assert abs(float(one.mean()) - 0.5) < 0.02
    assert len(one.unique()) > 4090
    chosen = [
        set(random_score(256, layer, Clock.at(k, 1.0, n)).topk(32).indices.tolist()) for layer in (0, 1) for n in (1, 2) for k in (1, 2, 3)
    ]
    shared = [len(a & b) for i, a in enumerate(chosen) for b in chosen[:i]]
    assert max(shared) < 16  # by chance 4
    neighbours = [abs(a - b) for a, b in pairwise(sorted(chosen[0]))]
    assert len(set(neighbours)) > 3  # no lattice


@pytest.mark.parametrize("grid", [(4, 4), (2, 8), (2, 4)])
def test_the_best_token_of_every_cell_gets_the_bonus_and_no_other(grid: tuple[int, int]) -> None:
    rows, columns = grid
    score = torch.rand(3, 16) + 0.1
    raised = with_bonus(score, 0.6, grid)
    frames = score.reshape(3, -1, rows, columns)
    got = (raised / score).reshape(frames.shape)
    for row in range(0, rows, 2):
        for column in range(0, columns, 2):
            cell = frames[..., row : row + 2, column : column + 2].flatten(-2)
            factor = got[..., row : row + 2, column : column + 2].flatten(-2)
            best = torch.nn.functional.one_hot(cell.argmax(-1), 4)
            torch.testing.assert_close(factor, 1 + 0.6 * best)


def test_cells_are_known_for_squares_of_even_sides_and_for_a_grid_that_fits() -> None:
    assert Tokens().grid_of(16) == (4, 4)
    assert Tokens().grid_of(25) is None
    assert Tokens().grid_of(32) is None
    assert Tokens(grid=(4, 8)).grid_of(32) == (4, 8)
    assert Tokens(grid=(4, 4)).grid_of(32) == (4, 4)  # two frames
    assert Tokens(grid=(4, 4)).grid_of(24) is None
    assert Tokens(bonus=0.0).grid_of(16) is None


# --- choice ----------------------------------------------------------------------------------------------------------


def test_the_highest_scores_are_chosen_and_age_makes_up_for_a_low_one() -> None:
    tokens, place = Tokens(bonus=0.0), Place(0, 2, 5, None)
    score = torch.tensor([[0.1, 0.5, 0.2, 0.4, 0.3]])
    kept = {"score": score, "age": torch.zeros(1, 5)}
    assert sorted(tokens.choose(kept, place, 2, ONE * 4, CLOCK)[0].tolist()) == [1, 3]
    old = {"score": score, "age": torch.tensor([[8.0, 0.0, 0.0, 0.0, 0.0]])}
    assert sorted(tokens.choose(old, place, 2, ONE * 4, CLOCK)[0].tolist()) == [0, 1]  # 0.1 + 0.25 x 8 / 4
    assert sorted(tokens.choose(old, place, 2, ONE * 400, CLOCK)[0].tolist()) == [1, 3]


def test_the_bonus_spreads_the_choice_over_the_cells() -> None:
    score = torch.tensor([[0.9, 0.8, 0.5, 0.1], [0.8, 0.8, 0.1, 0.1]]).flatten()[None]
    kept = {"score": score, "age": torch.zeros(1, 8)}
    without = Tokens(bonus=0.0).choose(kept, Place(0, 1, 8, None), 3, ONE, CLOCK)
    spread = Tokens(bonus=0.8).choose(kept, Place(0, 1, 8, (2, 4)), 3, ONE, CLOCK)
    assert set(without[0].tolist()) < {0, 1, 4, 5}
    assert 2 in spread[0].tolist()


def test_random_choice_is_the_same_for_all_samples_of_one_age() -> None:
    kept = {"age": torch.zeros(3, 16)}
    chosen = Tokens(score="random").choose(kept, Place(0, 1, 16, (4, 4)), 5, ONE, CLOCK)
    assert torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[0], chosen[2])
    assert Tokens(score="random").slots(3, 16).keys() == {"age"}
    assert Tokens().slots(3, 16).keys() == {"age", "score"}


def test_rows_are_taken_put_and_aged() -> None:
    X, chosen = torch.randn(2, 5, 3), torch.tensor([[4, 1], [0, 2]])
    rows = take(X, chosen)
    assert torch.equal(rows, torch.stack([X[0, [4, 1]], X[1, [0, 2]]]))
    assert torch.equal(put(X, chosen, rows), X)
    after = put(X, chosen, torch.zeros(2, 2, 3))
    assert [after[n].any(-1).tolist() for n in range(2)] == [[True, False, True, True, False], [False, True, False, True, True]]
    age = torch.tensor([[3.0, 3, 3, 3, 3], [0.0, 1, 2, 3, 4]])
    assert aged(age, chosen).tolist() == [[4, 0, 4, 4, 0], [0, 2, 0, 4, 5]]
    assert aged(age).tolist() == (age + 1).tolist()


@pytest.mark.parametrize("estimator", [Reuse(), rfc.Stored(estimator=Reuse(), outputs=torch.int8)], ids=repr)
def test_a_state_with_all_its_tokens_renewed_is_that_of_a_full_step(estimator: rfc.Estimator) -> None:
    old_O, I, O = torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    old = estimator.refresh({}, I, old_O, CLOCK)
    everyone = torch.arange(6).expand(2, 6).flip(-1)
    wanted = estimator.refresh(old, I, O, CLOCK)
    for name, tensor in renewed(estimator, old, everyone, take(I, everyone), take(O, everyone), CLOCK).items():
        assert torch.equal(tensor, wanted[name])
    some = torch.tensor([[1], [5]])
    new = renewed(estimator, old, some, take(I, some), take(O, some), CLOCK)
    got = estimator.estimate(new, I, CLOCK)
    assert torch.equal(got[0, 1], estimator.estimate(wanted, I, CLOCK)[0, 1])
    assert torch.equal(got[0, 0], estimator.estimate(old, I, CLOCK)[0, 0])


# --- the twin --------------------------------------------------------------------------------------------------------


def ages(twin: rfc.eager.model.CachedEager) -> list[Tensor]:
    (run,) = twin._runs.values()
    return [state["age"] for state in run.token_states.values()]


@torch.no_grad()
def test_ages_start_at_zero_and_count_the_steps_since_a_token_was_computed() -> None:
    model, kwargs = dit()
    steps = ["FULL", "PARTIAL_1", "PARTIAL_1", "ESTIMATE", "FULL"]
    tokens = Tokens(ratio=0.5, parts=1, step_weight=0.0, layer_weight=0.0, emphasis=1.0)
    twin = rfc.eager.cached(model, Method(estimator=Reuse(), schedule=Phased(phases=steps, period=2.0), tokens=tokens))
    seen = []
    for step in range(5):
        sample(twin(**moved(kwargs, step)))
        seen.append([tensor.clone() for tensor in ages(twin)])
    for full in (seen[0], seen[4]):
        assert not any(age.any() for age in full)
    for age in seen[1]:
        assert age.sum(-1).tolist() == [8, 8]  # of 16 tokens eight are new
    for before, age in zip(seen[1], seen[2], strict=True):
        assert ((age == 0) | (age == before + 1)).all()
        assert (age == 0).sum(-1).tolist() == [8, 8]
    assert all(torch.equal(a, b) for a, b in zip(seen[2], seen[3], strict=True))  # an estimate ages nobody
    assert len(seen[0]) == 2


@torch.no_grad()
def test_a_partial_step_runs_feed_forwards_on_the_chosen_tokens_alone_and_a_reused_one_no_block_at_all() -> None:
    model, kwargs = dit()
    widths: dict[str, list[int]] = {"ff": [], "attn": [], "norm": []}
    for block in model.transformer_blocks:
        for name, module in (("ff", block.ff.net[0].proj), ("attn", block.attn1.to_q), ("norm", block.norm1.norm)):
            module.register_forward_hook(lambda _, args, __, name=name: widths[name].append(args[0].shape[1]))
    twin = rfc.eager.cached(model, DuCa(interval=4, num_steps=12, ratio=0.3))
    for step in range(12):
        for found in widths.values():
            found.clear()
        twin(**moved(kwargs, step))
        phase = twin.stats.phases[-1]
        place = [Place(layer, 2, 16, None) for layer in range(2)]
        counts = [DuCa(ratio=0.3).tokens.count(phase, one) for one in place] if is_partial(phase) else []
        assert widths["ff"] == {"FULL": [16, 16], "REUSE": []}.get(phase, counts)
        assert widths["attn"] == ([16, 16] if phase == "FULL" else [])
        assert len(widths["norm"]) == (0 if phase == "REUSE" else 2)
    assert {"FULL", "REUSE"} < set(twin.stats.phases)


def test_partial_steps_of_other_things_than_modules_are_refused() -> None:
    model, _ = dit()
    with pytest.raises(ValueError, match=r"PARTIAL steps compute tokens of modules, not of 'block'"):
        rfc.eager.cached(model, ToCa(), "block")
