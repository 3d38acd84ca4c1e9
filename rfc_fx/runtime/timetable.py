"""Timetable: the timesteps of one generation in call order, and which of them a call is at."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rfc.arguments import timestep_value
from rfc.conditioning import version
from rfc.placement.noise_levels import noise_levels
from rfc.schedules.base import NoiseLevels
from rfc_fx.runtime import calls

log = logging.getLogger("rfc_fx")

Reading = Callable[[Tensor, torch.dtype, float], Tensor]

Stage = tuple[float, float]
"""Timesteps of a scheduler from the first up to below the second, which one of several denoisers is called at."""

READINGS: tuple[Reading, ...] = (
    lambda t, dtype, most: t.to(dtype),
    lambda t, dtype, most: t.to(dtype) / most,
    lambda t, dtype, most: (t / most).to(dtype),
    lambda t, dtype, most: (most - t.to(dtype)) / most,
    lambda t, dtype, most: 1 - t.to(dtype) / most,
    lambda t, dtype, most: most - t.to(dtype),
)
"""What pipelines make of a scheduler's timesteps before they hand them to the model; `most` are the training steps."""


class Timetable:
    """The timesteps that a generation is called with, in order, said by the caller or read from a scheduler as it stands.

    Reads the list once. What a pipeline makes of the scheduler's timesteps (FLUX divides by 1000, Z-Image counts from 0 to 1) is found
    from the first calls; a scheduler that counts its steps says where a call is, without a look at the device.
    """

    def __init__(self, timesteps: Tensor, scheduler: Any = None, stage: Stage | None = None, source: Tensor | None = None) -> None:
        self.source = timesteps if source is None else source
        """The scheduler's own object: another in its place is another generation. Or the caller's, from which `timesteps` were copied."""
        self._version = version(self.source)
        self._scheduler = scheduler
        self._most = float(getattr(getattr(scheduler, "config", None), "num_train_timesteps", None) or 1000)
        with torch.inference_mode(False):
            self._timesteps = timesteps.detach().cpu().clone()
        low, high = stage or (-math.inf, math.inf)
        inside = ((self._timesteps >= low) & (self._timesteps < high)).nonzero().flatten().tolist()
        self.last = inside[-1] + 1 if inside else len(self._timesteps)
        """Behind the last call of this denoiser."""
        self._start = inside[0] if inside else 0
        self.share = 1.0 if stage is None else len(inside) / len(self._timesteps)
        """Of the calls of a generation, this denoiser's."""
        self._readings = list(READINGS) if scheduler is not None else [READINGS[0]]
        self._called: dict[tuple[Reading, torch.dtype], Tensor] = {}
        self._places: dict[tuple[Reading, torch.dtype], dict[float, list[int]]] = {}
        self._remaining: tuple[Any, Tensor] | None = None
        self._dtype: torch.dtype | None = None
        self.first: int | None = None
        """Index of the generation's first call in the list: image to image begins in the middle."""
        self.index: int | None = None
        """Of the latest call."""
        self.is_certain = False
        """Whether it is known what the model is called with: the readings that fit the calls so far agree on all timesteps."""
        self._values: list[float] = []
        """What it is called with, as far as that is certain."""

    def __len__(self) -> int:
        return len(self._timesteps)

    @classmethod
    def of(cls, scheduler: Any, stage: Stage | None = None) -> Timetable | None:
        """That of a scheduler as it stands; None where its timesteps are not set."""
        timesteps = getattr(scheduler, "timesteps", None)
        return cls(timesteps, scheduler, stage) if isinstance(timesteps, Tensor) and timesteps.dim() == 1 and len(timesteps) else None

    @property
    def is_current(self) -> bool:
        """Whether the scheduler still has these timesteps."""
        return self._scheduler is None or self._scheduler.timesteps is self.source

    def levels(self) -> NoiseLevels | None:
        """The noise levels from the first call on; None where the scheduler has none."""
        if self._scheduler is None:
            return None
        try:
            levels = noise_levels(self._scheduler)
        except ValueError as error:
            log.info("%s", error)
            return None
        if len(levels.lambdas) != len(self):
            return None
        end = levels.end if self.last == len(self) else levels.lambdas[self.last]
        return NoiseLevels(levels.lambdas[self.first or 0 : self.last], end, levels.is_flow)

    @property
    def remaining(self) -> int:
        """Calls from the first one on."""
        return max(1, self.last - (self.first or 0))

    def called(self, dtype: torch.dtype) -> Tensor:
        """The timesteps from the first call on as the model is called with them, on the host; the same object for the same timesteps."""
        key = self._readings[0], dtype, self.first
        if self._remaining is None or self._remaining[0] != key:
            self._remaining = key, self._as_called(self._readings[0], dtype)[self.first or 0 :]
        return self._remaining[1]

    @property
    def timestep(self) -> float | None:
        """The timestep of the latest call, as the model saw it."""
        return None if self.index is None else self._values[self.index]

    @property
    def sign(self) -> int:
        """Which way the timestep goes from noise to image, as the model sees it: 1 where it falls, -1 where it rises."""
        return -1 if self._values and self._values[0] < self._values[-1] else 1

    def arrive(self, timestep: Any) -> int | None:
        """The index of a call, counted from the generation's first; None where its timestep is none of the list.

        Reads a timestep on a device only where neither the scheduler nor the tensor's place in the scheduler's list says the index,
        and in first calls, until it is certain what the pipeline makes of the list.
        """
        self._dtype = dtype = timestep.dtype if isinstance(timestep, Tensor) else torch.get_default_dtype()
        on_host = calls.on_host(timestep)
        index = self._counted(timestep)
        if on_host or index is None or not self.is_certain:
            value, due = timestep_value(timestep), index
            if due is None and self.index is not None:
                due = self.index + 1
            if not self.is_certain or due is None or due >= len(self) or self._values[due] != value:
                due = self._found(value, dtype, index)
            index = due
        if index is None:
            return None
        if self.first is None:
            self.first = index
        self.index = index
        return index - self.first

    def _counted(self, timestep: Any) -> int | None:
        """The index by the scheduler's own count, or by the place of a view in the scheduler's list."""
        counted = getattr(self._scheduler, "step_index", None)
        if isinstance(counted, int):
            return counted if counted < len(self) else None
        return self._index_of_view(timestep)

    def is_view(self, timestep: Tensor) -> bool:
        """Whether the latest call's timestep is the list's own element, so that it needs no look at its value."""
        return self.index is not None and self._index_of_view(timestep) == self.index

    def _index_of_view(self, timestep: Any) -> int | None:
        if self._scheduler is None and (self._version is None or self._version != version(self.source)):
            return None  # the caller may have written other timesteps there
        if isinstance(timestep, Tensor) and timestep.numel() and isinstance(self.source, Tensor) and not timestep.is_meta:
            same = timestep.dtype == self.source.dtype and timestep.untyped_storage().data_ptr() == self.source.untyped_storage().data_ptr()
            if same and all(step == 0 or size == 1 for step, size in zip(timestep.stride(), timestep.shape, strict=True)):
                index = (timestep.storage_offset() - self.source.storage_offset()) // max(1, self.source.stride(0))
                return index if 0 <= index < len(self) else None
        return None

    def _found(self, value: float | None, dtype: torch.dtype, counted: int | None) -> int | None:
        """The index of a timestep by its value; what does not fit it is no reading of this pipeline."""
        if value is None:
            return None
        if counted is None and self.index is None:  # unless the list says otherwise, a generation begins where it begins
            begin = getattr(self._scheduler, "begin_index", None)
            counted = max(begin, self._start) if isinstance(begin, int) else self._start
        by_reading = {reading: self._matches(reading, dtype, value) for reading in self._readings}
        fitting = [reading for reading, matches in by_reading.items() if matches]
        if counted is not None and any(counted in by_reading[reading] for reading in fitting):
            fitting = [reading for reading in fitting if counted in by_reading[reading]]
            index: int | None = counted
        elif fitting:
            matches = by_reading[fitting[0]]
            due = -1 if self.index is None else self.index
            index = next((match for match in matches if match > due), due if due in matches else matches[0])
        else:
            return None
        self._readings = fitting
        self._values = self._as_called(fitting[0], dtype).double().tolist()
        self.is_certain = all(torch.equal(self._as_called(fitting[0], dtype), self._as_called(other, dtype)) for other in fitting[1:])
        return index

    def _matches(self, reading: Reading, dtype: torch.dtype, value: float) -> list[int]:
        """Where a timestep stands in the list as that reading has it."""
        if (places := self._places.get((reading, dtype))) is None:
            places = self._places[reading, dtype] = {}
            for index, called in enumerate(self._as_called(reading, dtype).double().tolist()):
                places.setdefault(called, []).append(index)
        return places.get(value, [])

    def _as_called(self, reading: Reading, dtype: torch.dtype) -> Tensor:
        if (reading, dtype) not in self._called:
            with torch.inference_mode(False):
                self._called[reading, dtype] = reading(self._timesteps, dtype, self._most)
        return self._called[reading, dtype]


def said(timesteps: Tensor | Sequence[float], where: str) -> Tensor:
    """Timesteps that a caller gave, (S,); ValueError for another shape."""
    try:
        with torch.inference_mode(False):
            prepared = torch.as_tensor(timesteps).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where}: timesteps must be numbers, in a list or a tensor of shape (S,), got {timesteps!r}") from error
    if prepared.dim() != 1 or not prepared.numel():
        raise ValueError(f"{where}: timesteps must have shape (S,) with S at least 1, got {tuple(prepared.shape)}")
    return prepared
