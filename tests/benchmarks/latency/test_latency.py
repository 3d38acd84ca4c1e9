"""The latency benchmark: equal numbers of full steps, rivals that cannot have them say so, records of any age are drawn."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command import invoke, said
from families import FAMILIES, moved
from small_digits import first_blocks

import rfc
import rfc_fx
from benchmarks.capturing import captured_once
from benchmarks.latency import __main__ as latency
from benchmarks.latency import plots
from benchmarks.latency.methods import WHOLE, equal_gaps, full_steps
from benchmarks.latency.rivals import db_cache, table, taylor_seer
from benchmarks.latency.rivals.first_block import first_block_cache, threshold_for
from benchmarks.latency.rivals.rival import Attached, Rival, RivalError, copied
from benchmarks.latency.tables import markdown
from benchmarks.latency.timing import TimedVariant
from benchmarks.latency.variants import timed, variants

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "latency"
CPU = torch.device("cpu")
STEPS, NFC = 8, 3
WANTED = [0, 1, 5]


def traced_only(patch: pytest.MonkeyPatch) -> None:
    """Dynamo traces and counts as ever, but nothing is compiled."""
    patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The record of a small run on the first two blocks of the digits model, and its folder."""
    out = tmp_path_factory.mktemp("latency")
    asked = {"model": "digits", "methods": "Taylor m=1", "steps": STEPS, "nfc": NFC, "rounds": 1, "out": out}
    with pytest.MonkeyPatch.context() as patch, torch._dynamo.config.patch(recompile_limit=8), captured_once():
        traced_only(patch)
        patch.setitem(latency.WORKLOADS, "digits", replace(latency.WORKLOADS["digits"], model=lambda: first_blocks(2)[0]))
        names = ("cache-dit DBCache", "diffusers FirstBlockCache")
        patch.setattr(table, "RIVALS", {name: table.RIVALS[name] for name in names})
        torch._dynamo.reset()
        result = invoke(latency.main, *(f"--{name}={value}" for name, value in asked.items()), "--rivals")
        torch._dynamo.reset()
    assert result.exit_code == 0, result.output
    return json.loads((out / "digits-1.json").read_text()), out


@pytest.mark.compile
def test_every_variant_has_the_same_number_of_full_steps_or_says_why_not(kept: tuple[dict[str, Any], Path]) -> None:
    rows, settings = kept[0]["variants"], kept[0]["settings"]
    assert settings["full_steps"] == WANTED
    cached = {name: row for name, row in rows.items() if "nfc" in row}
    assert {row["nfc"] for row in cached.values()} == {NFC}
    for name, row in cached.items():
        assert {"FULL", "ESTIMATE", "generation", "share_of_bound", "host_reads"} <= row.keys(), name
        assert row["FULL"]["samples"] == NFC
        assert row["ESTIMATE"]["samples"] == STEPS - NFC
        assert row["full_steps"] == WANTED or any("ours [0, 1, 5]" in note for note in row["notes"]), name
    missing = {f"cache-dit DBCache, {how}" for how in ("eager", "compiled")}
    assert settings["refused"] == ({} if db_cache.installed() else dict.fromkeys(missing, db_cache.NOT_INSTALLED))


@pytest.mark.compile
def test_compile_counts_are_those_of_the_variant_that_was_compiled(kept: tuple[dict[str, Any], Path]) -> None:
    rows = kept[0]["variants"]
    assert rows["full, compiled"]["graphs"] == 1
    for name in ("Taylor m=1, compiled", "Taylor m=1, hoisted, compiled"):
        assert (rows[name]["graphs"], rows[name]["graph_breaks"], rows[name]["recompiles"]) == (3, 0, 0)
    assert rows["Taylor m=1, compiled"]["host_reads"]["tolist"] == 2 * STEPS  # the decision, and a timestep that lies on the host
    assert rows["diffusers FirstBlockCache, compiled"]["graph_breaks"] > 0
    assert rows["diffusers FirstBlockCache, compiled"]["host_reads"] == {"item": STEPS - 1}
    assert "graphs" not in rows["full, eager"]
    assert kept[0]["settings"]["graphs_compiled_while_counting"] == 0


