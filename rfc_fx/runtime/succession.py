"""Succession: which run of a sampler loop a latent belongs to, by what the loop was at before; no name and no timestep says it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfc.conditioning import version

Rows = NDArray[np.float64]
"""(B, n): elements of a latent or output, the same ones of every sample."""

MOMENTS = 3
"""Latest steps of a run that the next latent may be made of: multistep solvers take in earlier outputs."""

ELEMENTS = 4096
"""Elements of a latent that are looked at, of all samples together; at least 64 of each."""

SHARE = 0.1
"""Largest share of a latent that may lie outside the span of the latents and outputs before, for it to be the sampler's own.

Measured with 20 steps of 12 deterministic samplers of diffusers: at most 0.001 (rounding), those of another generation from 0.27.
Where the sampler clips outputs: 0.002 with the digits model, 0.8 with a random one under strong guidance, which is then computed in full.
"""

ROUNDED = 0.001
"""The largest that rounding was measured to leave."""

EXACT = 0.01
"""The same for two calls at one timestep, which solvers of higher order make: their latents are sums."""

CLEARLY = 0.5
"""Another run than the lane's is the nearer one where the share outside it is less than this part of the share outside the lane's."""

COMPARED = 4
"""Latest runs that are compared where the run of the lane does not say it exactly."""

MAX_RUNS = 64


class Moment:
    """One latent of a run, and what the model made of it; conditional and unconditional calls are at one moment."""

    def __init__(self, at: Any, latent: Tensor, rows: Rows) -> None:
        self.at, self.rows = at, rows
        self.latent, self.version = latent, version(latent)
        self.inside: NDArray[np.bool_] | None = None
        """(n,): elements that outputs have too; None where the output has another form than the latent."""
        self.lanes: set[Any] = set()
        """Lanes that were called here."""
        self._outputs: list[Rows] = []
        self._unread: list[Tensor] = []
        """(B, n) each, on the device."""

    def is_same(self, at: Any, latent: Tensor) -> bool:
        """Whether a call is made with this latent: the same object, unwritten since."""
        return bool(self.at == at) and self.latent is latent and self.version is not None and version(latent) == self.version

    def is_equal(self, at: Any, rows: Rows) -> bool:
        """Whether a call is made with a latent of the same values."""
        return bool(self.at == at) and np.array_equal(self.rows, rows)

    def add(self, output: Tensor) -> None:
        """What the model made of the latent: (B, n), zero where it has no element in the place of the latent's."""
        self._unread.append(output)

    def outputs(self) -> list[Rows]:
        """What the model made of the latent; one transfer where it lies on a device."""
        if self._unread:
            self._outputs += list(_read(torch.stack(self._unread)))
            self._unread.clear()
        return self._outputs


Run = deque[Moment]
"""One run of a sampler loop: its latest moments."""


class Succession:
    """The runs of one thread or task that opens no generation."""

    def __init__(self) -> None:
        self._runs: list[Run] = []
        """The one used last is the last."""
        self._places: dict[Any, Places] = {}
        """By shapes of latent and output, and device."""

    def find(self, latent: Tensor, at: Any, expected: Run | None, is_elsewhere: Callable[[Rows, float], bool] = lambda *_: False) -> Run:
        """The run of a call: the one that is at this latent, the one that the latent follows from, or a new one.

        `expected`: the run that the call's lane is in. `is_elsewhere`: whether less than a share of a latent lies outside what was drawn in
        another place; asked where more than rounding lies outside what was drawn here. Reads `ELEMENTS` of the latent, and none where the
        latent is the object of the call before.
        """
        for run in reversed(self._runs):
            if run[-1].is_same(at, latent):
                return self._latest(run)
        shape = _shape(latent)
        rows = _read(self._between(shape, shape, latent.device).of(latent))
        if expected is not None and expected[-1].is_equal(at, rows):
            return self._latest(expected)
        share, nearest = np.inf, None
        if expected is not None and (own := outside(rows, expected)) <= (EXACT if expected[-1].at == at else SHARE):
            share, nearest = own, expected
        if share > EXACT:  # not before: the same picture drawn once more has the latents of the run that drew it first
            for run in reversed(self._runs):
                if run[-1].is_equal(at, rows):
                    return self._latest(run)
            for known in self._runs[: -COMPARED - 1 : -1]:
                if (own := outside(rows, known)) < CLEARLY * share and own <= (EXACT if known[-1].at == at else SHARE):
                    share, nearest = own, known
                if share <= EXACT:
                    break
        if nearest is not None and not (share > ROUNDED and is_elsewhere(rows, CLEARLY * share)):
            nearest.append(Moment(at, latent, rows))
            return self._latest(nearest)
        run = Run([Moment(at, latent, rows)], maxlen=MOMENTS)
        self._runs = [*self._runs[1 - MAX_RUNS :], run]
        return run

    def explains(self, rows: Rows, share: float) -> bool:
        """Whether less than that share of a latent lies outside one of the latest runs."""
        return any(outside(rows, run) < share for run in self._runs[: -COMPARED - 1 : -1])

    @property
    def at(self) -> Any:
        """The timestep of the latest call; None before the first."""
        return self._runs[-1][-1].at if self._runs else None

    def is_at(self, latent: Tensor) -> bool:
        """Whether this is the latent of the latest call: the same object, unwritten since."""
        return bool(self._runs) and (moment := self._runs[-1][-1]).is_same(moment.at, latent)

    def note(self, output: Tensor) -> None:
        """Take in what the model made of the latest latent."""
        moment = self._runs[-1][-1]
        shape, own = _shape(moment.latent), _shape(output)
        if len(shape) != len(own) or shape[0] != own[0] or sum(a != b for a, b in zip(shape, own, strict=True)) > 1:
            return
        places = self._between(shape, own, output.device)
        moment.inside = places.inside
        moment.add(places.of(output))

    def _latest(self, run: Run) -> Run:
        if self._runs[-1] is not run:
            self._runs = [*(each for each in self._runs if each is not run), run]
        return run

    def _between(self, latent: tuple[int, ...], output: tuple[int, ...], device: torch.device) -> Places:
        places = self._places.get((latent, output, device))
        if places is None:
            places = self._places[latent, output, device] = Places(latent, output, device)
        return places


