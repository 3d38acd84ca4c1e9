"""Contenders: the ways to draw with n evaluations of a model, each at the sampler that was chosen for it."""

from __future__ import annotations

from benchmarks.truth.plans import BUDGETS, USERS, judged
from benchmarks.truth.rows import PLAIN, Cell, Rows

PLAIN_STEPS, LOG_SNR, ALL_STEPS = "plain steps", "LogSNR", "users' sampler"
"""The nearest solver without a cache; LogSNR at its best sampler; all steps of the sampler that users have by default."""

TUNED = ("fitted", "refined")
"""Linear predictions fitted to full computation, and refined to the converged solution, where they were measured."""

CONTENDERS = (PLAIN_STEPS, LOG_SNR, *TUNED, ALL_STEPS)
"""In their order."""


def contenders(model: str, rows: Rows, n: int) -> dict[str, Cell] | None:
    """The cells of all contenders at n evaluations, by name; None where nothing is judged yet."""
    solvers = judged(model, rows, n)
    caches = {name: solvers.pop(name) for name in (LOG_SNR, *TUNED) if name in solvers}
    users = next(iter(USERS[model]))
    whole = Cell(solver=users.solver, spacing=users.spacing, steps=users.steps, n=users.steps, method=PLAIN)
    if LOG_SNR not in caches or not (groups := rows.judged_groups(caches[LOG_SNR], whole, *solvers.values())):
        return None
    nearest = min(solvers.values(), key=lambda cell: rows.geometric_mean(cell, groups, "truth") or 0.0)
    return {PLAIN_STEPS: nearest, **caches, ALL_STEPS: whole}


def all_contenders(model: str, rows: Rows) -> dict[Cell, str]:
    """The names of all contenders at all numbers of evaluations, by cell."""
    budgets = [cells for n in BUDGETS if (cells := contenders(model, rows, n)) is not None]
    return {cells[name]: name for name in CONTENDERS for cells in budgets if name in cells}
