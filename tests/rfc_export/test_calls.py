"""An engine's call: the CachedModel's in every spelling, refused by argument where it is another; and the engine in a pipeline."""

from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

import rfc
import rfc_export
import rfc_fx
from rfc_export import Engine
from rfc_export.calls import ExpectedCall
from rfc_export.parity import TOLERANCE
from rfc_export.specs import CallSpec, LeafSpec
from rfc_fx.errors import SignatureError

pytestmark = [pytest.mark.onnx, pytest.mark.usefixtures("captured_once")]

METHOD = rfc.RFC(tau=0.3)


class World:
    """A DiT pipeline, the call that it makes of its transformer, a CachedModel and an engine."""

    def __init__(self, folder: Path) -> None:
        self.pipe, self.prompt = pipelines.dit()
        plain = self.pipe.transformer
        seen: list[dict[str, Any]] = []

        def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append({"hidden_states": args[0], **kwargs} if args else dict(kwargs))

        hook = plain.register_forward_pre_hook(record, with_kwargs=True)
        pipelines.run(self.pipe, self.prompt())
        hook.remove()
        self.inputs = seen[0]
        self.cached = rfc_fx.transform(plain, METHOD, example_inputs=self.inputs, config=rfc_fx.Config(granularity="block"))
        rfc_export.export(self.cached, folder, backend="onnx", example_inputs=self.inputs, config=rfc_fx.Config(hoist=False))
        self.engine = rfc_export.load(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("engines") / "dit")


@pytest.fixture
def engine(world: World) -> Engine:
    world.engine.reset()
    world.cached.reset()
    return world.engine


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_a_pipeline_draws_with_the_engine_what_it_draws_with_the_model(world: World, engine: Engine) -> None:
    own = world.pipe.transformer
    try:
        world.pipe.transformer = world.cached
        expected = pipelines.run(world.pipe, world.prompt())
        world.pipe.transformer = engine
        drawn = pipelines.run(world.pipe, world.prompt())
        again = pipelines.run(world.pipe, world.prompt())
    finally:
        world.pipe.transformer = own
    assert error(drawn, expected) <= TOLERANCE["float32"]
    assert torch.equal(drawn, again)  # a generation leaves nothing to the next
    (phases,) = {tuple(record.phases) for record in engine.contexts.values()}
    assert phases == tuple(world.cached.stats.phases)
    assert "ESTIMATE" in phases
    assert engine.summary().held_bytes == 2 * world.cached.summary().held_bytes  # new state is written beside the old


@torch.no_grad()
def test_every_spelling_of_the_call_is_the_same_call(world: World, engine: Engine) -> None:
    x = world.inputs
    placed = (x["hidden_states"], x["timestep"], x["class_labels"])
    expected = world.cached(**x)
    for args, kwargs in (
        ((), x),
        (placed, {}),
        (placed[:1], {"timestep": placed[1], "class_labels": placed[2]}),
        (placed, {"cross_attention_kwargs": None}),
        (placed, {"return_dict": True}),
    ):
        engine.reset()
        found = engine(*args, **kwargs)
        assert type(found) is type(expected)
        assert error(found.sample, expected.sample) <= TOLERANCE["float32"]
    for both in (engine, world.cached):
        both.reset()
        (alone,) = both(**x, return_dict=False)
        assert error(alone, expected.sample) <= TOLERANCE["float32"]


def test_another_call_is_refused_by_argument(world: World, engine: Engine) -> None:
    x = world.inputs
    latent, timestep = x["hidden_states"], x["timestep"]
    before = list(engine.stats.phases)
    fixed = "an engine has fixed shapes: add a call with these"
    for change, text in (
        ({"hidden_states": torch.cat([latent, latent])}, fixed),
        (
            {"hidden_states": latent[:, :, :4]},
            f"hidden_states: expected float32 of shape {tuple(latent.shape)} on cpu, got float32 of shape",
        ),
        ({"hidden_states": latent.double()}, f"hidden_states: expected float32 of shape {tuple(latent.shape)} on cpu, got float64"),
        ({"hidden_states": latent.to("meta")}, "on meta"),
        ({"timestep": timestep.float()}, "timestep: expected int64"),
        ({"timestep": 500}, "timestep: expected a tensor, int64"),
        ({"class_labels": None}, "class_labels"),
        ({"hidden_states": latent.clone().requires_grad_()}, "hidden_states requires grad"),
        ({"cross_attention_kwargs": {"scale": 2.0}}, "built without cross_attention_kwargs; leave it out, or export with it"),
    ):
        with pytest.raises(SignatureError) as found:
            engine(**x | change)
        assert text in str(found.value)
        assert str(found.value).startswith("DiTTransformer2DModel: ")
    with pytest.raises(SignatureError, match="hidden_states missing: the engine was built for a call with it"):
        engine(timestep=timestep, class_labels=x["class_labels"])
    assert engine.stats.phases == before


def test_what_no_model_takes_is_refused_as_the_model_refuses_it(world: World, engine: Engine) -> None:
    wrong: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
        ((), world.inputs | {"surprise": 1}),
        ((world.inputs["hidden_states"],), world.inputs),
        ((None,) * 20, {}),
    )
    for args, kwargs in wrong:
        kinds = []
        for model in (world.cached, engine):
            with pytest.raises((TypeError, SignatureError)) as found:
                model(*args, **kwargs)
            kinds.append(type(found.value))
        assert kinds[0] is kinds[1]


def test_a_call_with_another_number_than_at_export_or_a_tensor_for_it_is_refused() -> None:
    tree = pytree.treespec_dumps(pytree.tree_structure({"x": 0, "scale": 0}))

    def leaf(argument: str, value: Any = None, shape: list[int] | None = None) -> LeafSpec:
        dtype = None if shape is None else "float32"
        return LeafSpec(argument=argument, dtype=dtype, shape=shape, value=value, fixed=None, placeholder=None)

    one = pytree.treespec_dumps(pytree.tree_structure((0,)))
    leaves = [leaf("x", shape=[2]), leaf("scale", 2.5)]
    spec = CallSpec(parameters=["x", "scale"], defaults={}, tree=tree, leaves=leaves, outputs=one, latent="x", timestep=None)
    expected, cpu = ExpectedCall(spec, "Model", {}), torch.device("cpu")
    assert expected.match((torch.ones(2), 2.5), {}, cpu)[1][1] == 2.5
    with pytest.raises(SignatureError, match=r"Model: scale: this engine was built for 2\.5, got 3\.0"):
        expected.match((torch.ones(2), 3.0), {}, cpu)
    with pytest.raises(SignatureError, match=r"Model: scale: this engine was built for 2\.5, got tensor"):
        expected.match((torch.ones(2), torch.tensor(2.5)), {}, cpu)


def test_an_engine_has_what_a_pipeline_asks_of_its_model(world: World, engine: Engine) -> None:
    assert engine.config.sample_size == world.cached.config.sample_size
    assert (engine.dtype, engine.device) == (torch.float32, torch.device("cpu"))
    assert engine.to("cpu") is engine.to(torch.float32) is engine
    with pytest.raises(SignatureError, match=r"an engine stays torch\.float32 on cpu; export another for torch\.float16"):
        engine.to(torch.float16)
    assert engine.plan().sites == world.cached.plan().sites
