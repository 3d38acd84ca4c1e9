"""Config: how a model is transformed; one object for `transform`, `compare`, `export`, the command line and the manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError

from rfc.granularity import parse_granularity
from rfc.storage import STORED

Dispatch = Literal["host", "cond"]


Decision = Literal["batch", "per_sample"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a model is transformed. Raises ValueError or TypeError for a value or a combination that cannot be."""

    granularity: str | None = None
    """What one estimate stands for: "module" (the paper), "block", "stack" (the residual of all blocks), "output" (their output),
    "prediction" (what the model returns: a skipped step runs nothing of it) or "blocks[a:b]" (the residual of those blocks; the others
    always run). None: the method's own or its default (`rfc.LogSNR`: "prediction" of flows, "stack" of others), else "module"; with a
    `state_budget` and no default the finest of module, block and stack whose state fits."""
    state_dtype: torch.dtype | None = None
    """Type of the stored differences: bfloat16, float16, float8_e4m3fn or int8 (`rfc.Stored`); None: the model's."""
    state_budget: int | str | None = None
    """Most bytes of state for one context, a number or text such as "2GiB"; guidance takes one context or two."""
    dispatch: Dispatch = "host"
    """host: PREFIX, FULL and ESTIMATE are programs, with one decision of the host per step; cond: one graph with one torch.cond."""
    decision: Decision = "batch"
    """batch: one decision per step for all samples; per_sample (host dispatch): programs of a batch of one run once per sample, so that
    no result depends on batch mates, and batching gains nothing."""
    hoist: bool | None = None
    """Host dispatch: work that needs no latent is computed outside the per-step programs, once per generation where only the conditioning
    matters, for all steps at once where the timesteps are known (`source`, `prepare`). None: in engines, not in models."""
    regional: bool = False
    """Host dispatch: repeated blocks are compiled once, which shortens compilation; a step may take a few percent longer."""
    speculate: bool | None = None
    """Host dispatch: ESTIMATE runs while the decision travels to the host and is discarded where FULL is decided. None: on CUDA devices, up
    to 512 MiB of state."""

    def __post_init__(self) -> None:
        if self.granularity is not None:
            try:
                parse_granularity(self.granularity)
            except ValueError as error:
                raise ValueError(f"Config: {error}") from None
        for name, value, known in (("dispatch", self.dispatch, get_args(Dispatch)), ("decision", self.decision, get_args(Decision))):
            if value not in known:
                raise ValueError(f"Config: {name} must be one of {', '.join(known)}, got {value!r}")
        for name, flag in (("hoist", self.hoist), ("regional", self.regional), ("speculate", self.speculate)):
            if not isinstance(flag, bool) and not (flag is None and name != "regional"):
                raise TypeError(f"Config: {name} must be True or False{'' if name == 'regional' else ' or None'}, got {flag!r}")
        if self.state_dtype is not None and self.state_dtype not in STORED:
            raise TypeError(f"Config: state_dtype must be None or one of {', '.join(map(str, STORED))}, got {self.state_dtype!r}")
        if self.state_budget is not None:
            object.__setattr__(self, "state_budget", parse_bytes(self.state_budget))
        for is_set, option, why in (
            (self.hoist, "hoist=True", "a torch.cond is one graph for every step"),
            (self.regional, "regional=True", "the branches of a torch.cond are compiled whole"),
            (self.speculate, "speculate=True", "a torch.cond is decided on the device"),
            (self.decision == "per_sample", 'decision="per_sample"', "a torch.cond has one predicate for the batch"),
        ):
            if is_set and self.dispatch == "cond":
                raise ValueError(f'Config: {option} needs dispatch="host", got dispatch="cond"; {why}')

    @property
    def state_budget_bytes(self) -> int | None:
        """`state_budget` as a number."""
        return None if self.state_budget is None else int(self.state_budget)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON has them: data types by their names, "int8"."""
        return asdict(self) | {"state_dtype": None if self.state_dtype is None else str(self.state_dtype).removeprefix("torch.")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The reverse of `as_dict`; ValueError for an unknown field or data type."""
        if unknown := sorted(set(values) - {field.name for field in fields(cls)}):
            raise ValueError(f"Config: has no field {unknown[0]!r}")
        by_name = {None: None} | {str(dtype).removeprefix("torch."): dtype for dtype in STORED}
        name = values.get("state_dtype")
        if name not in by_name:
            raise ValueError(f"Config: state_dtype must be None or one of {', '.join(map(str, list(by_name)[1:]))}, got {name!r}")
        return cls(**{**values, "state_dtype": by_name[name]})


def parse_bytes(size: int | str) -> int:
    """Return "2GiB", "500 MB" or a number of bytes as bytes; ValueError for anything else."""
    try:
        if not isinstance(size, int | str) or isinstance(size, bool) or not re.fullmatch(r"[\s\d.]*[a-zA-Z]*\s*", str(size)):
            raise ValueError
        count = int(TypeAdapter(ByteSize).validate_python(size))
        if count < 1:
            raise ValueError
    except (ValidationError, ValueError):
        raise ValueError(f"state_budget must be a number of bytes such as 2147483648, '2GiB' or '500 MB', got {size!r}") from None
    return count
