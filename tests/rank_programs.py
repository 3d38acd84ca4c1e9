"""What the ranks of a test do: functions of a rank, run by `ranks.Workers`."""

import contextlib
import copy
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple
from unittest import mock

import torch
from families import Family, flux, moved, ready, sample, wan
from ranks import parallelize, split

import rfc
import rfc_fx
import rfc_fx.zoo
from benchmarks.capturing import captured_once
from benchmarks.scaleout.digits import images, split_digits
from rfc.method import Method


class Case(NamedTuple):
    """A method under a configuration."""

    method: Method
    config: rfc_fx.Config = rfc_fx.Config()


class Outcome(NamedTuple):
    """A generation of one process beside that of the ranks."""

    difference: float
    """Largest of the outputs."""
    alone: tuple[str, ...]
    """Phases of one process."""
    phases: tuple[str, ...]
    """Phases of this rank."""
    state_share: float
    """State of this rank as a part of that of one process."""


def family(name: str, heads: int = 2, layers: int = 1) -> Family:
    """A tiny model whose heads and tokens come apart on as many ranks, with its arguments as pipelines pass them."""
    make = {"flux": flux, "wan": wan, "qwen": qwen}[name]
    model, kwargs = make(layers=layers)
    if heads != model.config.num_attention_heads:
        torch.manual_seed(0)
        model = ready(type(model).from_config({**model.config, "num_attention_heads": heads}))
    if name == "flux":
        kwargs |= {"encoder_hidden_states": torch.cat([kwargs["encoder_hidden_states"]] * 2, 1)[:, :8], "txt_ids": torch.zeros(8, 3)}
    return model, {**kwargs, "return_dict": False}


def qwen(layers: int = 1) -> Family:
    """Qwen-Image: the text has a mask, which is gathered from all ranks."""
    from diffusers import QwenImageTransformer2DModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"in_channels": 16, "out_channels": 4, "attention_head_dim": 16, "num_attention_heads": 2}
    model = QwenImageTransformer2DModel(patch_size=2, num_layers=layers, joint_attention_dim=12, axes_dims_rope=(4, 4, 8), **sizes)
    kwargs = {
        "hidden_states": torch.randn(2, 16, 16),
        "encoder_hidden_states": torch.randn(2, 8, 12),
        "encoder_hidden_states_mask": torch.arange(8).repeat(2, 1) < torch.tensor([[8], [5]]),
        "timestep": torch.tensor([0.5, 0.5]),
        "img_shapes": [[(1, 4, 4)]] * 2,
    }
    return ready(model), kwargs


def uneven(kwargs: dict[str, Any], step: int, steps: int = 12) -> dict[str, Any]:
    """The call of a step; the latent's second half moves more than its first, so that ranks alone would decide otherwise."""
    call = moved(kwargs, step, steps)
    latent = call["hidden_states"].clone()
    half = latent.shape[1] // 2 if latent.dim() == 3 else latent.shape[2] // 2
    tail = latent[:, half:] if latent.dim() == 3 else latent[:, :, half:]
    tail += 0.08 * step * step / steps * torch.randn(tail.shape, generator=torch.Generator().manual_seed(3))
    return {**call, "hidden_states": latent}


def generation(model: Any, kwargs: dict[str, Any], steps: int = 12) -> list[torch.Tensor]:
    """The outputs of a generation's steps."""
    with model.generation():
        return [sample(model(**uneven(kwargs, step, steps))) for step in range(steps)]


def compare(
    rank: int, name: str, cases: list[Case], size: int = 2, layers: int = 1, kind: str = "ulysses", compiled: bool = False
) -> list[Outcome]:
    """Run each case with the whole model and with its sequence split."""
    model, kwargs = family(name, layers=layers)
    parted = copy.deepcopy(model)
    outcomes = []
    with captured_once(), log_sum_exp() if kind == "ring" else contextlib.nullcontext():
        if kind == "ring":
            parted.set_attention_backend("_native_flash")
        parallelize(parted, **{f"{kind}_degree": size})
        for case in cases:
            alone, here = (rfc_fx.transform(each, case.method, config=case.config) for each in (model, parted))
            if compiled:
                here.compile(fullgraph=True)
            expected, got = generation(alone, kwargs), generation(here, kwargs)
            difference = max(float((a - b).abs().max()) for a, b in zip(expected, got, strict=True))
            share = here.plan().state_bytes / alone.plan().state_bytes
            outcomes.append(Outcome(difference, tuple(alone.stats.phases), tuple(here.stats.phases), share))
    return outcomes


