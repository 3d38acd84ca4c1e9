"""Complex numbers become pairs of reals: the same values, and no complex value in any program."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from tolerances import INDUCTOR, SAME_GRAPH
from torch import Tensor, fx, nn

import rfc
import rfc_fx
from benchmarks.coverage.checks import calls, difference
from benchmarks.coverage.specs import all_specs
from rfc_fx.capture.export import capture
from rfc_fx.ir.program import as_read
from rfc_fx.passes.outline import graph_module
from rfc_fx.passes.pair_complex import pair_complex

pytestmark = pytest.mark.usefixtures("captured_once")


def holds_complex(graph: fx.Graph) -> bool:
    """Whether a value of the graph is complex, those of called graphs included."""
    values = pytree.tree_leaves([node.meta.get("val") for node in graph.nodes])
    owner = graph.owning_module
    called = [owner.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"] if owner is not None else []
    return any(isinstance(one, Tensor) and one.is_complex() for one in values) or any(
        holds_complex(one.graph) for one in called if isinstance(one, fx.GraphModule)
    )


class Computes(nn.Module):
    """A function of x (2, 6, 8) and a complex table (6, 4) among its buffers."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("table", torch.polar(torch.ones(6, 4), torch.randn(6, 4)))

    def forward(self, hidden_states: Tensor) -> Any:
        return self.function(hidden_states, self.table)


def rotated(x: Tensor, table: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * table).flatten(-2)


def padded(x: Tensor, table: Tensor) -> Tensor:
    return torch.view_as_real(nn.utils.rnn.pad_sequence([table, table[:4], table[1:2]], batch_first=True)) + x[0, 0, 0]


def written(x: Tensor, table: Tensor) -> Tensor:
    held = torch.zeros(2, 6, 4, dtype=table.dtype)
    held[:, :4] = table[:4] * x[:, :4, :4]
    return torch.view_as_real(held)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a rotation": rotated,
    "polar": lambda x, table: torch.view_as_real(torch.polar(x.abs(), x)),
    "complex of two reals": lambda x, table: (torch.complex(x, x + 1) * (2 + 1j)).imag,
    "real and imaginary part": lambda x, table: (table.real * x[..., :4], table.imag + x[..., 4:]),
    "conj": lambda x, table: torch.view_as_real((table.conj() * x[..., :4]).resolve_conj()),
    "a real factor": lambda x, table: torch.view_as_real(0.5 * table * x[..., :4]),
    "an exponential": lambda x, table: (torch.exp(1j * x)).real,
    "abs and angle": lambda x, table: (table * x[..., :4]).abs() + table.angle(),
    "index": lambda x, table: torch.view_as_real(table[torch.tensor([3, 0, 3])]) * x[0, 0, 0],
    "cat of a tensor and itself": lambda x, table: torch.view_as_real(torch.cat([table, table[:, :2], table], -1)) * x[0, 0, 0],
    "stack": lambda x, table: torch.view_as_real(torch.stack([table, table * x[0, :, :4]], 1)),
    "split": lambda x, table: [torch.view_as_real(one) * x[0, 0, 0] for one in table.split([1, 2, 3])],
    "unsqueeze, expand and reshape": lambda x, table: torch.view_as_real(table.unsqueeze(1).expand(6, 3, 4).reshape(18, 4)) * x[0, 0, 0],
    "permute and select": lambda x, table: torch.view_as_real(table.permute(1, 0)[2]) * x[..., :6, None],
    "sum and mean": lambda x, table: torch.view_as_real(table.sum(0) + table.mean(-1, keepdim=True)) * x[0, 0, 0],
    "a product of matrices": lambda x, table: torch.view_as_real(table @ torch.complex(x, x)[0, :4]),
    "another type": lambda x, table: torch.view_as_real(table.to(torch.complex128)) * x[0, 0, 0],
    "repeat": lambda x, table: torch.view_as_real(table.repeat(2, 1)) * x[0, 0, 0],
    "padded sequences": padded,
    "writes to a part": written,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_on_pairs_gives_what_it_gives_on_complex_numbers(name: str) -> None:
    model, x = Computes(OPERATIONS[name]).eval(), torch.randn(2, 6, 8)
    captured = pair_complex(capture(model, {"hidden_states": x}))
    module = graph_module(captured, captured.graph, captured.constants, {}, "Paired")
    assert not holds_complex(captured.graph)
    for got, expected in zip(module(x), pytree.tree_leaves(model(x)), strict=True):
        torch.testing.assert_close(got, expected, rtol=SAME_GRAPH, atol=SAME_GRAPH)
    model.table.mul_(1j)  # weights are read live
    for got, expected in zip(module(x), pytree.tree_leaves(model(x)), strict=True):
        torch.testing.assert_close(got, expected, rtol=SAME_GRAPH, atol=SAME_GRAPH)


