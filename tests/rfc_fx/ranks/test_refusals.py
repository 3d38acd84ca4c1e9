"""What is spread over ranks as no program can hold it, or as would be silently wrong, is refused by name."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from predictors import random_predictor
from rank_programs import family
from ranks import fake_ranks, split

import rfc
import rfc.eager
import rfc_export
import rfc_fx
from benchmarks.capturing import captured_once

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of the fake group's work that nobody waits for


@pytest.fixture(scope="module", autouse=True)
def _two_ranks() -> Iterator[None]:
    with fake_ranks(2), captured_once():
        yield


@pytest.fixture(scope="module")
def parted() -> Any:
    """Wan on the first of two ranks, with its arguments."""
    model, kwargs = family("wan")
    return split(model, 2), kwargs


def by_hand(name: str, **plan: Any) -> Any:
    """A model whose attention goes past diffusers' dispatcher, with a plan of one's own."""
    from diffusers import ContextParallelConfig
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    model, kwargs = FAMILIES[name](layers=1)
    plan = {
        "transformer_blocks.0": {
            "hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
            **{name: ContextParallelInput(split_dim=1, expected_dims=3) for name in plan},
        },
        "proj_out" if hasattr(model, "proj_out") else "proj_out_2": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2), cp_plan=plan)
    return model, kwargs


@pytest.mark.parametrize("name", ["pixart", pytest.param("dit", marks=pytest.mark.slow)])
def test_attention_that_sees_the_tokens_of_one_rank_is_refused(name: str) -> None:
    model, kwargs = by_hand(name)
    with pytest.raises(
        rfc_fx.CaptureError, match=r"attn1?: its attention reads keys of one rank, and takes the tokens of this rank for all"
    ):
        rfc_fx.transform(model, rfc.FORA(), example_inputs=kwargs)


def test_a_method_that_chooses_among_all_tokens_is_refused(parted: Any) -> None:
    model, kwargs = parted
    with pytest.raises(rfc_fx.CaptureError, match=r"chooses the tokens that are computed among all of them.*each of which would choose"):
        rfc_fx.transform(model, rfc.ToCa(), example_inputs=kwargs)


def test_a_predictor_is_refused(parted: Any, tmp_path: Path) -> None:
    model, kwargs = parted
    method = rfc.DisCa(predictor=random_predictor(model, tmp_path / "predictor", 32))
    with pytest.raises(rfc_fx.CaptureError, match=r"the predictor of .* attends to all tokens, and the sequence lies on 2 ranks; use a"):
        rfc_fx.transform(model, method, example_inputs=kwargs)


def test_an_engine_is_refused(parted: Any, tmp_path: Path) -> None:
    model, kwargs = parted
    with pytest.raises(rfc_export.ExportError, match=r"hold collectives of a group of ranks, which an engine does not have; export"):
        rfc_export.export(model, tmp_path / "engine", backend="onnx", method=rfc.FORA(), example_inputs=kwargs)
    assert not (tmp_path / "engine").exists()


def test_the_eager_twin_is_refused(parted: Any) -> None:
    with pytest.raises(ValueError, match=r"its sequence is split over ranks.*use rfc_fx\.transform, which completes sums over all"):
        rfc.eager.cached(parted[0], rfc.FORA())


@dataclass(frozen=True, kw_only=True)
class Local(rfc.RCS):
    """A rule that decides by the tokens of its rank."""

    def error(self, watched: Any, state: Any, clock: Any) -> torch.Tensor:
        return (watched["I"] - state["O"]).abs().float().mean()


def test_a_rule_of_ones_own_that_decides_by_the_tokens_of_one_rank_is_refused(parted: Any) -> None:
    model, kwargs = parted
    with pytest.raises(
        rfc_fx.IllegalGraphError, match=r"PREFIX: mean.* reduces the tokens of one rank; pass the sum to rfc\.ranks\.summed"
    ):
        rfc_fx.transform(model, rfc.Method(estimator=rfc.Reuse(), schedule=Local(tau=0.1)), example_inputs=kwargs)


def test_distributed_weights_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model, _ = family("wan")
    parallelize_module(model.blocks[0].ffn.net[0].proj, init_device_mesh("cpu", (2,)), ColwiseParallel())
    with pytest.raises(
        rfc_fx.CaptureError, match=r"blocks\.0\.ffn\.net\.0\.proj\.weight is a DTensor .*tensor parallel.*split its sequence"
    ):
        rfc_fx.transform(model, rfc.FORA())


def test_fully_sharded_weights_are_refused() -> None:
    from torch.distributed.fsdp import fully_shard

    model, _ = family("wan")
    fully_shard(model.blocks[0])
    with pytest.raises(rfc_fx.CaptureError, match=r"blocks\.0: its weights are sharded by FSDP.*split its sequence"):
        rfc_fx.transform(model, rfc.FORA())


def test_pipefusion_is_refused() -> None:
    wrapper = type("xFuserWanTransformer3DWrapper", (torch.nn.Module,), {"forward": lambda self, x: x})
    with pytest.raises(rfc_fx.CaptureError, match=r"runs under PipeFusion of xDiT.*split its sequence"):
        rfc_fx.transform(wrapper(), rfc.FORA())


def test_ring_attention_without_its_log_sum_exp_is_refused() -> None:
    from diffusers import ContextParallelConfig

    model, kwargs = family("wan")
    model.enable_parallelism(config=ContextParallelConfig(ring_degree=2))
    with pytest.raises(rfc_fx.CaptureError, match=r"ring attention joins the parts of a row by their log-sum-exp.*set_attention_backend"):
        rfc_fx.transform(model, rfc.FORA(), example_inputs=kwargs)


def test_a_group_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match=r"group must be a torch\.distributed\.ProcessGroup"):
        rfc_fx.transform(family("wan")[0], rfc.FORA(), group=2)
