"""Conditional and unconditional calls of one loop are told apart by their conditioning, whatever their order and number."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from choosing import turns
from families import moved, sample, shared_model
from torch import Tensor

import rfc
import rfc.eager
import rfc_fx
from rfc.conditioning import MAX_GROUPS, ConditioningChangesWarning, ConditioningGroups, conditioning

pytestmark = pytest.mark.usefixtures("captured_once")

Made = Callable[[], Any]
STEPS = 10


def never(index: int) -> bool:
    return False


def text(seed: int) -> dict[str, Tensor]:
    return {"text": torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed))}


def test_the_same_object_and_equal_values_are_one_group() -> None:
    groups, cond, uncond = ConditioningGroups(), text(0), text(1)
    assert [groups.find(given, never) for given in (cond, uncond, cond, text(0), uncond, text(1))] == [0, 1, 0, 0, 1, 1]


def test_a_tensor_written_in_place_is_another_conditioning() -> None:
    groups, cond = ConditioningGroups(), text(0)
    assert groups.find(cond, never) == 0
    cond["text"].mul_(2)
    assert groups.find(cond, never) == 1


def test_an_ended_generation_makes_room_and_keeps_the_number_of_groups() -> None:
    groups = ConditioningGroups()
    for seed in range(10):
        assert groups.find(text(seed), lambda index: True) == 0


def test_reset_forgets_the_tensors() -> None:
    groups = ConditioningGroups()
    groups.find(text(0), never)
    groups.forget()
    assert groups.seen == [{}]


def test_conditioning_that_never_settles_warns_once() -> None:
    groups = ConditioningGroups()
    for seed in range(2 * MAX_GROUPS - 1):
        groups.find(text(seed), never)
    with pytest.warns(ConditioningChangesWarning, match="wrap the calls that belong together in model.cache_context"):
        groups.find(text(99), never)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(20, 40):
            assert groups.find(text(seed), never) < MAX_GROUPS


def test_what_a_control_network_or_the_sampler_makes_for_each_step_is_no_conditioning() -> None:
    given = {
        "hidden_states": torch.zeros(2, 3),
        "timestep": torch.zeros(2),
        "timestep_r": torch.zeros(2),
        "guidance": torch.zeros(2),
        "controlnet_block_samples": [torch.zeros(2, 3)],
        "class_labels": torch.zeros(2, dtype=torch.long),
        "nested": {"mask": torch.zeros(2, 3), "size": None},
    }
    assert set(conditioning(given, "hidden_states", "timestep")) == {"class_labels.0", "nested.0"}


def twin(model: Any) -> Any:
    return rfc.eager.cached(model, rfc.RFC(tau=0.3))


def host(model: Any) -> Any:
    return rfc_fx.transform(model, rfc.RFC(tau=0.3))


def cond(model: Any) -> Any:
    return rfc_fx.transform(model, rfc.RFC(tau=0.3), config=rfc_fx.Config(dispatch="cond"))


FORMS: dict[str, Made] = {"host": host, "twin": twin, "cond": cond}

ORDERS = {
    "conditional first": lambda step: "cu",
    "unconditional first": lambda step: "uc",
    "guidance off for some steps": lambda step: "uc" if 3 <= step < 7 else "c",
    "guidance off in the middle": lambda step: "c" if 3 <= step < 7 else "cu",
}


@pytest.mark.filterwarnings("ignore::rfc_fx.LateCallWarning")
@pytest.mark.parametrize(("form", "order"), turns(FORMS, ORDERS))
@torch.no_grad()
def test_two_passes_through_one_model_equal_two_models(form: str, order: str) -> None:
    made = FORMS[form]
    model, kwargs = shared_model("pixart")
    other = {**kwargs, "encoder_hidden_states": torch.randn_like(kwargs["encoder_hidden_states"])}
    shared, alone = made(model), {"c": made(model), "u": made(model)}
    for generation in range(2):
        for step in range(STEPS):
            for which in ORDERS[order](step):
                call = moved(kwargs if which == "c" else other, step, STEPS)
                if generation:  # made anew in every step, with the same values
                    call["encoder_hidden_states"] = call["encoder_hidden_states"].clone()
                assert torch.equal(sample(shared(**call)), sample(alone[which](**call))), (generation, step, which)
    assert {record.nfc for record in shared.contexts.values()} == {one.stats.nfc for one in alone.values()}
    assert len(shared.contexts) == 2
    assert any(record.nfc < record.step for record in shared.contexts.values())


@pytest.mark.parametrize("made", [twin, host, cond])
@torch.no_grad()
def test_another_prompt_in_the_next_generation_takes_no_more_memory(made: Made) -> None:
    model, kwargs = shared_model("pixart")
    shared = made(model)
    for _ in range(4):
        kwargs = {**kwargs, "encoder_hidden_states": torch.randn_like(kwargs["encoder_hidden_states"])}
        alone = made(model)
        for step in range(5):
            call = moved(kwargs, step, STEPS)
            assert torch.equal(sample(shared(**call)), sample(alone(**call)))
    assert list(shared.contexts) == ["default"]