@contextlib.contextmanager
def log_sum_exp() -> Iterator[None]:
    """The back end "_native_flash" of diffusers with the kernel of the CPU, which returns the log-sum-exp of its rows."""

    def forward(ctx: Any, query: Any, key: Any, value: Any, *_: Any, return_lse: bool = False, **__: Any) -> Any:
        rows = [each.transpose(1, 2).contiguous() for each in (query, key, value)]
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*rows)
        out, lse = out.transpose(1, 2).contiguous(), lse.transpose(1, 2).contiguous()
        return (out, lse) if return_lse or (_ and _[-1] is True) else out

    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    active = _AttentionBackendRegistry._active_backend
    with mock.patch("diffusers.models.attention_dispatch._native_flash_attention_forward_op", forward):
        try:
            yield
        finally:
            _AttentionBackendRegistry._active_backend = active  # a model's back end becomes that of all models without one


def draw(rank: int, fault: str, method: Method, name: str = "wan", steps: int = 6, at: int = 3) -> list[str]:
    """A generation in which rank 1 does something else from step `at` (from 0) on; phases, or the error, as text.

    Once programs are made, the group waits three seconds for its ranks.
    """
    model, kwargs = family(name)
    odd = rank == 1
    if odd and fault == "other inputs":
        kwargs["hidden_states"] = kwargs["hidden_states"] + 1
    if odd and fault == "other weights":
        with torch.no_grad():
            model.proj_out.weight += 1
    other = odd and fault == "other method"
    cached: Any = rfc_fx.transform(split(model, 2), rfc.FORA(interval=2) if other else method)
    begin = time.monotonic()
    try:
        with cached.generation():
            for step in range(steps):
                if step == 1:
                    torch.distributed.group.WORLD.set_timeout(timedelta(seconds=3))
                if odd and step == at:
                    _go_wrong(fault, cached, model)
                cached(**moved(kwargs, step, steps))
    except Exception as error:
        return [type(error).__name__, str(error), *getattr(error, "__notes__", []), f"{time.monotonic() - begin:.0f}"]
    return list(cached.stats.phases)


def _go_wrong(fault: str, cached: Any, model: torch.nn.Module) -> None:
    if fault == "dies":
        os._exit(1)
    if fault == "stalls":
        time.sleep(6)
    if fault == "raises":
        failing = mock.Mock(side_effect=MemoryError("no memory for this step"))
        cached._compiled = mock.Mock(of=mock.Mock(return_value=failing))
    if fault == "changes":
        model.blocks[0].register_forward_hook(lambda *_: None)


def guidance(rank: int, method: Method, grouped: bool) -> list[str]:
    """One half of a guided generation on each rank; the phases of this one."""
    model, kwargs = family("wan")
    call = {**kwargs, "hidden_states": kwargs["hidden_states"][:1], "timestep": kwargs["timestep"][:1]}
    call["encoder_hidden_states"] = kwargs["encoder_hidden_states"][rank : rank + 1]
    cached = rfc_fx.transform(model, method, group=torch.distributed.group.WORLD if grouped else None)
    with cached.generation():
        for step in range(12):
            now = uneven(call, step)
            now["hidden_states"] = now["hidden_states"] * (1 + 0.3 * rank * step)  # its input moves otherwise than that of the other half
            cached(**now)
    return list(cached.stats.phases)


def late(rank: int, method: Method) -> tuple[list[str], float]:
    """A sequence that is split in the middle of a generation; its phases, and the largest difference of full steps to the whole model."""
    model, kwargs = family("wan")
    cached = rfc_fx.transform(model, method)
    whole: Any = family("wan")[0]
    difference = 0.0
    with cached.generation():
        for step in range(6):
            if step == 3:
                split(model, 2)
            call = moved(kwargs, step, 6)
            output = sample(cached(**call))
            if cached.stats.phases[-1] == "FULL":
                difference = max(difference, float((output - sample(whole(**call))).abs().max()))
    return list(cached.stats.phases), difference


def digits(rank: int, cases: list[Case]) -> list[tuple[float, list[str], list[str]]]:
    """The shipped model of digits with guidance, whole and split; the pictures' largest difference, and the phases of both."""
    transformer, scheduler = rfc_fx.zoo.load_digits()
    parted = split_digits(copy.deepcopy(transformer), 2)
    outcomes = []
    with captured_once():
        for case in cases:
            alone, here = (rfc_fx.transform(model, case.method, config=case.config) for model in (transformer, parted))
            expected, got = images(alone, scheduler), images(here, scheduler)
            outcomes.append((float((expected - got).abs().max()), list(alone.stats.phases), list(here.stats.phases)))
    return outcomes
