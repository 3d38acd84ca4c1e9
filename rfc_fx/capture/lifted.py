"""Lifted numbers: a plain number of a call that changes from call to call becomes an input of the graph.

A 0-d tensor in its place would be read by the first `if scale == 1.0`. A lifted number answers comparisons with its value, and notes them:
the graph holds for all numbers that answer alike. Beside a tensor it is a 0-d tensor of float64, as PyTorch makes one of a plain number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Formula = tuple[Any, ...]
"""How a number or answer comes from those of a call: (operation, *operands), which are plain numbers or formulas.

A number of the call is (None, its position among the flat arguments).
"""


@dataclass(frozen=True)
class Lifted:
    """A number of a call that is to become an input."""

    number: float

    def tensor(self, device: torch.device | None) -> Tensor:
        """The number as the graph takes it, 0-d."""
        return torch.tensor(self.number, dtype=torch.float64, device=device)

    def __repr__(self) -> str:
        return f"lifted {self.number!r}"


class NotLiftedError(Exception):
    """The forward's Python reads numbers that were to be lifted; `positions` among its flat arguments."""

    def __init__(self, positions: list[int]) -> None:
        super().__init__(f"the forward reads the arguments {positions}")
        self.positions = positions


@dataclass(frozen=True)
class Answer:
    """A comparison that the forward's Python made with lifted numbers: the graph is for calls that answer it alike."""

    formula: Formula
    was: bool

    def holds(self, numbers: Sequence[Any]) -> bool:
        """Whether a call answers alike; `numbers`: its flat arguments."""
        return bool(_evaluated(self.formula, numbers)) == self.was


def _evaluated(formula: Any, numbers: Sequence[Any]) -> Any:
    if not isinstance(formula, tuple):
        return formula
    operation, *operands = formula
    return numbers[operands[0]] if operation is None else operation(*(_evaluated(operand, numbers) for operand in operands))


@dataclass
class Notes:
    """What the forward's Python asked of lifted numbers."""

    answers: dict[Formula, bool] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)
    """Positions of those whose values were read: they are constants of the graph."""


class Number:
    """A lifted number while a forward is traced; passes for a float."""

    def __init__(self, value: float, tensor: Tensor, formula: Formula, sources: frozenset[int], notes: Notes) -> None:
        self.value, self.tensor, self.formula, self.sources, self.notes = value, tensor, formula, sources, notes

    @classmethod
    def of(cls, lifted: Lifted, tensor: Tensor, position: int, notes: Notes) -> Number:
        """The number of a call at a position among its flat arguments."""
        return cls(lifted.number, tensor, (None, position), frozenset([position]), notes)

    @property  # type: ignore[misc]  # nobody assigns another class to it
    def __class__(self) -> Any:
        return float

    def __float__(self) -> float:
        self.notes.read |= self.sources
        return self.value

    def __bool__(self) -> bool:
        return bool(_compared(operator.ne, self, 0.0))

    def __neg__(self) -> Any:
        return _computed(operator.neg, self)

    def __abs__(self) -> Any:
        return _computed(operator.abs, self)

    def __hash__(self) -> int:
        return hash(float(self))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(float(self), name)  # is_integer, hex: whatever reads the value

    def __repr__(self) -> str:
        return repr(float(self))

    def __format__(self, spec: str) -> str:
        return format(float(self), spec)

    def __int__(self) -> int:
        return int(float(self))

    def __round__(self, digits: int | None = None) -> Any:
        return round(float(self), digits)

    def __trunc__(self) -> int:
        return int(float(self))


def _computed(operation: Callable[..., Any], *operands: Any) -> Any:
    """The result as another lifted number; of a tensor, the tensor that it gives with a 0-d one."""
    tensor = next((operand for operand in operands if isinstance(operand, Tensor)), None)
    if tensor is not None:
        return operation(*(_beside(operand, tensor) if is_number(operand) else operand for operand in operands))
    if not all(is_number(operand) or isinstance(operand, int | float) for operand in operands):
        return NotImplemented
    numbers = [operand for operand in operands if is_number(operand)]
    return Number(
        operation(*(operand.value if is_number(operand) else operand for operand in operands)),
        operation(*(operand.tensor if is_number(operand) else operand for operand in operands)),
        _formula(operation, operands),
        frozenset().union(*(number.sources for number in numbers)),
        numbers[0].notes,
    )


