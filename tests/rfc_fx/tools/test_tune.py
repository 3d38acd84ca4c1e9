"""Tune: what is measured, what is chosen of it, and the file that draws it again."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import rfc
import rfc_fx
from rfc_fx import zoo
from rfc_fx.io.method_file import read_method
from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.calibrate.laboratory import Laboratory
from rfc_fx.tools.cli import app
from rfc_fx.tools.commands.tune import made_like, scheduler_class
from rfc_fx.tools.sources import DigitsSource, load_source
from rfc_fx.tools.tune import Point, SamplerChoice, Tuned, TuningGoal, most_full_steps, tune, ways
from rfc_fx.tools.tune.bench import Bench, with_other_seeds
from rfc_fx.tools.tune.record import TuningError, recorded

STEPS = 8

pytestmark = pytest.mark.usefixtures("captured_once", "few_blocks")


def source() -> DigitsSource:
    loaded = load_source("digits", classes=[3], prompts=[], seeds=[1, 2], cfg=None, dtype=None, device=torch.device("cpu"))
    assert isinstance(loaded, DigitsSource)
    return loaded


def sampler(of: DigitsSource, steps: int = STEPS) -> SamplerChoice:
    return SamplerChoice(name="", scheduler=of.scheduler, steps=steps)


def point(nfc: int, seconds: float, error: float, what: str = "LogSNR") -> Point:
    choice = SamplerChoice(name="", scheduler=None, steps=10)
    return Point(sampler=choice, method=rfc.FORA(), what=what, nfc=nfc, error=error, seconds=seconds, samples=torch.zeros(1, 1, 2, 2))


def test_an_error_gives_the_fastest_that_keeps_it_and_the_points_are_what_a_method_alone_gives() -> None:
    of = source()
    tuned = tune(of, [sampler(of)], TuningGoal(error=0.3))
    assert tuned.points[0].error == 0  # all steps full: bit for bit
    assert tuned.points[0].nfc == STEPS
    assert tuned.chosen.error <= 0.3
    assert all(other.seconds >= tuned.chosen.seconds for other in tuned.points if other.error <= 0.3)
    cached = rfc_fx.transform(of.model, tuned.chosen.method)
    with cached.generation():
        alone = torch.cat([of.draw(cached, seed, STEPS, lambda: None) for seed in of.seeds])
    torch.testing.assert_close(alone, tuned.chosen.samples)
    kinds = {each.what for each in tuned.points}
    assert {"all steps full", "LogSNR", "fitted, corrected by 0.6", "LogSNR by modules"} <= kinds


def test_a_refined_list_is_fitted_to_other_seeds_and_judged_by_these() -> None:
    of = source()
    said: list[str] = []
    bench, other = (Bench(each, sampler(of, 5), None, False, said.append) for each in (of, with_other_seeds(of)))
    bench.rounds, bench.other = 1, other
    points = {point.what: point for point in bench.at(3, is_thorough=True)}
    refined = points["refined"]
    assert refined.error < min(point.error for what, point in points.items() if what.startswith("fitted, "))
    assert refined.method.granularity == "stack"  # with the output in its place the beginning is far worse
    assert of.seeds == [1, 2]
    assert other.source.seeds == [3, 4]
    assert any(line.startswith("refining, round 1 of 1") for line in said)
    cached = rfc_fx.transform(of.model, refined.method)
    with cached.generation():
        alone = torch.cat([of.draw(cached, seed, 5, lambda: None) for seed in of.seeds])
    torch.testing.assert_close(alone, refined.samples)


def test_a_way_that_draws_no_numbers_is_said_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    own = DigitsSource.draw

    def draw(self: DigitsSource, model: Any, *rest: Any) -> torch.Tensor:
        granularity = getattr(getattr(model, "method", None), "granularity", None)
        return own(self, model, *rest) * (torch.nan if granularity == "module" else 1.0)

    monkeypatch.setattr(DigitsSource, "draw", draw)
    of, said = source(), list[str]()
    tuned = tune(of, [sampler(of)], TuningGoal(error=0.3), report=said.append)
    assert any(line.endswith("samples are no numbers; left out") and "LogSNR by modules" in line for line in said)
    assert "LogSNR by modules" not in {each.what for each in tuned.points}
    assert all(each.samples.isfinite().all() for each in tuned.points)


def test_a_compiled_model_hands_out_steps_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    laboratory = Laboratory(source(), 4, compile=True)

    def drawn(weight: float) -> torch.Tensor:
        schedule = rfc.Weighted(full_steps=(0, 2), num_steps=4, weights=[(0.1,)] * 3 + [(weight,)])
        laboratory.measure(rfc.Method(estimator=rfc.LinearPrediction(order=1), schedule=schedule), "", quality=False)
        assert laboratory.samples is not None
        return laboratory.samples

    with laboratory.recalling() as recall:
        first, *again = [drawn(0.1) for _ in range(3)]
        other = drawn(0.2)
    assert recall.hits == 2 * 2 * 2  # two seeds, two full steps, twice
    assert all(torch.equal(each, first) for each in (*again, drawn(0.1)))
    assert torch.equal(other, drawn(0.2))
    assert not torch.equal(other, first)


def test_what_no_error_and_no_time_reaches_is_said() -> None:
    of = source()
    with pytest.raises(TuningError, match=r"a speed-up of 1e\+06 .* is not reached; the fastest takes"):
        tune(of, [sampler(of, 4)], TuningGoal(speedup=1e6))
    longer = SamplerChoice(name="", scheduler=of.scheduler, steps=3)
    with pytest.raises(TuningError, match="an error of 1e-09 is not reached; the least is"):
        tune(of, [longer, sampler(of, 4)], TuningGoal(error=1e-9))


def test_a_sampler_that_calls_twice_a_step_is_refused_by_name() -> None:
    from diffusers import HeunDiscreteScheduler

    of = source()
    heun = HeunDiscreteScheduler.from_config(of.scheduler.config)
    with pytest.raises(TuningError, match=r"HeunDiscreteScheduler calls .* 7 times in 4 steps"):
        recorded(DigitsSource(**{**vars(of), "scheduler": heun}), heun, 4)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("HeunDiscreteScheduler", "calls the model 3 times in 2 steps; expected one a step: leave it out of --scheduler"),
        ("RePaintScheduler", "cannot draw with RePaintScheduler, 4 steps: TypeError"),
        ("DDIMInverseScheduler", "DDIMInverseScheduler, 4 steps makes noise of pictures; expected pictures of noise: leave it out of"),
        ("DPMSolverMultistepInverseScheduler", "DPMSolverMultistepInverseScheduler, 4 steps makes noise of pictures"),
        ("IPNDMScheduler", "noise levels: IPNDMScheduler has neither alphas_cumprod nor .*; leave it out of --scheduler"),
    ],
)
def test_a_scheduler_that_no_list_can_be_fitted_to_is_refused_before_the_others_are_drawn(kind: str, told: str) -> None:
    import diffusers

    of = source()
    other = SamplerChoice(name=kind, scheduler=getattr(diffusers, kind).from_config(of.scheduler.config), steps=4)
    said: list[str] = []
    with pytest.raises(TuningError, match=told):
        tune(of, [sampler(of), other], TuningGoal(error=0.3), report=said.append)
    assert not said


@pytest.mark.parametrize("goal", [TuningGoal(error=0.3), TuningGoal(speedup=1.05)], ids=["error", "speedup"])
def test_as_many_ways_are_measured_as_are_announced(goal: TuningGoal) -> None:
    of, said = source(), list[str]()
    samplers = [sampler(of, 6), sampler(of)]
    tune(of, samplers, goal, report=said.append)
    assert 0.6 <= len(said) / ways(samplers, goal) <= 1.1  # where few steps are tried, some ways are the same


def test_no_more_steps_are_drawn_than_the_model_was_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    of = source()
    with pytest.raises(TuningError, match="--steps must be at most 1000, the steps the model was trained on, got 1001"):
        tune(of, [sampler(of), sampler(of, 1001)], TuningGoal(error=0.3))
    drawn: list[int] = []

    def whole(self: Bench) -> Any:
        drawn.append(self.sampler.steps)
        raise TuningError("enough")

    monkeypatch.setattr(Bench, "whole", whole)
    with pytest.raises(TuningError, match="enough"):
        tune(of, [sampler(of), sampler(of, 300)], TuningGoal(error=0.3))
    assert drawn == [1000]  # and not 4 * 300


def test_a_scheduler_that_cannot_be_made_is_refused_on_one_line() -> None:
    with pytest.raises(OptionError, match="--scheduler VQDiffusionScheduler: cannot be made of the model's DDIMScheduler: "):
        made_like(source().scheduler, scheduler_class("VQDiffusionScheduler"))  # it has settings of its own


def test_the_record_is_the_gram_matrix_of_the_blocks_residuals() -> None:
    of = source()
    found = recorded(of, of.scheduler, STEPS)
    assert found.gram.shape == (STEPS, STEPS)
    torch.testing.assert_close(found.gram, found.gram.T)
    assert torch.linalg.eigvalsh(found.gram).min() >= -1e-6 * found.gram.diagonal().max()
    assert found.levels.lambdas == rfc.noise_levels(of.scheduler, STEPS).lambdas
    assert list(found.gains) == list(rfc.output_gains(of.scheduler, STEPS))
    assert "set_timesteps" not in vars(of.scheduler)  # it is as it was


def test_the_front_is_what_no_point_is_both_faster_and_nearer_than() -> None:
    points = [point(10, 10.0, 0.0), point(5, 5.0, 0.2), point(4, 4.0, 0.1), point(3, 3.0, 0.4), point(2, 3.0, 0.5)]
    tuned = Tuned(points=points, chosen=points[2], reference=torch.zeros(1, 1, 2, 2), reference_is="x")
    assert [each.nfc for each in tuned.front] == [3, 4, 10]


@pytest.mark.parametrize(("seconds", "most"), [(10.0, 10), (20.0, 10), (5.5, 5), (2.0, 2), (0.9, 0)])
def test_a_time_says_how_many_steps_may_be_full(seconds: float, most: int) -> None:
    assert most_full_steps(point(10, 10.0, 0.0), point(2, 2.0, 0.1), seconds) == most


def test_the_command_writes_a_method_that_generate_and_accelerate_take(tmp_path: Path) -> None:
    out = tmp_path / "tuned.json"
    common = ["--classes", "3,4", "--seeds", "1", "--no-compile"]
    ran = CliRunner().invoke(app, ["tune", "digits", "--error", "0.5", "--steps", "6", "--refine", "1", *common, "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    assert "chosen" in ran.stdout
    (announced,) = [line for line in ran.stderr.splitlines() if line.startswith("tuning: up to about ")]
    assert announced.endswith(" ways to draw, 2 generations of 6 steps each; 1 rounds of refining come on top")
    assert str(out) in ran.stdout
    measured = json.loads(out.read_text())["measured"]
    assert measured["error"] <= 0.5
    assert measured["steps"] == 6
    assert measured["scheduler"] == "DDIMScheduler"
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > 800
    pipe = zoo.digits()
    rfc_fx.accelerate(pipe, method=out, compile=False)
    pipe.set_progress_bar_config(disable=True)
    pipe([3], num_inference_steps=6, output_type="latent")
    cached = pipe.transformer
    assert cached.stats.nfc == measured["nfc"]
    assert read_method(out) == cached.method


def fitted_pipe(steps: int) -> Any:
    pipe = zoo.digits()
    pipe.set_progress_bar_config(disable=True)
    of = source()
    method = rfc.fitted(recorded(of, of.scheduler, steps), 3)
    return rfc_fx.accelerate(pipe, method=method, compile=False), method


def test_a_generation_at_other_levels_warns_and_takes_log_snrs_steps() -> None:
    pipe, method = fitted_pipe(STEPS)
    pipe([3], num_inference_steps=STEPS, output_type="latent")
    assert [i for i, phase in enumerate(pipe.transformer.stats.phases) if phase == "FULL"] == list(method.schedule.full_steps)
    with pytest.warns(rfc_fx.StepsMismatchWarning, match=r"fitted to the noise levels of 8 steps; this generation of 12 steps has others"):
        pipe([3], num_inference_steps=12, output_type="latent")
    levels = rfc.noise_levels(pipe.scheduler, 12)
    own = rfc.LogSNR(lambdas=levels.lambdas, end=levels.end, nfc=4).schedule.full_steps  # type: ignore[attr-defined]
    assert [i for i, phase in enumerate(pipe.transformer.stats.phases) if phase == "FULL"] == list(own)
    rfc_fx.restore(pipe)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "exactly one of --time, --speedup and --error is needed, got none"),
        (["--speedup", "2", "--time", "1s"], "got seconds, speedup"),
        (["--time", "5x"], "--time must be a time such as 0.4s or 400ms, got 5x"),
        (["--time", "0ms"], "--time must be a time"),
        (["--speedup", "2", "--steps", "50,1"], "--steps must be numbers of at least 2"),
        (["--speedup", "2", "--scheduler", "torch"], "--scheduler must be a class of diffusers"),
        (["--speedup", "2", "--out", "x.txt"], "expected a file that ends in .json"),
    ],
)
def test_wrong_options_are_found_before_anything_is_loaded(arguments: list[str], said: str) -> None:
    ran = CliRunner().invoke(app, ["tune", "no-such-model", *arguments])
    assert ran.exit_code == 2
    assert said in ran.stderr


@pytest.mark.filterwarnings("ignore:.*a generation of 5 steps:rfc_fx.StepsMismatchWarning")  # the cancelled one
def test_interleaved_cancelled_and_other_batches_change_no_fitted_generation() -> None:
    of = source()
    model = rfc_fx.transform(of.model, rfc.fitted(recorded(of, of.scheduler, STEPS), 3))
    timesteps = of.scheduler.timesteps

    def steps(generation: Any, seed: int, batch: int) -> Iterator[torch.Tensor]:
        x, labels = zoo.digits_noise([seed] * batch), torch.full((batch,), 3)
        for timestep in timesteps:
            with torch.no_grad():
                output = generation(x, timestep=timestep.expand(batch), class_labels=labels).sample
            x = x - 0.1 * output
            yield x

    def alone(seed: int, batch: int) -> torch.Tensor:
        with model.generation() as generation:
            return list(steps(generation, seed, batch))[-1]

    wanted = alone(1, 2), alone(2, 2)
    with model.generation() as first, model.generation() as second, model.generation() as cancelled, model.generation() as other:
        runs = [steps(first, 1, 2), steps(second, 2, 2), steps(cancelled, 3, 2), steps(other, 4, 1)]
        got = [[next(run) for run in (runs if index < 5 else (*runs[:2], runs[3]))] for index in range(STEPS)]
    assert torch.equal(got[-1][0], wanted[0])
    assert torch.equal(got[-1][1], wanted[1])
    assert torch.equal(alone(1, 2), wanted[0])  # after a generation that was left in the middle