@pytest.mark.compile
def test_the_record_comes_with_its_table_and_its_picture(kept: tuple[dict[str, Any], Path]) -> None:
    record, out = kept
    table = (out / "digits-1.md").read_text()
    assert table == markdown(record["variants"], record["settings"])
    assert "| NFC | graphs | breaks | recompiles (counted) | host reads | compile s |" in table
    assert (out / "digits-1.png").stat().st_size > 10_000


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_record_of_any_age_has_its_table_and_can_be_drawn(path: Path, tmp_path: Path) -> None:
    record = json.loads(path.read_text())
    assert markdown(record["variants"], record["settings"]) == path.with_suffix(".md").read_text()
    copy = tmp_path / path.name
    copy.write_text(path.read_text())
    assert all(picture.exists() for picture in plots.draw(copy))


def test_a_table_has_a_dash_where_a_record_has_nothing() -> None:
    record = json.loads((RESULTS / "dit-s-1.json").read_text())
    old, settings = record["variants"], record["settings"] | {"refused": {"a rival": "no such model"}}
    rows = {name: {key: value for key, value in row.items() if key not in ("graphs", "compile_s")} for name, row in old.items()}
    rows["full, compiled"] |= {"graphs": 1, "graph_breaks": 0}
    lines = markdown(rows, settings).splitlines()
    columns = next(line for line in lines if line.startswith("| variant")).split("|")
    eager = next(line for line in lines if line.startswith("| full, eager")).split("|")
    assert eager[columns.index(" graphs ")] == " - "
    assert lines[-1] == "* a rival: not run. no such model"


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--model", "dit-z", "unknown model 'dit-z'"),
        ("--methods", "RFE m=9", "unknown methods RFE m=9"),
        ("--dtype", "int8", "unknown dtype"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(option: str, value: str, says: str) -> None:
    result = invoke(latency.main, option, value)
    assert result.exit_code == 2
    assert says in said(result)
    assert "known:" in said(result)


def calls_of(kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    return [moved(kwargs, step, STEPS) for step in range(STEPS)]


@pytest.mark.compile
def test_phases_that_come_late_in_a_generation_are_compiled_before_counting() -> None:
    method = rfc.DuCa(num_steps=50)  # FULL, PARTIAL and REUSE
    model, kwargs = FAMILIES["dit"](layers=1)
    cached = rfc_fx.transform(model, method, example_inputs=kwargs)
    variant = TimedVariant("late", torch.compile(cached, backend="eager", fullgraph=True), cached)
    calls = [moved(kwargs, step, 50) for step in range(50)]
    torch._dynamo.reset()
    variant.warm_up(calls, CPU)
    variant.run(calls, CPU, count=True)
    assert cached.method == method
    assert {*cached.stats.phases} == {*method.schedule.branches}
    assert variant.warming.graphs == len(method.schedule.branches)
    assert variant.counting.graphs == 0


def test_a_rival_that_never_skips_is_reported() -> None:
    model, kwargs = FAMILIES["dit"]()
    idle = Rival(model, Attached(begin=lambda: None, was_full=lambda: True, held=lambda: ()), compiles=False)
    TimedVariant("idle", idle, idle).audit(calls_of(kwargs))
    assert idle.verdict(WANTED, STEPS) == [f"never skips: a middle block ran in all {STEPS} steps"]


def test_a_rival_whose_own_record_is_wrong_is_reported() -> None:
    model, kwargs = FAMILIES["dit"]()
    proud = Rival(model, Attached(begin=lambda: None, was_full=lambda: False, held=lambda: ()), compiles=False)
    TimedVariant("proud", proud, proud).audit(calls_of(kwargs))
    assert proud.verdict(WANTED, STEPS)[-1].startswith("its own record says steps [] were full, a middle block ran in [0, 1, 2")


def test_a_rival_without_a_module_to_hook_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, kwargs = FAMILIES["dit"]()
    monkeypatch.setattr(taylor_seer, "identifiers", lambda model: (["no_such_module"], []))
    monkeypatch.setattr(table, "RIVALS", {"diffusers TaylorSeerCache": taylor_seer.taylor_seer})
    made, refused = table.rivals(model, calls_of(kwargs), WANTED)
    assert made == []
    assert refused["diffusers TaylorSeerCache, eager"].startswith("TaylorSeerCache hooks no module of DiTTransformer2DModel")


def test_a_rival_that_fails_on_a_model_is_taken_off_the_list_and_named() -> None:
    model, kwargs = FAMILIES["sd3"]()
    calls = calls_of(kwargs)
    own = copied(model)
    rival = Rival(own, first_block_cache(own, calls, WANTED), compiles=False)
    made = [TimedVariant("full, eager", model), TimedVariant("diffusers FirstBlockCache, eager", rival, rival)]
    refused = timed(made, calls, CPU, rounds=1)
    assert [variant.name for variant in made] == ["full, eager"]
    assert refused == {"diffusers FirstBlockCache, eager": "TypeError: unsupported operand type(s) for -: 'NoneType' and 'Tensor'"}


def test_without_cache_dit_a_row_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    model, kwargs = FAMILIES["dit"]()
    monkeypatch.setattr(db_cache, "installed", lambda: False)
    refused = table.rivals(model, calls_of(kwargs), WANTED)[1]
    assert refused["cache-dit DBCache, eager"] == "cache-dit is not installed: pip install rfc-fx[bench]"


@pytest.mark.parametrize("family", ["dit", "flux", "sd3"])
def test_cache_dit_runs_exactly_the_steps_it_is_told_to_in_every_generation(family: str) -> None:
    pytest.importorskip("cache_dit")
    model, kwargs = FAMILIES[family]()
    calls = calls_of(kwargs)
    own = copied(model)
    rival = Rival(own, db_cache.db_cache(own, calls, WANTED, order=1), compiles=False)
    variant = TimedVariant("cache-dit", rival, rival)
    for _ in range(3):
        variant.run(calls, CPU, count=True)
        assert rival.stats.full == WANTED
    variant.audit(calls)
    assert rival.counted is not None
    assert rival.counted.full == WANTED
    assert rival.state_bytes() > 0


def test_a_copy_shares_the_weights_and_leaves_the_model_as_it_was() -> None:
    model, kwargs = FAMILIES["flux"]()
    calls = calls_of(kwargs)
    own = copied(model)
    taylor_seer.taylor_seer(own, calls, WANTED)
    assert {id(p) for p in own.parameters()} == {id(p) for p in model.parameters()}
    assert not any(hasattr(module, "_diffusers_hook") for module in model.modules())


def test_the_threshold_is_the_middle_of_the_widest_range_that_gives_the_number_of_full_steps() -> None:
    changes = [[abs(b - a) * 1.0 for b in range(9)] for a in range(9)]
    assert threshold_for(changes, 9) == (0.5, list(range(9)))
    assert threshold_for([[4 * b for b in row[:3]] for row in changes[:3]], 2) == (6.0, [0, 2])
    threshold, full = threshold_for(changes, 4)  # a gap of 3 gives 3, one of 2 gives 5
    assert len(full) in (3, 5)
    assert threshold in (1.5, 2.5)
    with pytest.raises(RivalError, match="never changes"):
        threshold_for([[0.0] * 3] * 3, 2)


def test_taylorseer_gets_the_interval_that_gives_the_number_of_full_steps() -> None:
    before, interval, full = taylor_seer.taylor_steps(50, full_steps(equal_gaps(50, 14), 50))
    assert (before, interval, len(full)) == (2, 4, 14)
    assert full[:4] == [0, 1, 3, 7]


@pytest.mark.parametrize("name", ["TeaCache", "DiCache"])
def test_a_data_driven_method_is_timed_at_the_planned_full_steps(name: str) -> None:
    plan, model = equal_gaps(8, 3), first_blocks(2)[0]
    cached = rfc_fx.transform(model, WHOLE[name](plan, 8))
    with cached.generation():
        for step in range(8):
            timestep = torch.full((2,), 999 - 100 * step)
            cached(torch.randn(2, 1, 8, 8), timestep=timestep, class_labels=torch.tensor([3, 10]))
    assert [step for step, phase in enumerate(cached.stats.phases) if phase == "FULL"] == full_steps(plan, 8) == WANTED


@pytest.mark.parametrize("name", [name for name in WHOLE if name not in ("TeaCache", "First-Block cache", "DiCache")])
def test_a_method_with_a_setting_gets_the_nearest_number_of_full_steps(name: str) -> None:
    full = full_steps(WHOLE[name](equal_gaps(50, 14), 50).schedule, 50)
    assert abs(len(full) - 14) <= 1


def test_a_method_that_a_model_refuses_is_named_with_the_reason() -> None:
    model, kwargs = FAMILIES["dit"]()
    refused: dict[str, str] = {}
    made = variants(model, ["DisCa", "TaylorSeer Lite m=1"], equal_gaps(8, 3), [kwargs] * 8, refused)
    assert [variant.name for variant in made[2:]] == ["TaylorSeer Lite m=1, eager twin", "TaylorSeer Lite m=1, hoisted, compiled"]
    assert refused.keys() == {"DisCa"}
    assert "predictor" in refused["DisCa"]