def _compared(operation: Callable[..., Any], *operands: Any) -> Any:
    if not all(is_number(operand) or isinstance(operand, int | float) for operand in operands):
        return NotImplemented
    answer = bool(operation(*(operand.value if is_number(operand) else operand for operand in operands)))
    notes = next(operand.notes for operand in operands if is_number(operand))
    notes.answers[_formula(operation, operands)] = answer
    return answer


def _formula(operation: Callable[..., Any], operands: tuple[Any, ...]) -> Formula:
    return (operation, *(operand.formula if is_number(operand) else operand for operand in operands))


def is_number(value: Any) -> bool:
    """Whether a value is a lifted number under way."""
    return type(value) is Number


def _beside(number: Number, tensor: Tensor) -> Tensor:
    """As PyTorch takes a plain number beside a tensor: its type is the tensor's, integers turn to the default type."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return number.tensor.to(torch.get_default_dtype())
    return number.tensor if tensor.dim() else number.tensor.to(tensor.dtype)


def _method(operation: Callable[..., Any], of: Callable[..., Any], *, turned: bool = False) -> Callable[[Any, Any], Any]:
    return lambda self, other: of(operation, other, self) if turned else of(operation, self, other)


for _name in ("add", "sub", "mul", "truediv", "pow", "floordiv", "mod"):
    setattr(Number, f"__{_name}__", _method(getattr(operator, _name), _computed))
    setattr(Number, f"__r{_name}__", _method(getattr(operator, _name), _computed, turned=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Number, f"__{_name}__", _method(getattr(operator, _name), _compared))


ARITHMETIC = frozenset(
    getattr(Tensor, name)
    for stem in ("add", "sub", "mul", "div", "true_divide", "multiply", "subtract", "divide")
    for name in (stem, f"{stem}_")
) | frozenset(
    getattr(owner, name)
    for owner, names in (
        (Tensor, ("__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__", "__mul__", "__rmul__", "__imul__")),
        (Tensor, ("__truediv__", "__rtruediv__", "__itruediv__", "__div__", "__rdiv__", "__idiv__")),
        (torch, ("add", "sub", "mul", "div", "true_divide", "multiply", "subtract", "divide")),
    )
    for name in names
    if hasattr(owner, name)
)
"""Functions of torch that take a 0-d tensor in the place of a plain number and give the same; others read the number."""


class Lifting(TorchFunctionMode):
    """Lets lifted numbers take part in torch's functions."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(map(is_number, args)) and not any(map(is_number, kwargs.values())):
            return func(*args, **kwargs)
        tensor = next((argument for argument in args if isinstance(argument, Tensor)), None)
        if func in ARITHMETIC and tensor is not None and len(args) == 2 and not kwargs:
            return func(*(_beside(argument, tensor) if is_number(argument) else argument for argument in args))
        plain = [float(argument) if is_number(argument) else argument for argument in args]
        return func(*plain, **{name: float(argument) if is_number(argument) else argument for name, argument in kwargs.items()})


@contextmanager
def lifted_numbers(model: nn.Module) -> Iterator[Notes]:
    """Inside, `Number`s may be among the arguments of the model; what its objects have kept of them are plain numbers behind."""
    notes = Notes()
    try:
        with Lifting():
            yield notes
    finally:
        seen: set[int] = set()
        for module in model.modules():
            _unlift(vars(module), seen)


def _unlift(held: Any, seen: set[int], depth: int = 4) -> None:
    """Turn lifted numbers in containers and objects into plain ones (PEFT keeps scales in its layers)."""
    if id(held) in seen or depth == 0:
        return
    seen.add(id(held))
    items: Any = held.items() if isinstance(held, MutableMapping) else enumerate(held)
    for key, value in list(items):
        if is_number(value):
            held[key] = value.value
        elif isinstance(value, MutableMapping | list):
            _unlift(value, seen, depth - 1)
        elif not isinstance(value, nn.Module | Tensor | type) and isinstance(getattr(value, "__dict__", None), dict):
            _unlift(vars(value), seen, depth - 1)
