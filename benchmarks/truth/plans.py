"""What is measured on which model: the cells of each part. What is judged was chosen on other seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from benchmarks.truth.fits import FITTED
from benchmarks.truth.lab import OWN, Sampler
from benchmarks.truth.rows import CHOOSE, PLAIN, Cell, Rows
from benchmarks.truth.solvers import SOLVERS, spacings_of

BUDGETS = (14, 10, 8, 6)

GRANULARITIES: tuple[Literal["module", "stack", "output", "prediction"], ...] = ("module", "stack", "output", "prediction")

USERS: dict[str, dict[Sampler, tuple[int, ...]]] = {
    "digits": {Sampler(OWN, "", 50): (14, 8), Sampler("DPM-Solver++ 2M", "uniform", 20): (7, 5)},
    "shapes": {Sampler(OWN, "", 50): (14, 8), Sampler("DPM-Solver++ 2M", "uniform", 20): (7,)},
    "flow": {
        Sampler(OWN, "shift 3", 50): (14, 8),
        Sampler(OWN, "shift 3", 28): (10, 7),
        Sampler(OWN, "shift 1", 50): (14, 8),
        Sampler(OWN, "shift 1", 28): (10, 7),
    },
    "emoji": {Sampler(OWN, "", 28): (10, 7)},
}
"""The samplers that users of a model have, and the numbers of full steps they are judged at."""

FLOWS = ("flow", "emoji")

RULES = ("LogSNR by angle, stack", "LogSNR of flows, stack", "LogSNR of flows, prediction")
"""LogSNR's rules: as it is for flows it is the last, else the first."""

BASES = ("DPM-Solver++ 2M",)
"""Solvers whose steps are cached."""

LENGTHS = (50, 100)
"""Steps of a cached sampler."""

CORRECTED = ("fitted, corrected by 0.6", "fitted, corrected by 0.3")
"""Linear predictions that are tried at every sampler."""

REFINED = "refined to the truth"
"""A list refined by the converged solution."""

TRAINED = "trained solver"
"""A sampler of n steps with weights of its own, found by the same search: no cache."""

FINE = tuple(Sampler(BASES[0], spacing, LENGTHS[0]) for spacing in ("Karras", "log-SNR within 3"))
"""Samplers that lists are refined on; of flows the second at `FEW` or fewer, with the levels that few evaluations are best spent on."""

FEW = 8
"""Of full steps."""

SHOWN = 3
"""Solvers that are judged at each number of evaluations, the best on other seeds; and DDIM."""


def own_rule(model: str) -> str:
    """LogSNR as it is."""
    return RULES[-1 if model in FLOWS else 0]


def granularity(model: str, rows: Rows) -> Iterator[Cell]:
    """LogSNR by granularity, at the users' samplers."""
    for grain in GRANULARITIES:
        for sampler, budgets in USERS[model].items():
            yield from (_cell(sampler, n, f"LogSNR by angle, {grain}") for n in budgets)


def methods(model: str, rows: Rows) -> Iterator[Cell]:
    """Other methods, at the users' samplers."""
    for name in ("FORA", "TaylorSeer m=1", "TaylorSeer m=2", "Chebyshev"):
        for sampler, budgets in USERS[model].items():
            yield from (_cell(sampler, n, name) for n in budgets)


def lists(model: str, rows: Rows) -> Iterator[Cell]:
    """LogSNR by its rules, of a flow by those of flows too."""
    for rule in RULES if model in FLOWS else RULES[:1]:
        for sampler, budgets in USERS[model].items():
            yield from (_cell(sampler, n, rule) for n in budgets)


def fitted(model: str, rows: Rows) -> Iterator[Cell]:
    """Linear predictions, at the users' samplers."""
    for name in FITTED:
        for sampler, budgets in USERS[model].items():
            yield from (_cell(sampler, n, name) for n in budgets)


