"""Every method as an engine: the decisions and outputs of the model it was made from, and what no engine can be is refused at once."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from families import moved, sample, shared_model
from torch import Tensor

import rfc
import rfc_export
import rfc_fx
from rfc.method import programs_of
from rfc_export import ExportError, exporter
from rfc_export.parity import TOLERANCE, steps_to_check
from rfc_export.specs import BackendName
from rfc_fx.runtime.summary import pattern
from rfc_fx.zoo import load_digits

pytestmark = pytest.mark.usefixtures("captured_once")

STEPS = 10

METHODS: dict[str, rfc.Method] = {
    "hicache": rfc.HiCache(interval=3),
    "foca": rfc.FoCa(interval=3),
    "taylorseer-lite": rfc.TaylorSeerLite(interval=3),
    "delta-dit": rfc.DeltaDiT(interval=3),
    "magcache": rfc.MagCache(ratios=[1.0, 1.01, 0.97, 1.02, 0.99, 1.0, 0.98, 1.01, 1.0, 0.96]),
    "newton": rfc.Method(estimator=rfc.Newton(order=2), schedule=rfc.RCS(tau=0.3)),
    "chebyshev": rfc.Chebyshev(nfc=5, num_steps=STEPS),
    "weighted": rfc.Method(
        estimator=rfc.LinearPrediction(order=3),
        schedule=rfc.Weighted(full_steps=[0, 1, 4, 7], num_steps=STEPS, weights=[(0.3 + 0.05 * i, -0.1, 0.4) for i in range(STEPS)]),
        granularity="stack",
    ),
    "first-block": rfc.FirstBlockCache(threshold=0.4),
    "teacache": rfc.TeaCache(threshold=0.3, coefficients=(0.5, 1.0, 0.01), num_steps=STEPS),
    "dicache": rfc.DiCache(threshold=0.02, warmup=3, num_steps=STEPS),
    "easycache": rfc.EasyCache(threshold=0.2, warmup=2, num_steps=STEPS),
    "spectrum": rfc.Spectrum(num_steps=STEPS, warmup=3, weight=0.5),
    "seacache": rfc.SeaCache(threshold=0.2, num_steps=STEPS),
    "speca": rfc.SpeCa(base=0.1, order=2, min_drafts=1, num_steps=STEPS),
    "toca": rfc.ToCa(interval=3, parts=2, num_steps=STEPS, ratio=0.2),
    "duca": rfc.DuCa(interval=3, parts=2, num_steps=STEPS, ratio=0.2),
}

FAST = ("duca",)
"""More than two phases, some of them for some tokens; a list is in the tests of sets, a rule that remembers every step in one below."""

by_method = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in METHODS]


def check(
    backend: Any,
    name: str,
    folder: Path,
    config: rfc_fx.Config = rfc_fx.Config(hoist=False),
) -> rfc_export.Engine:
    """Export, and run two generations beside the model; the second begins with what the first left in the state."""
    model, kwargs = shared_model("dit", layers=1 if name in FAST else 2)
    path = rfc_export.export(model, folder / name, backend=backend, example_inputs=kwargs, method=METHODS[name], config=config)
    engine = rfc_export.load(path)
    cached = rfc_fx.transform(model, METHODS[name], example_inputs=kwargs)
    with torch.no_grad():
        for _ in range(2):
            for step in range(STEPS):
                got, wanted = (sample(one(**moved(kwargs, step, STEPS))) for one in (engine, cached))
                assert (got - wanted).norm() <= TOLERANCE["float32"] * wanted.norm()
            assert pattern(engine.stats) == pattern(cached.stats)
    assert 1 < engine.stats.nfc < STEPS
    assert {*engine.stats.phases} == {*METHODS[name].schedule.branches} or name in ("magcache",)
    assert str(engine.summary())  # it knows what every phase costs
    return engine


@pytest.mark.onnx
@pytest.mark.parametrize("name", by_method)
def test_every_method_runs_in_onnx_runtime_as_in_the_model(name: str, tmp_path: Path) -> None:
    engine = check("onnx", name, tmp_path)
    manifest = engine.manifest
    assert manifest.config.granularity == (METHODS[name].granularity or "module")
    assert manifest.sets[0].decision.rule == type(METHODS[name].schedule).__name__
    writers = {writer for slot in manifest.sets[0].state for writer in slot.written_by}
    extra = [phase for phase in METHODS[name].schedule.branches if phase.startswith("PARTIAL_")]
    extra += ["ESTIMATE"] if METHODS[name].schedule.remembers == "all steps" else []
    assert writers == {"FULL", *extra}
    others = manifest.sets[0].plan.phase_flops
    assert {*others} == {*METHODS[name].schedule.branches} - {"FULL", "ESTIMATE"}
    assert all(flops < manifest.sets[0].plan.full_flops for flops in others.values())
    assert others.get("VERIFY", manifest.sets[0].plan.estimate_flops + 1) > manifest.sets[0].plan.estimate_flops


@pytest.mark.compile
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.slow
def test_every_method_runs_as_machine_code_as_in_the_model(name: str, tmp_path: Path) -> None:
    check("aoti", name, tmp_path)


@pytest.mark.onnx
@pytest.mark.slow  # the If of an engine is in test_onnx, these decisions in one graph in test_methods
@pytest.mark.parametrize("name", ["easycache", "teacache", "first-block"])
def test_a_rule_that_remembers_every_step_runs_as_one_conditional_step(name: str, tmp_path: Path) -> None:
    check("onnx", name, tmp_path, rfc_fx.Config(dispatch="cond"))


@pytest.mark.parametrize("name", ["speca", "duca"])
@pytest.mark.parametrize("backend", get_args(BackendName))
def test_more_than_two_phases_are_refused_for_a_conditional_step_before_anything_is_captured(
    backend: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter.rfc_fx, "transform", lambda *_, **__: pytest.fail("captured before it was checked"))
    model, kwargs = shared_model("dit")
    wanted = rf"^export: {METHODS[name].name} has the phases FULL, .*; pass dispatch='host' \(--dispatch host\)$"
    with pytest.raises(ExportError, match=wanted):
        rfc_export.export(
            model, tmp_path / "x", backend=backend, example_inputs=kwargs, method=METHODS[name], config=rfc_fx.Config(dispatch="cond")
        )
    assert not list(tmp_path.iterdir())


SOURCE = (Path(__file__).parents[2] / "export" / "cpp" / "engine.cpp").read_text()
LISTS = set(re.findall(r'"(\w+)"', next(line for line in SOURCE.splitlines() if "kPlaced = " in line)))
"""Rules of export/cpp/engine.cpp that look a step up in a table; for any but these, RCS and Every it stops with the rule's name."""


