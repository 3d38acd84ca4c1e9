"""Recall: full steps that were computed before, for the same calls of a generation, are handed out again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rfc.phase import FULL
from rfc_fx.ir.program import ProgramSet
from rfc_fx.runtime.context import Context

MOST_BYTES = 1 << 30
"""Of what is kept."""

STALE = 4
"""Times as many calls as are kept, after which what nobody asked for makes room."""


@dataclass
class _Kept:
    results: list[Tensor]
    state: list[Tensor]
    used: int
    """Number of the call that asked for it last."""

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.results, *self.state))


class Recall:
    """What FULL gave and wrote, by all that it had been given since its generation began, bit for bit.

    For draws of the same seeds that differ from some step on, as a search makes them (`rfc.refined`): the steps before need not be
    computed again. Kept is what is asked for a second time, so each is computed twice. For methods whose decisions no data make and
    whose skipped steps write nothing, while the model stays as it is and no other thread calls it.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.hits = 0
        self._asked = 0
        self._seen = set[bytes]()
        self._kept: dict[bytes, _Kept] = {}
        self._so_far: WeakKeyDictionary[Context, bytes] = WeakKeyDictionary()
        self._sets: list[ProgramSet] = []

    def results(self, context: Context, phase: str, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """What the step gives, with its state written; None where it is to be computed, and `keep` told."""
        if phase != FULL.name or context.prefix is not None:
            return None
        self._asked += 1
        key = self._so_far[context] = self._key(context, inputs)
        if (kept := self._kept.get(key)) is None:
            return None
        self.hits += 1
        kept.used = self._asked
        for tensor, value in zip(_held(context), kept.state, strict=True):
            tensor.copy_(value)
        return [tensor.clone() for tensor in kept.results]

    def keep(self, context: Context, phase: str, results: Sequence[Tensor]) -> None:
        """Take in what a step has given."""
        key = self._so_far.get(context)
        if phase != FULL.name or key is None or key in self._kept:
            return
        if key not in self._seen:
            self._seen.add(key)
            return
        made = _Kept([tensor.clone() for tensor in results], [tensor.clone() for tensor in _held(context)], self._asked)
        held = sum(kept.bytes for kept in self._kept.values())
        if held + made.bytes > self.most_bytes:
            self._kept = {key: kept for key, kept in self._kept.items() if self._asked - kept.used <= STALE * len(self._kept)}
            held = sum(kept.bytes for kept in self._kept.values())
        if held + made.bytes <= self.most_bytes:
            self._kept[key] = made

    def _key(self, context: Context, inputs: Sequence[Tensor]) -> bytes:
        clock = context.book.clock
        is_first = clock[2] == 0  # no full step before it in its generation: whatever the state holds is not read
        found = hashlib.blake2b(b"" if is_first else self._so_far.get(context, b""), digest_size=16)
        found.update(repr((self._number(context.compiled), clock)).encode())
        for tensor in inputs:
            found.update(repr((tensor.shape, tensor.dtype)).encode())
            flat = tensor.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)  # of one element any stride is contiguous
            found.update(flat.view(torch.uint8).numpy().data)
        return found.digest()

    def _number(self, compiled: ProgramSet) -> int:
        for number, known in enumerate(self._sets):
            if known is compiled:
                return number
        self._sets.append(compiled)
        return len(self._sets) - 1


def _held(context: Context) -> list[Tensor]:
    return list(context.memory().values())