def tried_solvers(model: str) -> dict[str, list[Cell]]:
    """Every solver at every spacing and budget, by solver."""
    is_flow = model in FLOWS
    return {
        name: [_cell(Sampler(name, spacing, solver.steps(n)), n, PLAIN) for spacing in spacings_of(solver, is_flow) for n in BUDGETS]
        for name, solver in SOLVERS.items()
    }


def tried_caches(model: str, methods: Iterable[str]) -> list[Cell]:
    """Methods at every length and spacing of the cached solvers, but for those whose last two levels are one."""
    is_flow = model in FLOWS
    return [
        _cell(Sampler(base, spacing, steps), n, method)
        for method in methods
        for base in BASES
        for spacing in spacings_of(SOLVERS[base], is_flow)
        for steps in LENGTHS
        if (is_flow, spacing, steps) != (True, "beta", 100)
        for n in BUDGETS
    ]


def choosing(model: str, rows: Rows) -> Iterator[Cell]:
    """All that is tried."""
    for cells in tried_solvers(model).values():
        yield from cells
    yield from tried_caches(model, [own_rule(model)])


def choosing_fitted(model: str, rows: Rows) -> Iterator[Cell]:
    """Linear predictions at every length and spacing of the cached solvers."""
    yield from tried_caches(model, CORRECTED)


def best(cells: Iterable[Cell], rows: Rows, n: int) -> Cell | None:
    """The cell with the smallest error to the converged solution on the seeds for choosing; None where none was measured."""
    known = {cell: errors for cell in cells if cell.n == n and (errors := rows.geometric_mean(cell, [CHOOSE], "truth")) is not None}
    return min(known, key=lambda cell: known[cell], default=None)


def judging(model: str, rows: Rows) -> Iterator[Cell]:
    """The best of each kind, and all steps of the users' samplers."""
    yield from (_cell(sampler, sampler.steps, PLAIN) for sampler in USERS[model])
    for n in BUDGETS:
        yield from judged(model, rows, n).values()


def judged(model: str, rows: Rows, n: int) -> dict[str, Cell]:
    """At n evaluations: solvers at their best spacing, LogSNR and a linear prediction at their best samplers."""
    solvers = {name: cell for name, cells in tried_solvers(model).items() if (cell := best(cells, rows, n)) is not None}
    ranked = sorted(solvers, key=lambda name: rows.geometric_mean(solvers[name], [CHOOSE], "truth") or 0.0)
    shown = {name: solvers[name] for name in dict.fromkeys((*ranked[:SHOWN], *(name for name in solvers if name.startswith("DDIM"))))}
    refined = best([refined_at(model, n)], rows, n)
    known = {} if refined is None else {"refined": refined}
    caches = {"LogSNR": best(tried_caches(model, [own_rule(model)]), rows, n), "fitted": best(tried_caches(model, CORRECTED), rows, n)}
    return shown | {name: cell for name, cell in caches.items() if cell is not None} | known


def refined_at(model: str, n: int) -> Cell:
    """The list with n full steps that is refined by the converged solution."""
    return _cell(FINE[model in FLOWS and n <= FEW], n, REFINED)


def refining(model: str, rows: Rows) -> Iterator[Cell]:
    """Lists refined by the converged solution, the fewest full steps first."""
    yield from (refined_at(model, n) for n in reversed(BUDGETS))


def trained_at(n: int) -> Cell:
    """The solver of n steps that is trained."""
    return _cell(Sampler(BASES[0], FINE[1].spacing, n), n, TRAINED)


def training(model: str, rows: Rows) -> Iterator[Cell]:
    """Trained solvers, the fewest steps first."""
    yield from map(trained_at, reversed(BUDGETS))


def _cell(sampler: Sampler, n: int, method: str) -> Cell:
    return Cell(solver=sampler.solver, spacing=sampler.spacing, steps=sampler.steps, n=n, method=method)


PARTS: dict[str, Callable[[str, Rows], Iterator[Cell]]] = {
    "granularity": granularity,
    "methods": methods,
    "lists": lists,
    "fitted": fitted,
    "choosing": choosing,
    "choosing-fitted": choosing_fitted,
    "judging": judging,
    "refining": refining,
    "training": training,
}
"""By name."""
