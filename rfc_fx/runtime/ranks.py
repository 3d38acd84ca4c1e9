"""Ranks: what processes of one group tell each other beside the collectives of their programs, over the group's store.

Keys and values, no collective: a rank that has nothing to say keeps nobody waiting longer than the group's timeout, and is named.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from rfc_fx.capture.parallel import parallel_of
from rfc_fx.errors import RanksError

log = logging.getLogger("rfc_fx")

COLLECTIVE_ERRORS = (
    "gloo",
    "nccl",
    "timed out",
    "connection closed",
    "connection reset",
    "connection refused",
    "processgroup",
    "broken pipe",
)
"""Words in the messages of collectives that failed: back ends raise RuntimeError."""


class Ranks:
    """The ranks that a model's steps are shared with."""

    def __init__(self, name: str, group: Any) -> None:
        self.model, self.group = name, group
        self.size, self.rank = int(group.size()), int(group.rank())
        self._prefix = f"rfc_fx/{group.group_name}"

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to talk to: one rank, or torch's fake group, which plays all ranks in one process."""
        return self.size == 1 or torch.distributed.get_backend(self.group) == "fake"

    @property
    def timeout(self) -> timedelta:
        """How long a collective of the group waits."""
        for device in ("cuda", "cpu"):
            try:
                found = self.group._get_backend(torch.device(device)).options._timeout
            except (RuntimeError, AttributeError, ValueError):  # the group has no back end for the device
                continue
            if isinstance(found, timedelta):
                return found
        return timedelta(minutes=10)

    def exchange(self, occasion: str, said: Mapping[str, str]) -> list[dict[str, str]]:
        """What each rank has said on this occasion, by rank; RanksError where one does not come to it within the group's timeout."""
        if self.is_alone:
            return [dict(said)] * self.size
        store = self.group.get_group_store()
        number = store.add(f"{self._prefix}/exchanges/{self.rank}", 1)
        store.set(f"{self._prefix}/{number}/{self.rank}", json.dumps({**said, "occasion": f"{self.model}: {occasion}"}))
        heard: list[dict[str, str]] = []
        for rank in range(self.size):
            try:
                store.wait([f"{self._prefix}/{number}/{rank}"], self.timeout)
                heard.append(json.loads(store.get(f"{self._prefix}/{number}/{rank}")))
            except RuntimeError as error:
                raise RanksError(
                    f"{self.model}: rank {self.rank} waited {self.timeout.total_seconds():g} s for rank {rank} {occasion}, and rank {rank} "
                    f"did not come to it{self._reports(rank)}; all ranks of a group have to transform, call and change the model alike"
                ) from error
        return heard

    def agree(self, occasion: str, said: Mapping[str, str]) -> None:
        """RanksError on every rank where they say different things on this occasion; it names who differs, and in what."""
        heard = self.exchange(occasion, said)
        mine = heard[self.rank]
        for name in mine:
            values = [each.get(name) for each in heard]
            usual = max(values, key=values.count)
            others = [rank for rank, each in enumerate(values) if each != usual]
            if others:
                shown = ", ".join(f"rank {rank}: {str(each)[:100]}" for rank, each in enumerate(values))
                raise RanksError(
                    f"{self.model}: ranks differ {occasion} in their {name} ({shown}); every rank of the group needs the same model, "
                    "adapters, method and configuration, and where they share one sequence the same inputs: seed the noise alike on all"
                )

    def smallest(self, occasion: str, number: int) -> int:
        """The smallest of the ranks' numbers."""
        return min(int(each["number"]) for each in self.exchange(occasion, {"number": str(number)}))

    def failed(self, error: Exception, where: str) -> Exception:
        """The error to raise for one in a step: that of a collective says what is known of the other ranks; others are told to them."""
        if isinstance(error, RanksError):
            return error
        text = str(error).strip().splitlines()[0] if str(error).strip() else ""
        message = f"{type(error).__name__}: {text}"
        if not is_of_collective(error):
            self._report(f"{where}: {message}")
            error.add_note(f"{self.model}: rank {self.rank} of {self.size} failed in {where}; the other ranks wait for it and fail in turn")
            return error
        others = "".join(self._reports(rank) for rank in range(self.size) if rank != self.rank)
        self._report(f"{where}: {message}")
        return RanksError(
            f"{self.model}: rank {self.rank} of {self.size} lost the others in {where}: a rank has died, stalls, or takes other steps"
            f"{others}; the collective said: {message}; the generation is ended, and the group may have to be made anew "
            "(torch.distributed.destroy_process_group, init_process_group)"
        )

    def _report(self, text: str) -> None:
        if not self.is_alone:
            try:
                self.group.get_group_store().set(f"{self._prefix}/failed/{self.rank}", text[:500])
            except RuntimeError as error:  # the rank that holds the store has died
                log.info("%s: the store of the group is gone: %s", self.model, error)

    def _reports(self, rank: int) -> str:
        key = f"{self._prefix}/failed/{rank}"
        try:
            store = self.group.get_group_store()
            return f"; rank {rank} reported: {store.get(key).decode()}" if store.check([key]) else ""
        except RuntimeError:
            return f"; the store of the group is gone, so nothing is known of rank {rank}"


