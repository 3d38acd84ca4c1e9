"""PerSampleModel: a batch comes apart into its samples, each with a state and decisions of its own, and the results go together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from rfc.method import Method
from rfc_fx.capture.export import latent_argument, named_arguments
from rfc_fx.capture.refusals import refuse
from rfc_fx.errors import SignatureError
from rfc_fx.ir.config import Config
from rfc_fx.ir.plan import Plan
from rfc_fx.runtime.cached_model import Build, CachedModel
from rfc_fx.runtime.calls import Key, signature
from rfc_fx.runtime.dynamo import skip_own_frame
from rfc_fx.runtime.generation import Generation


class PerSampleModel(CachedModel):
    """A cached model that runs every sample of a batch for itself, with the programs of a batch of one.

    No sample's result depends on its batch mates, to the last bit. Contexts are named `default[0]`, `default[1]`, ... A batch whose rows
    come, go or move up between the steps of a generation says who is who: `with model.samples(names):`.
    """

    def __init__(self, model: nn.Module, method: Method, config: Config, build: Build, group: Any = None) -> None:
        super().__init__(model, method, config, build, group)
        self._joins: dict[Any, Join] = {}
        """How results go together, by call signature."""

    @skip_own_frame
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step of every sample; see `CachedModel.forward`."""
        if (plain := self._visited()) is not None:
            return plain(*args, **kwargs)
        join, samples = self._samples(args, kwargs)
        results = []
        for name, arguments in zip(self._names(len(samples)), samples, strict=True):
            self._turn_to(name, len(samples))
            results.append(super().forward(**arguments))
        return self._join(join, results)

    def trace(self, *args: Any, **kwargs: Any) -> Plan:
        """Capture for these arguments without running a step; return the plan, which is that of one sample."""
        _, samples = self._samples(args, kwargs)
        return super().trace(**samples[0])

    @torch.compiler.disable
    def _visited(self) -> Callable[..., Any] | None:
        return self.driver.look_at_the_model()

    @torch.compiler.disable
    def _samples(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Join, list[dict[str, Any]]]:
        """The samples of a call, and how their results go together."""
        arguments = named_arguments(self.call_signature, args, kwargs)
        count = batch_size(arguments, self.model_name)
        shape, _ = signature(arguments, self.model)
        if (join := self._joins.get(shape)) is None:
            refuse(self.model)
            join = self._joins[shape] = learned_join(self.model, arguments, count)
        return join, [sample(arguments, index, count) for index in range(count)]

    def step(self, generations: Sequence[Generation], *args: Any, **kwargs: Any) -> Any:
        """One step of a batch whose rows belong to generations of their own, each at its own timestep (continuous batching).

        Row i is the next step of `generations[i]`; rows come, go and change places from call to call, as requests do. A row that fails ends
        no generation but its own. Raises SignatureError where there are not as many rows as generations, or one generation stands twice.
        """
        join, samples = self._samples(args, kwargs)
        if len(samples) != len(generations) or len(set(map(id, generations))) != len(samples):
            raise SignatureError(
                f"{self.model_name}: step: expected a generation of its own for each of the {len(samples)} rows, got {len(generations)}, "
                f"{len(set(map(id, generations)))} of them different"
            )
        return self._join(join, [generation(**arguments) for generation, arguments in zip(generations, samples, strict=True)])

    def samples(self, names: Sequence[str]) -> contextlib.AbstractContextManager[None]:
        """Name the samples of the batches of calls inside: what a sample leaves belongs to its name, wherever in the batch it stands.

        Raises ValueError for names that are no texts or not unique; a call with another number of samples raises SignatureError.
        """
        rows = tuple(names)
        if not all(isinstance(name, str) and name for name in rows) or len(set(rows)) != len(rows):
            raise ValueError(f"samples: expected a name for each sample of the batch, all different, got {list(rows)!r}")
        return self.driver.generations.named_rows(rows)

    @torch.compiler.disable
    def _names(self, count: int) -> tuple[str, ...]:
        return self.driver.generations.samples(count)

    @torch.compiler.disable
    def _turn_to(self, name: str, count: int) -> None:
        self.driver.generations.turn_to_sample(name, count)

    def _forget(self, keys: Collection[Key]) -> None:
        super()._forget(keys)
        if not len(self.cache):
            self._joins.clear()

    @torch.compiler.disable
    def _join(self, join: Join, results: list[Any]) -> Any:
        return join(results)


