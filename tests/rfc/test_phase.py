"""The table of phases: every name is a record, and nothing else is a phase."""

import pytest

from rfc.phase import PHASES, is_partial, phase_named


@pytest.mark.parametrize("name", [*PHASES, "PARTIAL_1", "PARTIAL_12"])
def test_a_phase_prints_as_its_name(name: str) -> None:
    assert str(phase_named(name)) == phase_named(name).name == name


def test_a_step_computes_estimates_or_begins_behind_the_last_block() -> None:
    for phase in map(phase_named, [*PHASES, "PARTIAL_3"]):
        assert [phase.computes_sites, phase.estimates, phase.reads_last].count(True) == 1
        assert len(phase.mark) == 1
    assert [name for name in [*PHASES, "PARTIAL_3"] if phase_named(name).keeps_last] == ["FULL", "PARTIAL_3"]
    assert phase_named("PARTIAL_3").tokens_part == 3
    assert is_partial("PARTIAL_3")
    assert not is_partial("REUSE")


@pytest.mark.parametrize("name", ["", "full", "PARTIAL", "PARTIAL_", "PARTIAL_0", "PARTIAL_x", "PREFIX", "PARTIAL_1 "])
def test_any_other_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^phase must be one of FULL, ESTIMATE, VERIFY, REUSE or PARTIAL_<number>, got '{name}'$"):
        phase_named(name)
