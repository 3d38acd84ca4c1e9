"""Program cache: the program sets of a model by call signature, made at the first call and dropped when the model changes."""

from __future__ import annotations

import inspect
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import count
from typing import Any, Protocol

from torch import device, inference_mode, nn

from rfc.conditioning import Seen
from rfc_fx.capture.export import named_arguments
from rfc_fx.capture.fingerprint import Fingerprint, fingerprint
from rfc_fx.capture.lifted import NotLiftedError
from rfc_fx.capture.refusals import hooks_of_guiders, refuse
from rfc_fx.capture.watch import Watch
from rfc_fx.errors import CaptureError, RFCError
from rfc_fx.ir.program import BuiltSet
from rfc_fx.runtime.calls import Call, CallPattern, Key, described, new_call, signature, with_tensor
from rfc_fx.runtime.cuda_graphs import Addresses
from rfc_fx.runtime.dynamo import capturing
from rfc_fx.runtime.numbers import Numbers, tensors_for

log = logging.getLogger("rfc_fx")


MAX_SIGNATURES = 8
"""Programs are kept for this many call signatures, and those that opened generations use; the one used longest ago goes first."""


_CAPTURES = threading.RLock()
"""Held while a model is captured: torch.export works for one thread at a time."""


class ProgramSource(Protocol):
    """Where a driver has its programs from."""

    @property
    def is_empty(self) -> bool:
        """Whether there are no programs yet."""
        ...

    def recognise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call with the programs for it."""
        ...

    def has_changed(self) -> bool:
        """Whether what the programs were made from is no longer what it was."""
        ...

    def is_touched(self) -> bool:
        """The same, cheap enough to be asked before every step; it may miss what `has_changed` sees."""
        ...

    def visitors(self) -> tuple[list[str], Callable[..., Any] | None]:
        """Names of hooks that are on the model for this call alone, and the plain model, which takes it; asked where something is new."""
        ...

    def drop(self) -> None:
        """Drop all programs, and the state that goes with them."""
        ...


class ProgramCache:
    """The program sets of one model, by call signature; the one used last is the last.

    `make` builds the set for the arguments of a call; `on_drop` hears of the keys whose sets are gone, `on_move` of the CUDA device
    on which the weights lie elsewhere than when the generation before began; `in_use` are keys whose sets do not make room.
    """

    def __init__(
        self,
        model: nn.Module,
        call_signature: inspect.Signature,
        timestep: str | None,
        make: Callable[[Mapping[str, Any]], BuiltSet],
        on_drop: Callable[[Collection[Key]], None],
        on_move: Callable[[device], None],
        in_use: Callable[[], Collection[Key]],
    ) -> None:
        self._model, self._name = model, type(model).__name__
        self._call_signature, self._timestep = call_signature, timestep
        self._timestep_position = [*call_signature.parameters, timestep].index(timestep)
        self._make, self._on_drop, self._on_move, self._in_use = make, on_drop, on_move, in_use
        self._addresses = Addresses(model)
        self._sets: OrderedDict[Key, BuiltSet] = OrderedDict()
        self._shapes: dict[Key, Any] = {}
        self._decided: dict[Key, dict[int, Seen]] = {}
        """Flat arguments whose values the model's forward read, as they were."""
        self._patterns: list[CallPattern] = []
        self._numbers = Numbers(self._name)
        self.lifts = True
        """Whether plain numbers that change from call to call may become inputs."""
        self._keys = count()
        self._fingerprint: Fingerprint = ()
        self._watch: Watch | None = None
        self._last: Key | None = None
        self._lock = threading.RLock()
        """Held where sets are looked up or made; never while a step runs."""

    def __len__(self) -> int:
        return len(self._sets)

    def __iter__(self) -> Iterator[BuiltSet]:
        return iter(self._sets.values())

    @property
    def is_empty(self) -> bool:
        """Whether nothing is captured."""
        return not self._sets

    @property
    def latest(self) -> BuiltSet:
        """The set used last. RFCError when nothing was captured."""
        if not self._sets:
            raise RFCError(f"{self._name}: nothing captured yet; pass example_inputs to rfc_fx.transform or call the model once")
        return next(reversed(self._sets.values()))

    def recognise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call with its programs; one that is written as an earlier one was, and differs in values alone, is recognised at once."""
        if self._model.training:
            raise RFCError(f"{self._name} is in training mode; call .eval() first: dropout is not part of a cached step")
        if (call := self._known(args, kwargs)) is not None:
            return call
        args, kwargs = with_tensor(args, kwargs, self._timestep, self._timestep_position)
        if (call := self._known(args, kwargs)) is not None:
            return call
        with _CAPTURES, self._lock:  # several threads may make the first call: one captures, the others wait
            return self._taken_apart(args, kwargs)

    def _known(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """The call, where it is written as an earlier one was."""
        for pattern in self._patterns:
            written = pattern.match(args, kwargs)
            if written is None:
                continue
            key = pattern.key
            decided = self._decided.get(key)
            if decided is None or (decided and not self._holds(key, [written[index] for index in pattern.leaves])):
                continue
            built = self._sets.get(key) if key == self._last else self._use(key)
            if built is not None:
                return pattern.call(built, written)
        return None

    def _taken_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        try:
            arguments = named_arguments(self._call_signature, args, kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}.{error}") from None
        whole, leaves = signature(arguments, self._model)
        shape, numbers = whole, dict[int, float]()
        if (key := self._find(whole, leaves)) is None and self.lifts:
            shape, numbers = self._numbers.lift(whole, self._shapes.values())
            key = self._find(shape, leaves) if numbers else None
        if key is None and numbers:
            try:
                key = self._add(self._numbers.as_lifted(arguments, numbers), shape, leaves)
            except (NotLiftedError, CaptureError) as error:
                self._numbers.leave(arguments, numbers, error)
                shape, numbers = whole, {}
                key = self._find(shape, leaves)
        if key is None:
            key = self._add(arguments, shape, leaves)
        built = self._use(key)
        assert built is not None
        call = new_call(key, built, tensors_for(leaves, numbers), arguments, self._timestep)
        if not numbers and (pattern := CallPattern.of(call, arguments, self._timestep, args, kwargs)) is not None:
            self._patterns = [pattern, *self._patterns][:MAX_SIGNATURES]
        return call

    def _find(self, shape: Any, leaves: list[Any]) -> Key | None:
        return next((key for key in self._sets if self._shapes[key] == shape and self._holds(key, leaves)), None)

    def _add(self, arguments: Mapping[str, Any], shape: Any, leaves: list[Any]) -> Key:
        if self.has_changed():
            self.drop()
        refuse(self._model)
        if self._sets:
            log.warning("%s: new call signature, capturing programs number %d", self._name, len(self._sets) + 1)
        else:
            self._fingerprint = fingerprint(self._model)
        try:
            with inference_mode(False), capturing():
                built = self._make(arguments)
        except Exception as error:
            error.add_note(f"{self._name}: raised while the plain model was run and traced for a call with {described(arguments)}")
            raise
        self._watch = Watch(self._model)  # after the capture, in which a forward may keep what it has computed
        key = next(self._keys)
        self._sets[key], self._shapes[key] = built, shape
        self._decided[key] = {position: Seen.now(leaves[position]) for position in built.decided}
        if (many := len(self._sets) - MAX_SIGNATURES) > 0:
            used = {key, *self._in_use()}
            self._forget([each for each in self._sets if each not in used][:many])
        return key

    def _holds(self, key: Key, leaves: list[Any]) -> bool:
        """Whether `leaves` have the values that a forward read when this set was made, and numbers that answer what it asked alike."""
        if not all(seen.equals(leaves[position]) for position, seen in self._decided[key].items()):
            return False
        return all(answer.holds(leaves) for answer in self._sets[key].answers)

    def _use(self, key: Key) -> BuiltSet | None:
        """The set of a key, which is now the one used last; None where another thread has dropped it."""
        if key != self._last:
            with self._lock:
                if key not in self._sets:
                    return None
                self._sets.move_to_end(key)
                self._last = key
        return self._sets.get(key)

    def has_changed(self) -> bool:
        """Whether the model changed since capture: adapters, types, devices, modules, or anything else that its Python objects hold."""
        if (where := self._addresses.moved_on()) is not None:
            self._on_move(where)
        if not self._sets or self._watch is None:
            return False
        return self._watch.has_changed_at_all() or fingerprint(self._model) != self._fingerprint

    def is_touched(self) -> bool:
        """Whether hooks, processors, scales or flags of the model are others than at capture."""
        return self._watch is not None and self._watch.has_changed()

    def visitors(self) -> tuple[list[str], Callable[..., Any] | None]:
        """Names of the hooks that a guider has put on the model for this call alone, and the plain model, which takes it."""
        return hooks_of_guiders(self._model), self._model

    def drop(self) -> None:
        """Drop all programs and their state: they are captured anew."""
        with self._lock:
            if self._sets:
                log.warning("%s was changed since it was captured; it is captured anew", self._name)
                self._forget(list(self._sets))

    def _forget(self, keys: Collection[Key]) -> None:
        for key in keys:
            self._decided.pop(key)
            del self._sets[key], self._shapes[key]
        self._patterns = [pattern for pattern in self._patterns if pattern.key not in keys]
        self._last = None
        if not self._sets:
            self._watch = None
        self._on_drop(keys)
