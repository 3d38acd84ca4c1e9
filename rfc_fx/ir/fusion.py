"""Fusion: what Inductor must not fuse, by its own hook for heuristics (`inductor_choices_class`)."""

from __future__ import annotations

from typing import Any

import torch._inductor.config as inductor


def keep_overwrites_apart() -> None:
    """Keep a reduction out of loops in which one operation reads a buffer and another overwrites it, as FULL does with its state.

    Inductor's C++ back end takes the order of the two for a value that is passed on, and raises `KeyError: 'buf161'` (pytorch#188228).
    Heuristics that a user has set stay.
    """
    if getattr(inductor, "inductor_choices_class", _careful) is None:
        inductor.inductor_choices_class = _careful


def _careful() -> Any:
    from torch._inductor.choices import InductorChoices  # seconds: only where something is compiled

    class Careful(InductorChoices):
        @classmethod
        def uuid(cls) -> str:
            return "rfc_fx.ir.fusion 2"

        @staticmethod
        def can_fuse_vertical(scheduler: Any, node1: Any, node2: Any, shared_data_score: int) -> bool:
            if _share_outer_loops(scheduler, node1, node2) and _mixes(node1, node2):
                return False
            return InductorChoices.can_fuse_vertical(scheduler, node1, node2, shared_data_score)

    return Careful()


def _share_outer_loops(scheduler: Any, node1: Any, node2: Any) -> bool:
    """Whether the two would be fused by their outer loops alone, which the C++ back end does and no other."""
    can_share = getattr(scheduler.get_backend(node1.get_device()), "can_fuse_vertical_outer_loop", None)
    return can_share is not None and bool(can_share(node1, node2))


def _mixes(node1: Any, node2: Any) -> bool:
    nodes = [*node1.get_nodes(), *node2.get_nodes()]
    if not any(node.is_reduction() for node in nodes):
        return False
    users = [user for node in nodes for buffer in node.get_outputs() for user in buffer.users]
    return any(user.is_weak and user.node in nodes for user in users)
