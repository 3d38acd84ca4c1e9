"""What a legal graph is: a table of laws, checked after every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

from rfc.phase import ESTIMATE, FULL, Phase
from rfc_fx.errors import IllegalGraphError
from rfc_fx.ir.ops import is_heavy, is_mutable, select
from rfc_fx.ir.phase import BEFORE_DECISION, HOISTED_PHASES, PREFIX, step_phases
from rfc_fx.ir.program import Program
from rfc_fx.passes.guard import Guarded
from rfc_fx.passes.program_spread import unfinished
from rfc_fx.sites.state import LAST, SCHEDULE
from rfc_fx.sites.token_axes import ATTENTION

Violations = Iterable[str]


def _every_site_has_one_guard(guarded: Guarded) -> Violations:
    guards = [str(node.kwargs["site"]) for node in guarded.module.graph.nodes if node.target is select]
    for site in guarded.sites:
        if guards.count(site.name) != 1:
            yield f"site {site.name} has {guards.count(site.name)} guards"


def _full_results_are_read_by_guards_alone(guarded: Guarded) -> Violations:
    for site in guarded.sites:
        for user in site.output.users:
            if user.target is not select:
                yield f"{site.output.name} (site {site.name}) is read by {user.name}, past its guard"


def _guarded_graph_is_pure(guarded: Guarded) -> Violations:
    for node in guarded.module.graph.nodes:
        if is_mutable(node):
            yield f"{node.name} writes to {node.args[0]}"


GUARDED_LAWS: dict[str, Callable[[Guarded], Violations]] = {
    "every site has exactly one guard": _every_site_has_one_guard,
    "a site's full result is read by its guard alone": _full_results_are_read_by_guards_alone,
    "the guarded graph writes nothing": _guarded_graph_is_pure,
}


def _no_guard_is_left(guarded: Guarded, programs: dict[str, Program]) -> Violations:
    for phase, program in programs.items():
        for node in program.graph.nodes:
            if node.target is select:
                yield f"{phase}: {node.name}"


def _slots_read_are_written(guarded: Guarded, programs: dict[str, Program]) -> Violations:
    written = programs[FULL.name].written()
    for phase, program in programs.items():
        for slot in program.read():
            if slot not in written:
                yield f"{phase} reads {slot}, which FULL does not write"


def _full_writes_each_slot_once(guarded: Guarded, programs: dict[str, Program]) -> Violations:
    written = programs[FULL.name].written()
    for slot in guarded.slots:
        if written.count(slot) != 1:
            yield f"{slot} is written {written.count(slot)} times"


def _phases_write_what_is_theirs(guarded: Guarded, programs: dict[str, Program]) -> Violations:
    """FULL all of it, PARTIAL what a computed token leaves and the last block's stream, the others nothing."""
    phases = step_phases(programs)
    for name, program in programs.items():
        phase = phases.get(name)
        if phase is not None and phase.computes_sites:
            continue
        written = {slot for slot in program.written() if not slot.startswith(f"{SCHEDULE}.")}
        expected = _renewed(guarded, phase) if phase is not None and phase.tokens_part is not None else set()
        if written != expected:
            yield f"{name} writes {', '.join(sorted(written ^ expected))} " + ("too" if written - expected else "not")


def _renewed(guarded: Guarded, phase: Phase) -> set[str]:
    tokens = guarded.method.tokens
    found = {slot for slot in guarded.slots if slot.startswith(f"{LAST}.")}
    for site in guarded.tokens.values():
        assert tokens is not None
        found.add(f"{site.name}.tokens.age")
        if tokens.count(phase.name, site.place):
            found |= {f"{site.name}.{name}" for name in guarded.site_slots(site.name)}
    return found


def _what_is_watched_is_kept_when_the_schedule_says(guarded: Guarded, programs: dict[str, Program]) -> Violations:
    kept = {slot for slot in guarded.slots if slot.startswith(f"{SCHEDULE}.")}
    schedule = guarded.method.schedule
    always = schedule.remembers == "all steps"
    of_skipped = {f"{SCHEDULE}.{signal}" for signal in schedule.watches} if schedule.reads_output else kept
    phases = step_phases(programs)
    for name, program in programs.items():
        written = kept & set(program.written())
        is_full = name in phases and phases[name].computes_sites
        if written != (kept if is_full else of_skipped if always and name in phases else set()):
            yield f"{name} writes {', '.join(sorted(written)) or 'nothing'} of the schedule's slots"


def _skipped_steps_do_no_site_work(guarded: Guarded, programs: dict[str, Program]) -> Violations:
    for name, phase in step_phases(programs).items():
        for node in () if phase.computes_sites or phase.verifies else programs[name].graph.nodes:
            if node.op == "call_module":
                yield f"{node.name} in {name} is the work of a site"