def is_of_collective(error: Exception) -> bool:
    """Whether an error is that of a collective whose partner is gone."""
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in COLLECTIVE_ERRORS)


def written(tree: Any) -> str:
    """A digest of all values in a tree of arguments, on whatever device."""
    found = hashlib.sha256()
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor) and not leaf.is_meta:
            found.update(leaf.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(leaf).encode() if not isinstance(leaf, Tensor) else b"meta")
    return found.hexdigest()[:16]


SAMPLED = 16
"""Elements of each weight that are compared: another checkpoint, seed or adapter shows in some of them."""


def weights_of(model: nn.Module) -> str:
    """A digest of names, shapes and first elements of a model's weights: one transfer from the device."""
    named = [(name, weight.detach()) for name, weight in model.named_parameters()]
    found = hashlib.sha256("".join(f"{name}{tuple(weight.shape)}{weight.dtype}" for name, weight in named).encode())
    plain = [weight for _, weight in named if type(weight) in (Tensor, nn.Parameter) and not weight.is_meta and weight.numel()]
    if plain:
        found.update(torch.cat([weight.reshape(-1)[:SAMPLED].float().to(plain[0].device) for weight in plain]).cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def raise_named(ranks: tuple[Ranks, ...], error: BaseException, where: str) -> None:
    """Raise what a failed step says of its ranks, where there are some and the error is that of a collective."""
    if not ranks or not isinstance(error, Exception):
        return
    said = ranks[0].failed(error, where)
    if said is not error:
        raise said from error


def ranks_of(model: nn.Module, group: Any = None) -> tuple[Ranks, ...]:
    """The groups that a model's steps are shared with: the ranks of its sequence, and those of its decisions."""
    parallel = parallel_of(model)
    groups = [each for each in (None if parallel is None else parallel.group, group) if each is not None]
    return tuple(Ranks(type(model).__name__, each) for each in groups)


def before_capture(ranks: tuple[Ranks, ...], model: nn.Module, arguments: Mapping[str, Any], method: Any, config: Any) -> None:
    """All ranks capture one model for one method; RanksError before any collective of the model runs where they differ."""
    parallel = parallel_of(model)
    for each in ranks:
        said = {"method": repr(method), "configuration": repr(config)}
        if not each.is_alone:
            said |= {"weights": weights_of(model), "arguments": repr(sorted(arguments))}
            if parallel is not None and each.group is parallel.group:
                said["inputs"] = written(dict(arguments))
        each.agree("before the capture", said)


def after_capture(ranks: tuple[Ranks, ...], digests: Mapping[str, str]) -> None:
    """All ranks have made the same programs; RanksError where they have not."""
    for each in ranks:
        each.agree("after the capture", {f"program {phase}": digest for phase, digest in digests.items()})
