"""Calls of an engine: the programs are picked by the call's signature, as `rfc_fx.runtime.program_cache` does for models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rfc_export.calls import RETURN_DICT
from rfc_export.loaded import LoadedSet
from rfc_fx.errors import SignatureError
from rfc_fx.runtime.calls import Call, CallPattern, described, new_call


class EngineCalls:
    """The programs of an engine for each call that it answers; the number of the set is the key of a lane's state."""

    def __init__(self, sets: Sequence[LoadedSet], timestep: str | None) -> None:
        self.sets, self._timestep = sets, timestep
        self.latest = 0
        """The set used last."""
        self._patterns: list[CallPattern] = []

    def recognise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call with its programs; one that is written as an earlier one was is recognised at once. SignatureError for another."""
        for pattern in self._patterns:
            if (written := pattern.match(args, kwargs)) is not None:
                self.latest = pattern.key
                return pattern.call(self.sets[pattern.key], written)
        refusals = []
        for key, loaded in enumerate(self.sets):
            try:
                call = self._matched(key, loaded, args, kwargs)
            except SignatureError as error:
                refusals.append(error)
            else:
                self.latest = key
                return call
        raise self._refusal(refusals, args, kwargs)

    def _matched(self, key: int, loaded: LoadedSet, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        expected = loaded.expected
        arguments, leaves = expected.match(args, kwargs, loaded.device)
        call = new_call(key, loaded, leaves, arguments, self._timestep)
        given = expected.given(args, kwargs)
        if given.keys() == arguments.keys() and not expected.fixed and RETURN_DICT not in given:
            pattern = CallPattern.of(call, arguments, self._timestep, args, kwargs)
            self._patterns = [*([] if pattern is None else [pattern]), *self._patterns][: len(self.sets)]
        return call

    def _refusal(self, refusals: list[SignatureError], args: tuple[Any, ...], kwargs: dict[str, Any]) -> SignatureError:
        """Why no set fits: the one reason, or what came and the list of calls."""
        if len({str(error) for error in refusals}) == 1:
            return refusals[0]
        expected = self.sets[0].expected
        calls = [loaded.expected.shapes() for loaded in self.sets]
        common = set.intersection(*(set(shapes.items()) for shapes in calls))
        listed = "; ".join(", ".join(f"{name} {what}" for name, what in shapes.items() if (name, what) not in common) for shapes in calls)
        return SignatureError(
            f"{expected.name}: this engine answers {len(calls)} calls ({listed}), none of them is that with "
            f"{described(expected.given(args, kwargs))}; add it with rfc-fx export --add, or export(..., add=True)"
        )

    def has_changed(self) -> bool:
        """Never: an artefact is what it is."""
        return False

    def is_touched(self) -> bool:
        """Never."""
        return False

    @property
    def is_empty(self) -> bool:
        """Never."""
        return False

    def visitors(self) -> tuple[list[str], None]:
        """None: there is no model to put hooks on."""
        return [], None

    def drop(self) -> None:
        """Nothing is captured anew."""