def _tokens_are_computed_one_by_one(guarded: Guarded, programs: dict[str, Program]) -> Violations:
    outside = sum(node.target is ATTENTION for node in programs[ESTIMATE.name].graph.nodes)
    for name, phase in step_phases(programs).items():
        attentions = sum(node.target is ATTENTION for node in programs[name].graph.nodes)
        if phase.tokens_part is not None and attentions > outside:
            yield f"{name} computes attention, in which every token meets every other"


def _reuse_begins_behind_the_last_block(guarded: Guarded, programs: dict[str, Program]) -> Violations:
    for name, phase in step_phases(programs).items():
        for slot in programs[name].read() if phase.reads_last else ():
            if not slot.startswith(f"{LAST}."):
                yield f"{name} reads {slot}"


def _skipped_steps_read_every_site(guarded: Guarded, programs: dict[str, Program]) -> Violations:
    skipped = [name for name, phase in step_phases(programs).items() if not phase.computes_sites]
    read = {slot.rpartition(".")[0] for name in skipped for slot in programs[name].read()}
    for site in guarded.sites:
        if site.name not in read:
            yield f"site {site.name} is remembered but never estimated"


def _prefix_precedes_all_sites(guarded: Guarded, programs: dict[str, Program]) -> Violations:
    for node in programs[PREFIX].graph.nodes if PREFIX in programs else ():
        if node.op == "call_module":
            yield f"{node.name} runs before the decision"


def _what_is_carried_was_computed(guarded: Guarded, programs: dict[str, Program]) -> Violations:
    known: set[str] = set()
    for phase in sorted(programs, key=[*BEFORE_DECISION, *programs].index):
        for kind, name in programs[phase].arguments:
            if kind == "carry" and name not in known:
                yield f"{phase} reads {name}, which no program before it computes"
        known |= {name.removeprefix("carry:") for name in programs[phase].results if name.startswith("carry:")}


def _what_runs_ahead_knows_no_latent(guarded: Guarded, programs: dict[str, Program]) -> Violations:
    latents = guarded.outlined.captured.latents
    for phase in (p for p in HOISTED_PHASES if p in programs):
        for kind, name in programs[phase].arguments:
            if kind in ("state", "clock") or name in latents:
                yield f"{phase} reads the {kind} {name}"


def _sums_over_ranks_are_completed(guarded: Guarded, programs: dict[str, Program]) -> Violations:
    yield from unfinished(guarded, programs)


PROGRAM_LAWS: dict[str, Callable[[Guarded, dict[str, Program]], Violations]] = {
    "no guard is left in a program": _no_guard_is_left,
    "every slot that is read is written by FULL": _slots_read_are_written,
    "FULL writes each slot exactly once": _full_writes_each_slot_once,
    "only FULL writes the state of sites, and PARTIAL that of computed tokens": _phases_write_what_is_theirs,
    "what is watched is kept when the schedule says so": _what_is_watched_is_kept_when_the_schedule_says,
    "a skipped step does no site's work": _skipped_steps_do_no_site_work,
    "PARTIAL computes tokens one by one": _tokens_are_computed_one_by_one,
    "REUSE reads the stream behind the last block alone": _reuse_begins_behind_the_last_block,
    "skipped steps read every site": _skipped_steps_read_every_site,
    "PREFIX contains no site": _prefix_precedes_all_sites,
    "what a program is handed, a program before it has computed": _what_is_carried_was_computed,
    "what runs ahead of the steps reads no latent and no state": _what_runs_ahead_knows_no_latent,
    "where a sequence lies on several ranks, sums over tokens are completed and ranks decide alike": _sums_over_ranks_are_completed,
}


def verify_guarded(guarded: Guarded) -> None:
    """Check the guarded graph against GUARDED_LAWS; raises IllegalGraphError naming the law."""
    guarded.module.graph.lint()
    for law, violations in GUARDED_LAWS.items():
        _raise("guard", law, violations(guarded))


def verify_programs(guarded: Guarded, programs: dict[str, Program]) -> None:
    """Check the programs against PROGRAM_LAWS; raises IllegalGraphError naming the law."""
    for program in programs.values():
        program.graph.lint()
    for law, violations in PROGRAM_LAWS.items():
        _raise("specialize", law, violations(guarded, programs))


def _raise(after: str, law: str, violations: Violations) -> None:
    found = list(violations)
    if found:
        raise IllegalGraphError(f"after {after}: the law {law!r} is broken: {'; '.join(found)}; please report this")


def heavy_outside_sites(graph: fx.Graph) -> list[fx.Node]:
    """Heavy operations a program runs itself: embeddings, modulation, the output head."""
    return [node for node in graph.nodes if is_heavy(node)]
