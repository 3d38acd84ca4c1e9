"""Calibrate: a threshold for a number of full computations or a bound on quality, kept in a file that transform and generate take."""

import json
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from families import moved, sample, shared_model
from torch import Tensor, nn
from typer.testing import CliRunner

import rfc
import rfc_fx
import rfc_fx.tools.calibrate as calibrate_module
from rfc_fx.io.method_file import MethodFileError, read_method, write_method
from rfc_fx.tools.calibrate import CalibrationError, Goal, calibrate, named
from rfc_fx.tools.cli import app

STEPS = 12

pytestmark = pytest.mark.usefixtures("captured_once", "few_blocks")


@dataclass
class Tiny:
    """A tiny DiT whose latent drifts; a seed is another latent."""

    name: str = "tiny"
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    groups: list[str] = field(default_factory=lambda: ["a", "b"])
    made: Any = None

    def __post_init__(self) -> None:
        self.made = shared_model("dit", layers=1)

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self.made[0]
        return model

    @torch.no_grad()
    def draw(self, model: nn.Module, seed: int, steps: int, tick: Any) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        kwargs = {**self.made[1], "hidden_states": torch.randn(self.made[1]["hidden_states"].shape, generator=draw)}
        return sum(sample(model(**moved(kwargs, i, steps))) for i in range(steps)) / steps  # type: ignore[return-value]


def test_a_number_of_full_computations_is_met_on_the_mean_over_the_seeds() -> None:
    found = calibrate(Tiny(), rfc.NewtonRCS(), Goal(nfc=5), STEPS)
    assert found.method == rfc.NewtonRCS(tau=found.threshold)
    assert found.measured.nfc == pytest.approx(5, abs=0.5)
    assert 0 < found.measured.error < 1
    assert 0 < found.measured.psnr_db < inf


def test_a_bound_on_quality_gives_the_largest_threshold_that_keeps_it() -> None:
    source = Tiny()
    bound = calibrate(source, rfc.RFC(), Goal(nfc=8), STEPS).measured.error
    found = calibrate(source, rfc.RFC(), Goal(max_error=bound), STEPS)
    assert found.measured.error <= bound
    assert found.measured.nfc <= 8.5
    strict = calibrate(source, rfc.RFC(), Goal(psnr=found.measured.psnr_db + 6), STEPS)
    assert strict.measured.psnr_db >= found.measured.psnr_db + 6
    assert strict.measured.nfc >= found.measured.nfc


def test_full_steps_are_moved_to_where_the_error_is_smallest() -> None:
    method = rfc.Chebyshev(nfc=5, num_steps=STEPS)
    placed = calibrate(Tiny(), method, Goal(nfc=5), STEPS, lists=1)
    assert (placed.method.estimator, placed.method.schedule) == (method.estimator, method.schedule.placed)
    moved = calibrate(Tiny(), method, Goal(nfc=5), STEPS, lists=30)
    assert moved.measured.nfc == 5
    assert moved.measured.error < placed.measured.error
    assert 1 < moved.tried <= 30
    assert moved.threshold is None


def test_the_better_forecast_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = calibrate_module.Laboratory.measure

    def liking(better: type) -> Any:
        """A measurement that adds an error to every other forecast's."""

        def measure(self: Any, method: rfc.Method, what: str, **more: Any) -> Any:
            found = measured(self, method, what, **more)
            return found._replace(error=found.error + 10 * (type(method.estimator) is not better))

        return measure

    for better in (rfc.Newton, rfc.RFE):
        monkeypatch.setattr(calibrate_module.Laboratory, "measure", liking(better))
        found = calibrate(Tiny(), rfc.Chebyshev(), Goal(nfc=5), STEPS, lists=10)
        assert type(found.method.estimator) is better
        assert found.measured.error < 10
        assert found.tried == 10
    with_order = calibrate(Tiny(), rfc.Chebyshev(order=3), Goal(nfc=5), STEPS, lists=1)
    assert with_order.method.estimator == rfc.Newton(order=3, damping=0.5)


def test_the_fewest_full_steps_that_keep_a_bound_are_found() -> None:
    bound = calibrate(Tiny(), rfc.Chebyshev(), Goal(nfc=6), STEPS, lists=1).measured.error
    found = calibrate(Tiny(), rfc.Chebyshev(), Goal(max_error=bound), STEPS, lists=5)
    assert found.measured.error <= bound
    assert found.measured.nfc <= 6
    assert calibrate(Tiny(), rfc.Chebyshev(), Goal(psnr=900), STEPS, lists=2).measured.nfc == STEPS


LEVELS = rfc.LogSNR(lambdas=(-1.0, 0.0, 1.0))


def test_a_method_that_knows_the_noise_levels_begins_with_its_own_full_steps() -> None:
    method = rfc.LogSNR(lambdas=tuple(-4 + 0.05 * step**2 for step in range(STEPS)), nfc=5)
    found = calibrate(Tiny(), method, Goal(nfc=5), STEPS, lists=1)
    assert (found.method.estimator, found.method.schedule) == (method.estimator, method.schedule.placed)
    assert calibrate(Tiny(), method, Goal(nfc=5), STEPS, lists=20).measured.error <= found.measured.error


