"""What a graph takes for granted is seen at once when it changes, between the steps of a generation too (law O7)."""

from typing import Any

import pytest
import torch
from families import FAMILIES
from peft import LoraConfig
from torch import Tensor, nn

import rfc
import rfc_fx
from rfc_fx.capture.dict_tags import ARE_READABLE
from rfc_fx.capture.watch import Watch


class Sharper:
    """An attention processor without weights: another temperature. A number, a list and a dictionary of its own change what it does."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.share, self.scales, self.named = inner, 1.0, [1.0], {"style": {"scale": 1.0}}

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = self.inner(attn, hidden_states * 1.5, *args, **kwargs)
        scale = self.share * self.scales[0] * self.named["style"]["scale"]
        return tuple(part * scale for part in result) if isinstance(result, tuple) else result * scale


def processor(model: Any) -> Sharper:
    return model.transformer_blocks[0].attn.processor  # type: ignore[no-any-return]


def sharpen(model: Any) -> None:
    model.set_attn_processor({name: Sharper(inner) for name, inner in model.attn_processors.items()})


def scale(model: Any) -> None:
    processor(model).share = 0.5


def scale_in_a_list(model: Any) -> None:
    processor(model).scales[0] = 0.25


def scale_in_a_dictionary(model: Any) -> None:
    processor(model).named["style"]["scale"] = 0.75


def hook(model: Any) -> None:
    model.transformer_blocks[0].register_forward_hook(lambda module, args, result: tuple(part * 1.5 for part in result))


def replaced_module(model: Any) -> None:
    model.transformer_blocks[0].ff = model.transformer_blocks[0].ff_context


def replaced_forward(model: Any) -> None:
    block = model.single_transformer_blocks[0]
    forward = block.forward
    block.forward = lambda *args, **kwargs: tuple(part * 0.5 for part in forward(*args, **kwargs))


def adapter_scale(model: Any) -> None:
    model.set_adapters(["style"], [0.25])


def setting_of_a_layer(model: Any) -> None:
    model.transformer_blocks[0].norm2.eps = 0.5


CHANGES = (sharpen, scale, scale_in_a_list, scale_in_a_dictionary, adapter_scale, hook, replaced_forward, replaced_module)
if ARE_READABLE:
    CHANGES += (setting_of_a_layer,)


def test_a_change_between_two_steps_is_honoured_in_the_next() -> None:
    model, kwargs = FAMILIES["flux"](layers=1)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "to_k"], init_lora_weights=False), "style")  # type: ignore[operator]
    cached = rfc_fx.transform(model.eval(), rfc.FORA(interval=2))
    with torch.no_grad(), cached.generation():
        for step, change in enumerate((None, *CHANGES)):
            call = {**kwargs, "timestep": kwargs["timestep"] * (1 - step / 10)}
            before = model(**call)[0]
            if change is not None:
                change(model)
                assert not torch.equal(model(**call)[0], before), change.__name__  # the change is one
            assert torch.equal(cached(**call)[0], model(**call)[0]), change
            assert cached.stats.phases[-1] == "FULL"


def test_what_stays_equal_is_no_change() -> None:
    model, kwargs = FAMILIES["flux"](layers=1)
    sharpen(model)
    cached = rfc_fx.transform(model, rfc.FORA(interval=4))
    with torch.no_grad(), cached.generation() as generation:
        for step in range(4):
            cached(**{**kwargs, "timestep": kwargs["timestep"] * (1 - step / 10)})
            processor(model).scales = [1.0]
            model.eval()
    assert generation.stats.phases == ["FULL", "FULL", "ESTIMATE", "ESTIMATE"]


def test_the_plain_model_drawing_in_a_context_of_diffusers_is_no_change(caplog: pytest.LogCaptureFixture) -> None:
    model, kwargs = FAMILIES["flux"](layers=1)
    own, cached = set(vars(model)), rfc_fx.transform(model, rfc.FORA(interval=4))
    for number in range(2):
        with torch.no_grad(), cached.generation():
            cached(**kwargs)
        assert number or set(vars(model)) == own
        programs = cached.programs
        with torch.no_grad(), model.cache_context("cond"):
            model(**kwargs)
    assert cached.programs is programs
    assert not [record for record in caplog.records if "was changed" in record.getMessage()]


def test_an_array_in_the_place_of_another_is_a_change_and_no_error() -> None:
    module = nn.Module()
    module.table = torch.arange(3).numpy()
    watch = Watch(module)
    assert not watch.has_changed()
    module.table = torch.arange(3).numpy()
    assert watch.has_changed_at_all()


class Holder(nn.Module):
    """A leaf of torch, and a table that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.table = nn.Linear(2, 2), {"scale": 1.0}


def test_what_is_written_and_stays_equal_is_no_change() -> None:
    module = Holder()
    watch = Watch(module)
    module.table["scale"] = 1.0
    module.table["other"] = 1
    del module.table["other"]
    module.eval().train()
    assert not watch.has_changed_at_all()
    module.table["scale"] = 2.0
    assert watch.has_changed()


def test_a_leaf_of_torch_with_another_forward_a_hook_or_other_settings_is_seen_at_once() -> None:
    """Settings where versions can be read at once; elsewhere at the beginning of the next generation."""

    def forward(x: Tensor) -> Tensor:
        return x

    module = Holder()
    watch = Watch(module)
    module.linear.forward = forward
    assert watch.has_changed()
    del module.linear.forward
    assert not watch.has_changed()
    handle = module.linear.register_forward_hook(lambda module, args, result: result)
    assert watch.has_changed()
    handle.remove()
    assert not watch.has_changed()
    module.linear.in_features = 3
    assert watch.has_changed() == ARE_READABLE
    assert watch.has_changed_at_all()


def test_a_hook_on_another_model_is_no_change() -> None:
    module, other = Holder(), Holder()
    watch = Watch(module)
    other.linear.register_forward_hook(lambda module, args, result: result)
    assert not watch.has_changed()
    module.linear.register_forward_pre_hook(lambda module, args: None)
    assert watch.has_changed()


def test_what_is_written_while_the_model_is_looked_at_is_seen_the_next_time() -> None:
    module = Holder()
    watch = Watch(module)
    module.table["scale"] = float("1.0")  # equal, but another object: the dictionaries are compared
    look = watch._dicts.differ

    def looked_at_too_early() -> bool:
        found = look()
        module.table["scale"] = 2.0
        return found

    watch._dicts.differ = looked_at_too_early  # type: ignore[method-assign]
    assert not watch.has_changed()
    assert module.table["scale"] == 2.0
    watch._dicts.differ = look  # type: ignore[method-assign]
    assert watch.has_changed()