class Places:
    """Which elements of an output belong to those that are looked at in a latent; shapes (B, ...)."""

    def __init__(self, latent: tuple[int, ...], output: tuple[int, ...], device: torch.device) -> None:
        count = int(np.prod(latent[1:]))
        chosen = np.random.default_rng(0).permutation(count)[: max(64, ELEMENTS // latent[0])]
        axes = np.unravel_index(np.sort(chosen), latent[1:])
        self.inside = np.all([axis < size for axis, size in zip(axes, output[1:], strict=True)], axis=0)
        """(n,): which the output has."""
        found = np.ravel_multi_index([np.minimum(axis, size - 1) for axis, size in zip(axes, output[1:], strict=True)], output[1:])
        self._samples = latent[0]
        with torch.inference_mode(False):
            self._index = torch.from_numpy(found).to(device)

    def of(self, tensor: Tensor) -> Tensor:
        """(B, n) in float32, a copy; elements that it does not have are others of its own."""
        return tensor.detach().reshape(self._samples, -1).index_select(1, self._index).float()


def outside(rows: Rows, run: Run) -> float:
    """The share of a latent that no sampler makes of a run's latents and outputs: what lies outside their span, of the worst sample.

    Infinite where it cannot be told, and where no output has a part in it. Elements that stay as they were (an image to edit, a mask
    beside the latent) say nothing. Samples of one latent share their outputs: guidance by batch.
    """
    before = run[-1]
    if before.inside is None or before.rows.shape != rows.shape:
        return np.inf
    if not np.isfinite(before.rows).all():  # nothing follows from it but more of the kind
        return np.inf if np.isfinite(rows).all() else 0.0
    moments = [moment for moment in reversed(run) if moment.rows.shape == rows.shape]
    if is_multiple(rows, run):
        return np.inf
    worst = 0.0
    for sample, row in enumerate(rows):
        moved = before.inside & (row != before.rows[sample])
        size = int(moved.sum())
        if not size:
            continue
        mates = [mate for mate in range(len(rows)) if np.array_equal(before.rows[mate, moved], before.rows[sample, moved])]
        span: list[Rows] = []
        for moment in moments:
            vectors = [moment.rows[sample], *(output[mate] for output in moment.outputs() for mate in mates)]
            if span and 4 * (len(span) + len(vectors)) > size:
                break
            span += vectors
        share = _outside(row[moved], np.stack(span)[:, moved])
        if not share <= worst:
            worst = share if share == share else np.inf
    return worst


def is_multiple(rows: Rows, run: Run) -> bool:
    """Whether what has moved of every sample is that of a latent of a run times a number, so that no output has a part in it."""
    inside = run[-1].inside
    if inside is None or not np.isfinite(rows).all():
        return False
    for earlier in (moment.rows for moment in run if moment.rows.shape == rows.shape):
        moved = np.where(inside & (rows != earlier), 1.0, 0.0)
        row, before = rows * moved, earlier * moved
        scale = (row * before).sum(1, keepdims=True) / np.maximum((before * before).sum(1, keepdims=True), 1e-30)
        if (np.linalg.norm(row - scale * before, axis=1) <= ROUNDING * np.linalg.norm(row, axis=1)).all():
            return True
    return False


ROUNDING = 1e-6
"""Largest difference of two latents in float32 that are the same, as a share."""


def _outside(vector: Rows, span: Rows) -> float:
    """|v - projection of v on the span|_2 / |v|_2."""
    lengths = np.linalg.norm(span, axis=1, keepdims=True)
    span = span / np.where(lengths > 0, lengths, 1.0)
    weights = np.linalg.solve(span @ span.T + 1e-10 * np.eye(len(span)), span @ vector)
    return float(np.linalg.norm(vector - weights @ span) / np.linalg.norm(vector))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """(B, ...); one sample where no axis can be that of samples."""
    return tuple(tensor.shape) if tensor.dim() > 2 else (1, *tensor.shape)


def _read(rows: Tensor) -> Rows:
    host = rows.cpu().double()
    return host.numpy() if type(host) is Tensor else np.array(host.tolist())