def test_a_flow_keeps_its_corrections_where_full_steps_move(tmp_path: Path) -> None:
    method = rfc.LogSNR(lambdas=tuple(-4 + 0.6 * step for step in range(STEPS)), nfc=5, is_flow=True)
    found = calibrate(Tiny(), method, Goal(nfc=5), STEPS, lists=12).method
    assert found.estimator.num_weights == found.schedule.num_weights
    moved = calibrate_module.at(method, method.estimator, calibrate_module.listed(method.schedule, STEPS), (0, 2, 5, 7, 9)).schedule
    assert moved == method.schedule.at((0, 2, 5, 7, 9))  # type: ignore[attr-defined]
    assert moved.num_weights == 2
    own = calibrate(Tiny(), method, Goal(nfc=5), STEPS, lists=1).method
    assert (own.estimator, own.schedule) == (method.estimator, method.schedule.placed)  # type: ignore[attr-defined]
    write_method(tmp_path / "own.json", own, {})
    assert read_method(tmp_path / "own.json") == own
    longer = own.schedule.bound(20, rfc.noise_levels(FlowMatchEulerDiscreteScheduler(), 20))
    assert longer.in_graph == own.schedule.in_graph


@pytest.mark.parametrize(
    ("method", "goal", "said"),
    [
        (rfc.FORA(), {"nfc": 5}, "FORA decides without a threshold"),
        (LEVELS, {"nfc": 5}, "for the 12 steps that are drawn: LogSNR: placed for the noise levels of 3 calls, got 12"),
        (rfc.Chebyshev(), {"nfc": 99}, "nfc must be from 1 to the number of steps 12, got 99"),
        (rfc.Chebyshev(), {"nfc": 4.5}, "nfc must be a whole number, got 4.5"),
        (rfc.RFC(), {"nfc": 99}, "nfc must be from 1 to the number of steps 12, got 99"),
        (rfc.RFC(), {}, "exactly one of nfc, psnr and max_error is needed, got none"),
        (rfc.RFC(), {"nfc": 5, "psnr": 30}, "got nfc, psnr"),
        (
            rfc.SpeCa(enhanced=0, max_drafts=1, num_steps=STEPS),
            {"psnr": 900},
            "a PSNR of at least 900 dB is not reached: at threshold 0.001",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_said(method: rfc.Method, goal: dict[str, float], said: str) -> None:
    with pytest.raises(CalibrationError) as error:
        calibrate(Tiny(), method, Goal(**goal), STEPS)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "method",
    [rfc.NewtonRCS(), rfc.RFC(), rfc.TeaCache(), rfc.FirstBlockCache(), rfc.DiCache(), rfc.SpeCa()],
    ids=lambda method: method.name,
)
def test_a_method_file_gives_the_same_method_to_transform(method: rfc.Method, tmp_path: Path) -> None:
    chosen = method.with_threshold(0.25)
    write_method(tmp_path / "sub" / "method.json", chosen, {"nfc": 3.5})
    assert json.loads((tmp_path / "sub" / "method.json").read_text())["measured"] == {"nfc": 3.5}
    model, kwargs = shared_model("dit")
    named = rfc_fx.transform(model, tmp_path / "sub" / "method.json", example_inputs=kwargs)
    plain = rfc_fx.transform(model, chosen, example_inputs=kwargs)
    assert named.method == chosen
    assert named.plan().sites == plain.plan().sites


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON"),
        ("[]", "expected a method file of schema version 1, as rfc-fx calibrate writes it, got version None"),
        ('{"schema_version": 2, "method": {}}', "got version 2"),
        ('{"schema_version": 1, "method": {"estimator": {"type": "Magic"}, "schedule": {}}}', "method.estimator: type must be one of"),
    ],
)
def test_a_file_without_a_method_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "method.json").write_text(text)
    with pytest.raises(MethodFileError, match=r"method\.json") as error:
        read_method(tmp_path / "method.json")
    assert said in str(error.value)
    with pytest.raises(MethodFileError, match="is missing"):
        read_method(tmp_path / "none.json")


def test_the_command_writes_a_method_file_that_generate_takes(tmp_path: Path) -> None:
    out = tmp_path / "method.json"
    few = ["--steps", "6", "--classes", "3,8", "--seeds", "1"]
    result = CliRunner().invoke(app, ["calibrate", "digits", "--nfc", "4", "--lists", "4", *few, "--out", str(out)])
    assert result.exit_code == 0, result.output
    kept = json.loads(out.read_text())
    assert f"log-snr: {named(read_method(out).estimator)}, full steps 0, " in result.output
    assert f"(4 tried)\n{out}" in result.output
    assert kept["measured"]["nfc"] == 4
    given = ["generate", "--method", str(out), "--no-compile", *few, "--out", str(tmp_path / "drawn")]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    (entry,) = (row for name, row in json.loads((tmp_path / "drawn" / "summary.json").read_text())["methods"].items() if name != "full")
    assert entry["nfc"] == 4


def test_the_command_finds_a_threshold_too(tmp_path: Path) -> None:
    few = ["--steps", "6", "--classes", "3", "--seeds", "1", "--out", str(tmp_path / "method.json")]
    result = CliRunner().invoke(app, ["calibrate", "digits", "--nfc", "4", "--method", "rfc", *few])
    assert result.exit_code == 0, result.output
    assert "rfc: threshold" in result.output
    assert json.loads((tmp_path / "method.json").read_text())["measured"]["threshold"] > 0


def test_the_command_says_what_is_missing_in_one_line() -> None:
    result = CliRunner().invoke(app, ["calibrate", "digits"])
    assert result.exit_code == 2
    assert "exactly one of nfc, psnr and max_error is needed" in result.output
    result = CliRunner().invoke(app, ["calibrate", "digits", "--nfc", "5", "--method", "fora"])
    assert "FORA decides without a threshold" in result.output
