"""Layout: where the state lies in memory. Slots that look alike share one pool in which a token's rows of all sites are neighbours.

An estimated step that forecasts all sites in one pass then reads one stream of memory from end to end, not two for each site.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rfc.state import SlotSpec

ALIGNMENT = 16
"""Bytes at whose multiples compilers take tensors to begin."""


@dataclass(frozen=True)
class Pool:
    """Slots of one shape (*S, D) and type, stored as (*S, number of slots, D)."""

    name: str
    slots: tuple[str, ...]
    spec: SlotSpec
    """Of the pool."""


@dataclass(frozen=True)
class Layout:
    """Slots, and the pools they lie in; a slot in no pool has memory of its own."""

    slots: Mapping[str, SlotSpec]
    pools: tuple[Pool, ...] = ()
    places: Mapping[str, tuple[Pool, int]] = field(default_factory=dict)
    """Slot -> its pool and its row there."""

    @classmethod
    def pooled(cls, slots: Mapping[str, SlotSpec], alone: AbstractSet[str] = frozenset()) -> Layout:
        """Put slots of one shape and type into one pool, in their order, but for those `alone`.

        And for those whose rows are no whole number of 16 bytes (a scale, a scalar of a token): the next slot would begin where Inductor's
        code for CUDA may not write; it drops such a tensor from its CUDA graphs and hands an engine a copy, in which writes are lost.
        """
        alike: dict[SlotSpec, list[str]] = {}
        for name, spec in slots.items():
            if spec.shape and name not in alone and spec.shape[-1] * spec.dtype.itemsize % ALIGNMENT == 0:
                alike.setdefault(spec, []).append(name)
        groups = [(spec, tuple(names)) for spec, names in alike.items() if len(names) > 1]
        pools = tuple(
            Pool(f"pool_{i}", names, spec._replace(shape=(*spec.shape[:-1], len(names), spec.shape[-1])))
            for i, (spec, names) in enumerate(groups)
        )
        return cls(slots, pools, {name: (pool, row) for pool in pools for row, name in enumerate(pool.slots)})

    def allocate(self, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Zeros at fixed addresses, usable inside and outside inference mode: (slots by name, pools by name).

        A slot in a pool has a storage object of its own over the pool's memory: slots never overlap, and a compiler that saw one
        storage behind many written arguments would have to assume that they do.
        """
        with torch.inference_mode(False):
            pools = {pool.name: torch.zeros(pool.spec.shape, dtype=pool.spec.dtype, device=device) for pool in self.pools}
            slots: dict[str, Tensor] = {}
            for name, spec in self.slots.items():
                if name in self.places:
                    pool, row = self.places[name]
                    slots[name] = _own_storage(pools[pool.name].select(-2, row))
                else:
                    slots[name] = torch.zeros(spec.shape, dtype=spec.dtype, device=device)
        return slots, pools


def _own_storage(view: Tensor) -> Tensor:
    """The same memory behind another storage object."""
    if view.is_meta:
        return torch.empty_strided(view.shape, view.stride(), dtype=view.dtype, device="meta")
    bits = view.view(torch.uint8) if view.dtype.itemsize == 1 else view  # not every exchange knows eight-bit floats
    shared: Tensor = torch.from_dlpack(bits)  # type: ignore[attr-defined]
    return shared.view(view.dtype)