@pytest.mark.parametrize("name", METHODS)
def test_the_manifest_names_a_rule_that_the_c_program_knows_only_where_it_decides_alike(name: str) -> None:
    schedule = METHODS[name].schedule
    is_a_list = schedule.is_placed and {*schedule.branches} == {"FULL", "ESTIMATE"}
    assert (type(schedule).__name__ in LISTS) == is_a_list
    assert (type(schedule).__name__ in ("RCS", "Every")) == (type(schedule) in (rfc.RCS, rfc.Every))
    assert 'rule_ != "RCS" && rule_ != "Every" && !kPlaced.count(rule_)' in SOURCE


@pytest.mark.parametrize("name", METHODS)
def test_the_check_at_export_comes_to_every_phase_and_skips_after_a_full_step(name: str) -> None:
    short = METHODS[name].exercised()
    assert programs_of(short) == programs_of(METHODS[name])
    generation, steps = rfc.Record(), steps_to_check(short)
    for _ in range(steps):
        generation.decide(short.schedule, short.schedule.numbers(), 0.0, None)
    assert {*generation.phases} == {*short.schedule.branches}
    skipped = [step for step, phase in enumerate(generation.phases) if phase != "FULL"]
    assert any(phase == "FULL" for phase in generation.phases[skipped[0] : skipped[-1]])
    assert steps <= 12


@pytest.mark.slow  # an engine for it alone
def test_calls_without_a_condition_have_their_own_full_steps_in_an_engine(tmp_path: Path, digits_inputs: dict[str, Tensor]) -> None:
    transformer, scheduler = load_digits()
    scheduler.set_timesteps(12)
    method = rfc.LogSNR(scheduler, nfc=6, uncond_nfc=3)
    rfc_export.export(transformer, tmp_path / "engine", backend="onnx", method=method, example_inputs=digits_inputs)
    engine, model = rfc_export.load(tmp_path / "engine"), rfc_fx.transform(transformer, method)
    outputs = []
    for drawn_by in (model, engine):
        with torch.no_grad(), drawn_by.generation(source=scheduler) as generation:
            for t in scheduler.timesteps:
                for name in ("cond", "uncond"):
                    with drawn_by.cache_context(name):
                        outputs.append(drawn_by(**digits_inputs | {"timestep": t.expand(2)})[0])
        assert {name: record.nfc for name, record in generation.contexts.items()} == {"cond": 6, "uncond": 3}
    for ours, expected in zip(outputs[24:], outputs[:24], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "engine" / "rfc.json").read_text())["sets"][0]["decision"]["rule"] == "LogSNRPlacedByPass"
