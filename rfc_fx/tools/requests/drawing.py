"""Drawing a file of prompts: by one worker in this process, or by actors of Ray Data, which starts those that died anew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rfc_fx.errors import RFCError
from rfc_fx.tools.load import LoadError, one_line
from rfc_fx.tools.requests.prompts import ATTEMPTS, Job, add_line, write_picture
from rfc_fx.tools.requests.ray_node import LOGS, imported_ray, start_ray
from rfc_fx.tools.requests.request import RequestError
from rfc_fx.tools.requests.worker import Picture, Worker, WorkerSettings, ray_resources

log = logging.getLogger("rfc_fx")

Done = tuple[Job, Picture | str]
"""A job with its picture, or with what was wrong."""


def batches(jobs: Sequence[Job], most: int) -> Iterator[list[Job]]:
    """The jobs in batches of at most `most` that fit together, in an order that brings those together that fit."""
    for _, fitting in groupby(sorted(jobs, key=lambda job: repr(job.request.fit)), key=lambda job: job.request.fit):
        alike = list(fitting)
        for begin in range(0, len(alike), most):
            yield alike[begin : begin + most]


def drawn_by(worker: Any, batch: Sequence[Job]) -> list[Done]:
    """Draw a batch; what fails is drawn again alone, a request that is refused never, others up to three times."""
    try:
        return list(zip(batch, worker.draw([job.request for job in batch]), strict=True))
    except Exception as error:
        if len(batch) > 1:
            log.warning("a batch of %d failed and is drawn one by one: %s", len(batch), one_line(error))
            return [done for job in batch for done in drawn_by(worker, [job])]
        return [(batch[0], _again(worker, batch[0], error))]


def _again(worker: Any, job: Job, error: Exception) -> Picture | str:
    for _ in range(ATTEMPTS - 1):
        if isinstance(error, RequestError):
            break
        try:
            return worker.draw([job.request])[0]  # type: ignore[no-any-return]
        except Exception as again:
            error = again
    return f"{type(error).__name__}: {one_line(error)}"


def draw_here(settings: WorkerSettings, jobs: Sequence[Job], most: int) -> Iterator[Done]:
    """Draw with one worker in this process."""
    worker = Worker(settings)
    for batch in batches(jobs, most):
        yield from drawn_by(worker, batch)


class Actor:
    """A worker behind Ray Data: takes and gives batches of columns."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.worker = Worker(settings)

    def __call__(self, columns: dict[str, Any]) -> dict[str, list[Any]]:
        """Draw the jobs of some batches that fit together; pickled in and out, as columns hold no objects."""
        import pickle

        found = [drawn_by(self.worker, pickle.loads(batch)) for batch in columns["batch"]]
        return {"done": [pickle.dumps(done) for done in found]}


def draw_with_ray(settings: WorkerSettings, jobs: Sequence[Job], most: int, workers: int) -> Iterator[Done]:
    """Draw with so many actors of Ray Data; a batch whose actor dies is drawn again by another, three times at most.

    LoadError where Ray is missing, or no worker starts.
    """
    import pickle

    try:
        imported_ray()
        import ray.data
        from ray.exceptions import RayError
    except ImportError as error:
        raise LoadError("--workers: several workers need Ray: pip install 'rfc-fx[ray]'; or pass --workers 1") from error
    ray = start_ray(workers)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # batches that are given up are missing in the end
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        items = [{"batch": pickle.dumps(batch)} for batch in batches(jobs, most)]
        data = ray.data.from_items(items, override_num_blocks=len(items))
        pool = ray.data.ActorPoolStrategy(size=workers)
        resources = {**ray_resources(settings, workers), "max_task_retries": ATTEMPTS - 1}
        left = {job.name: job for job in jobs}
        for row in data.map_batches(Actor, fn_constructor_args=(settings,), batch_size=1, compute=pool, **resources).iter_rows():
            for job, result in pickle.loads(row["done"]):
                del left[job.name]
                yield job, result
        yield from ((job, f"its worker died {ATTEMPTS} times") for job in left.values())
    except RayError as error:
        raise LoadError(f"Ray: {one_line(error, width=300)}; see {LOGS}") from error
    finally:
        ray.shutdown()


def draw_all(source: Iterator[Done], out: Path, tick: Callable[[], object]) -> list[tuple[Job, str]]:
    """Keep what is drawn as it comes: the picture, then its line. Returns the jobs that failed, and why."""
    failed: list[tuple[Job, str]] = []
    for job, result in source:
        if isinstance(result, str):
            failed.append((job, result))
        else:
            write_picture(out, job, result.png)
            add_line(out, job, {"nfc": result.nfc, "steps": result.steps, "seconds": round(result.seconds, 3)})
        tick()
    return failed


class BatchError(RFCError):
    """Requests of a file that could not be drawn; the others were."""