AGREE = {torch.float16: 2e-2, torch.bfloat16: 5e-2, torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest difference between a sample in its batch and alone, as a share of the largest output: batched kernels round in another order."""


def batch_size(arguments: Mapping[str, Any], name: str) -> int:
    """Number of samples of a call: the length of the latent's first axis, or of the list of latents."""
    latent = arguments[latent_argument(arguments)]
    if isinstance(latent, Tensor) and latent.dim():
        return latent.shape[0]
    if isinstance(latent, list | tuple):
        return len(latent)
    raise SignatureError(f"{name}: decision='per_sample' needs a latent with samples in its first axis, got {type(latent).__name__}")


def sample(arguments: Mapping[str, Any], index: int, count: int) -> dict[str, Any]:
    """The arguments of one sample of `count`, as a batch of one.

    Tensors whose first axis, and lists whose length, is `count` are cut; all else (positions, scales) belongs to every sample.
    """

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[index : index + 1] if value.dim() and value.shape[0] == count else value
        if isinstance(value, Mapping):
            return {key: cut(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            per_sample = len(value) == count and not any(isinstance(v, Tensor) and v.dim() and v.shape[0] == count for v in value)
            return type(value)(value[index : index + 1] if per_sample else [cut(item) for item in value])
        return value

    return {key: cut(value) for key, value in arguments.items()}


@dataclass(frozen=True)
class Join:
    """How the results of samples become the result of their batch: found out once per call signature, by running the model itself."""

    count: int
    spec: pytree.TreeSpec
    is_list: bool
    """The model returns a list with an entry per sample, not one tensor."""

    def __call__(self, results: list[Any]) -> Any:
        """The batch's result, from those of the samples in order."""
        flat = [pytree.tree_leaves(result) for result in results]
        leaves = [leaf for one in flat for leaf in one] if self.is_list else [_concatenated(parts) for parts in zip(*flat, strict=True)]
        return pytree.tree_unflatten(leaves, self.spec)


def _concatenated(parts: tuple[Any, ...]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) and parts[0].dim() else parts[0]


def learned_join(model: nn.Module, arguments: Mapping[str, Any], count: int) -> Join:
    """Run the model on a batch and on its samples, once; SignatureError when the samples alone do not give the batch's result.

    That is so where a model mixes its samples, or where an argument that belongs to all samples happens to be `count` long.
    """
    name = type(model).__name__
    with torch.no_grad():
        batch = model(**arguments)
        alone = [model(**sample(arguments, index, count)) for index in range(count)] if count > 1 else [batch]
    expected, spec = pytree.tree_flatten(batch)
    single = pytree.tree_leaves(alone[0])
    join = Join(count, spec, is_list=len(expected) != len(single))
    if len(expected) not in (len(single), count * len(single)):
        raise SignatureError(
            f"{name}: decision='per_sample': a batch of {count} returns {len(expected)} tensors and a batch of one {len(single)}; "
            f"expected {len(single)} or {count * len(single)}; use decision='batch'"
        )
    for whole, joined in zip(expected, pytree.tree_leaves(join(alone)), strict=True):
        if not isinstance(whole, Tensor):
            continue
        same = whole.shape == joined.shape
        share = float((whole - joined).abs().max() / whole.abs().max().clamp(min=1e-30)) if same else float("inf")
        if not share <= AGREE.get(whole.dtype, AGREE[torch.float32]):
            long = [key for key, value in arguments.items() for t in pytree.tree_leaves(value) if isinstance(t, Tensor) and len(t) == count]
            raise SignatureError(
                f"{name}: decision='per_sample': the {count} samples alone give another result than in their batch (largest difference "
                f"{share:.1e} of the largest output): the model mixes its samples, or one of {', '.join(dict.fromkeys(long))} belongs "
                f"to all samples and is {count} long by chance; call with another batch size, or use decision='batch'"
            )
    return join