def test_an_operation_without_a_decomposition_stands_between_pairs() -> None:
    model, x = Computes(lambda x, table: torch.fft.ifft(torch.fft.fft(x) * 2).real + table.abs()[0, 0]).eval(), torch.randn(2, 6, 8)
    captured = pair_complex(capture(model, {"hidden_states": x}))
    module = graph_module(captured, captured.graph, captured.constants, {}, "Paired")
    torch.testing.assert_close(module(x)[0], model(x))


def test_a_graph_without_complex_numbers_is_returned_as_it_is() -> None:
    captured = capture(Computes(lambda x, table: x + 1).eval(), {"hidden_states": torch.randn(2, 6, 8)})
    assert pair_complex(captured) is captured


def test_the_graph_of_the_capture_stays_as_it_was() -> None:
    captured = capture(Computes(rotated).eval(), {"hidden_states": torch.randn(2, 6, 8)})
    before = str(captured.graph)
    pair_complex(captured)
    assert str(captured.graph) == before


def test_a_complex_result_is_refused() -> None:
    captured = capture(Computes(lambda x, table: table * x[..., :4]).eval(), {"hidden_states": torch.randn(2, 6, 8)})
    with pytest.raises(rfc_fx.CaptureError, match=r"Computes: forward returns complex numbers \(result 0\).*view_as_real"):
        pair_complex(captured)


class Rotary(nn.Module):
    """Two residual branches on a rotated stream; the rotation is an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2))

    def forward(self, hidden_states: Tensor, timestep: Tensor, rotary: Tensor) -> Tensor:
        for layer in self.layers:
            hidden_states = hidden_states + layer(rotated(hidden_states + timestep[:, None, None], rotary))
        return hidden_states


def rotary_calls(steps: int = 4, conj: bool = False) -> list[dict[str, Tensor]]:
    x, rotary = torch.randn(2, 6, 8), torch.polar(torch.ones(6, 4), torch.randn(6, 4))
    rotary = rotary.conj() if conj else rotary
    return [{"hidden_states": x - 0.1 * i, "timestep": torch.full((2,), 1 - i / steps), "rotary": rotary} for i in range(steps)]


@pytest.mark.parametrize("conj", [False, True])
def test_a_complex_argument_is_read_as_pairs(conj: bool) -> None:
    model = Rotary().eval()
    cached = rfc_fx.transform(model, rfc.FullCompute())
    for call in rotary_calls(conj=conj):
        assert torch.equal(cached(**call), model(**call))
    assert len(cached.driver.programs) == 1
    assert not any(holds_complex(program.graph) for program in cached.programs.values())
    assert as_read(call["rotary"]).shape == (6, 4, 2)


@pytest.mark.compile
@pytest.mark.slow
def test_inductor_takes_a_model_with_complex_numbers() -> None:
    model = Rotary().eval()
    cached, plain = (rfc_fx.transform(model, rfc.TaylorSeer(interval=2, order=1)) for _ in range(2))
    compiled = torch.compile(cached, fullgraph=True)
    with torch.no_grad():
        assert max(float((compiled(**call) - plain(**call)).abs().max()) for call in rotary_calls()) <= INDUCTOR


FAMILIES = ["QwenImageTransformer2DModel", "ZImageTransformer2DModel", "Lumina2Transformer2DModel", "LuminaNextDiT2DModel"]
FAST = FAMILIES[:1]


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def test_programs_of_a_class_hold_no_complex_value_and_equal_the_model(name: str) -> None:
    spec = all_specs()[name]
    model = spec.model()
    arguments = spec.arguments(model)
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.0), example_inputs=arguments)
    assert not any(holds_complex(program.graph) for program in cached.programs.values())
    with torch.no_grad():
        assert max(difference(cached(**call), model(**call)) for call in calls(spec, arguments, 2)) == 0


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("name", [*FAMILIES[:3], "MochiTransformer3DModel"])
def test_inductor_takes_the_programs_of_a_class(name: str) -> None:
    spec = all_specs()[name]
    model = spec.model()
    arguments = spec.arguments(model)
    cached, plain = (rfc_fx.transform(model, rfc.RFC(tau=float("inf"), warmup=2), example_inputs=arguments) for _ in range(2))
    compiled = torch.compile(cached, fullgraph=True)
    with torch.no_grad():
        assert max(difference(compiled(**call), plain(**call)) for call in calls(spec, arguments, 4)) <= INDUCTOR
    assert cached.stats.phases == ["FULL", "FULL", "ESTIMATE", "ESTIMATE"]
