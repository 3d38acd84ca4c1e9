"""The quality laboratory: known values of its metrics, calibration, planned schedules, teacher forcing, and a small run end to end."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import invoke, said
from scipy.ndimage import gaussian_filter
from small_digits import first_blocks
from torch import Tensor

import rfc
from benchmarks.latency.methods import full_steps
from benchmarks.quality import __main__ as quality
from benchmarks.quality import run as quality_run
from benchmarks.quality import workloads as quality_workloads
from benchmarks.quality.bootstrap import ratio_of_geometric_means
from benchmarks.quality.entry import Entry, Facts, uniform_steps
from benchmarks.quality.frechet import frechet, moments, square_root
from benchmarks.quality.methods import BASELINES, ENTRIES, METHODS, Weighted
from benchmarks.quality.parts import ABLATIONS, AT_LEVELS, FORECASTS, MAGNITUDES, NORMS, PLACES, TOKENS, WATCHED
from benchmarks.quality.planned import planned_steps
from benchmarks.quality.record import read_arrays
from benchmarks.quality.relation import correlation, relation
from benchmarks.quality.report import markdown
from benchmarks.quality.similarity import geometric_mean, psnr, relative_l2, ssim
from benchmarks.quality.teacher_forced import distances, forced_errors
from benchmarks.quality.trajectory import Trajectory
from rfc.eager.recording import ratios_of
from rfc.state import Clock
from rfc_fx.tools import compare
from rfc_fx.tools.calibrate.bisection import calibrated, largest_threshold
from rfc_fx.zoo import load_digits

ROUNDING = 1e-9
"""Metrics are taken in float64; a few operations lose some of its digits."""

# ---- metrics -----------------------------------------------------------------------------------------------------------


def test_frechet_distance_of_two_gaussians_is_that_of_their_moments() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=draw, dtype=torch.float64)
    white = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T  # mean 0, covariance 1, exactly
    a, b = moments(white), moments(white * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([3.0, 0.0, 0.0]))
    assert frechet(a, b) == pytest.approx(9 + 0 + 1 + 4, rel=1e-6)  # |m|^2 + sum (sigma_a - sigma_b)^2
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_is_symmetric_also_where_covariances_have_no_full_rank() -> None:
    draw = torch.Generator().manual_seed(1)
    a, b = (moments(torch.randn(5, 8, generator=draw)) for _ in range(2))
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-6)
    root = square_root(a.covariance)
    assert torch.allclose(root @ root, a.covariance, atol=1e-9)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        moments(torch.zeros(1, 4))


def test_ssim_of_equal_pictures_is_one_and_psnr_infinite() -> None:
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert ssim(x, x).tolist() == pytest.approx([1, 1], abs=ROUNDING)
    assert psnr(x, x).tolist() == [math.inf, math.inf]
    assert relative_l2(x, x).tolist() == [0, 0]


def test_ssim_is_that_of_gaussian_filters() -> None:
    x, y = torch.rand(2, 1, 1, 16, 16, dtype=torch.float64) * 2 - 1

    def blurred(t: Tensor) -> np.ndarray[Any, Any]:
        inside = gaussian_filter(t[0, 0].numpy(), 1.5, radius=5)[5:-5, 5:-5]
        return np.asarray(inside)

    m_x, m_y = blurred(x), blurred(y)
    v_x, v_y, v_xy = blurred(x * x) - m_x**2, blurred(y * y) - m_y**2, blurred(x * y) - m_x * m_y
    expected = (2 * m_x * m_y + 0.02**2) * (2 * v_xy + 0.06**2) / ((m_x**2 + m_y**2 + 0.02**2) * (v_x + v_y + 0.06**2))
    assert float(ssim(x, y)) == pytest.approx(expected.mean(), abs=ROUNDING)
    assert -1 <= float(ssim(torch.ones(1, 1, 8, 8), -torch.ones(1, 1, 8, 8))) < 0.01  # 8 pixels: a window of 7


def test_psnr_of_a_sample_is_that_of_the_comparison() -> None:
    x, y = torch.rand(3, 1, 8, 8) * 2 - 1, torch.rand(3, 1, 8, 8) * 2 - 1
    assert psnr(x, y).tolist() == pytest.approx([compare.psnr(a[None], b[None]) for a, b in zip(x, y, strict=True)])
    zero = torch.zeros(1, 1, 2, 2)
    assert float(psnr(zero + 0.2, zero)) == pytest.approx(20.0, abs=1e-5)  # float32's 0.2
    assert float(relative_l2(2 * x, x)[0]) == pytest.approx(1)


def test_geometric_mean_is_the_exponential_of_the_mean_logarithm() -> None:
    assert geometric_mean(torch.tensor([1.0, 100.0])) == pytest.approx(10)


# ---- bootstrap ---------------------------------------------------------------------------------------------------------


def test_bootstrap_finds_a_constant_ratio_without_spread() -> None:
    b = torch.rand(50) + 0.1
    assert ratio_of_geometric_means(0.5 * b, b) == pytest.approx((0.5, 0.5, 0.5), rel=1e-6)


def test_bootstrap_interval_of_lognormal_ratios_is_about_two_standard_errors() -> None:
    draw = torch.Generator().manual_seed(0)
    logs = torch.randn(400, generator=draw, dtype=torch.float64) * 0.4 - 0.2
    ratio = ratio_of_geometric_means(logs.exp(), torch.ones(400))
    error = 1.96 * float(logs.std()) / 20
    assert math.log(ratio.value) == pytest.approx(float(logs.mean()))
    assert math.log(ratio.low) == pytest.approx(float(logs.mean()) - error, abs=0.1 * error)
    assert math.log(ratio.high) == pytest.approx(float(logs.mean()) + error, abs=0.1 * error)
    assert ratio.excludes_one
    assert ratio == ratio_of_geometric_means(logs.exp(), torch.ones(400))  # the same every time


def test_bootstrap_refuses_errors_that_are_not_paired() -> None:
    with pytest.raises(ValueError, match="two equally long vectors"):
        ratio_of_geometric_means(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match="above 0"):
        ratio_of_geometric_means(torch.tensor([0.0, 1.0]), torch.ones(2))


# ---- calibration -------------------------------------------------------------------------------------------------------


def falling(threshold: float) -> float:
    """Full steps of 50: a step function, 3 where all are skipped."""
    return max(3.0, min(50.0, float(round(2 / threshold))))


@pytest.mark.parametrize("guess", [None, 0.0001, 0.13, 7.0])
@pytest.mark.parametrize("target", [3, 7, 14, 25, 49])
def test_bisection_finds_the_threshold_of_a_step_function(target: int, guess: float | None) -> None:
    found = calibrated(falling, target, low=1e-4, high=50, guess=guess)
    assert found.value == target == falling(found.threshold)
    assert found.measured <= 16


def test_a_good_guess_is_measured_once() -> None:
    assert calibrated(falling, 14, low=1e-4, high=50, guess=2 / 14).measured == 1


def test_a_target_that_is_jumped_over_gives_the_closest_and_of_two_the_smaller() -> None:
    assert calibrated(lambda at: 20.0 if at < 1 else 10.0, 14, low=0.01, high=50).value == 10
    assert calibrated(lambda at: 20.0 if at < 1 else 10.0, 15, low=0.01, high=50).value == 10
    assert calibrated(lambda at: 20.0 if at < 1 else 10.0, 16, low=0.01, high=50).value == 20
    assert calibrated(lambda at: 20.0, 3, low=0.01, high=50, guess=1.0).value == 20
    with pytest.raises(ValueError, match="0 < low < high"):
        calibrated(falling, 14, low=1, high=1)


def test_the_largest_threshold_that_fits_is_found_to_a_few_percent() -> None:
    found = largest_threshold(lambda at: at <= 0.37, low=1e-3, high=10)
    assert found is not None
    assert 0.36 < found <= 0.37
    assert largest_threshold(lambda at: False, low=1e-3, high=10) is None
    assert largest_threshold(lambda at: True, low=1e-3, high=10) == 10


# ---- schedules and methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "budget"), [(50, 25), (50, 17), (50, 14), (50, 11), (50, 8), (50, 7), (20, 10), (20, 7), (20, 5), (8, 4)]
)
def test_uniform_steps_fill_the_budget_at_equal_gaps(steps: int, budget: int) -> None:
    chosen = uniform_steps(steps, budget)
    assert len(set(chosen)) == budget
    assert chosen == sorted(chosen)
    assert chosen[-1] < steps
    gaps = [b - a for a, b in pairwise(chosen)][2:]
    assert max(gaps) - min(gaps) <= 1


def test_uniform_steps_are_the_published_ones_where_an_interval_gives_the_number() -> None:
    for interval, budget in ((4, 14), (5, 11), (7, 8), (9, 7)):
        assert uniform_steps(50, budget) == full_steps(rfc.Every(interval=interval, warmup=2), 50)


def test_every_method_that_a_table_of_parts_names_exists() -> None:
    assert len(METHODS) == len(ENTRIES)
    spoken = {
        *BASELINES,
        *MAGNITUDES.values(),
        *NORMS.values(),
        *WATCHED.values(),
        *PLACES.values(),
        *FORECASTS.values(),
        *TOKENS.values(),
        *AT_LEVELS.values(),
        *(n for rows in ABLATIONS.values() for n in rows.values()),
    }
    assert spoken <= set(METHODS)
    assert all([entry.listed, entry.placed, entry.thresholded].count(None) == 2 for entry in ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_makes_a_method(entry: Entry) -> None:
    facts = Facts(20, lambda: [1.1] * 20, lambda tau, where: [0, 1, 5], load_digits()[1])
    if entry.listed is not None:
        method = entry.listed([0, 1, 5])
    else:
        method = entry.placed(7, facts) if entry.placed is not None else entry.thresholded(2.0, facts)  # type: ignore[misc]
    assert isinstance(method, rfc.Method)


def test_reuse_at_tocas_steps_has_the_same_full_steps_and_nothing_else() -> None:
    for interval, count in ((4, 14), (6, 10), (7, 8)):
        facts = Facts(50, lambda: (), lambda tau, where: [], None)
        toca, reuse = (METHODS[name].thresholded for name in ("ToCa", "Reuse at ToCa's steps"))
        assert toca is not None
        assert reuse is not None
        steps = full_steps(reuse(float(interval), facts).schedule, 50)
        assert steps == full_steps(toca(float(interval), facts).schedule, 50)
        assert len(steps) == count
        assert reuse(float(interval), facts).estimator == rfc.Reuse()


def test_weighted_taylor_goes_that_much_further() -> None:
    state = {"O": torch.ones(1, 2), "dO1": torch.ones(1, 2)}
    clock = Clock.at(2.0, 4.0, 2.0)
    assert float(Weighted(order=1, weight=1.2).estimate(state, torch.zeros(1, 2), clock)[0, 0]) == pytest.approx(1 + 1.2 * 2)


# ---- trajectories ------------------------------------------------------------------------------------------------------


def straight(steps: int = 12, sites: int = 2) -> Trajectory:
    """Inputs on a straight line, outputs a linear map of them: every forecast of order 1 is exact."""
    draw = torch.Generator().manual_seed(0)
    made: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(steps)]
    for site in range(sites):
        start, drift = (torch.randn(2, 4, 6, generator=draw) for _ in range(2))
        weight = torch.randn(6, 6, generator=draw)
        for step, pairs in enumerate(made):
            I = start + (1 + site) * step * drift
            pairs.append((I, I @ weight))
    return Trajectory([f"site {site}" for site in range(sites)], made)


def test_teacher_forced_error_is_nothing_on_a_straight_line_and_grows_with_distance_for_reuse() -> None:
    trajectory = straight()
    k = distances(12, 4)
    assert k == [0, 0, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    for estimator in (rfc.Taylor(order=1), rfc.RFE(order=1)):
        errors = forced_errors(trajectory, 1, estimator, 4)
        assert [bool(row.isnan().all()) for row in errors] == [at == 0 for at in k]
        assert float(errors.nan_to_num().max()) < 1e-4
    reuse = forced_errors(trajectory, 0, rfc.Reuse(), 4)
    assert (reuse[3] < reuse[4]).all()
    assert (reuse[4] < reuse[5]).all()


def test_relations_on_a_straight_line_are_those_of_proposition_1() -> None:
    figures = relation(straight(), 4, distances(12, 4)).by_site
    for name in ("cosine_input", "cosine_output", "s_N_over_s_k", "kappa_over_taylor", "best_over_taylor"):
        assert figures[name] == pytest.approx([1, 1], rel=1e-3), name
    assert max(figures["s_rsd_within_interval"] + figures["s_rsd_over_steps"]) < 1e-3
    a = torch.arange(5.0)
    assert correlation(a, -2 * a) == pytest.approx(-1)
    assert correlation(a, torch.ones(5)) == 0


def test_magnitude_ratios_are_those_of_the_residual_from_step_to_step() -> None:
    O = torch.ones(1, 2, 3)
    trajectory = Trajectory(["stack 0"], [[(O, scale * O)] for scale in (1.0, 2.0, 3.0)])
    assert ratios_of(trajectory.outputs(0)) == pytest.approx([1, 2, 1.5])


def test_planned_steps_skip_on_a_straight_line_and_are_full_where_it_bends() -> None:
    trajectory = straight()
    assert planned_steps(trajectory, 1.0, "first") == [0, 1, 2]
    assert planned_steps(trajectory, 0.0, "all", warmup=2) == list(range(12))  # rounding is more than nothing
    bent = trajectory.steps[7][1][0].add(100.0)
    trajectory.steps[7][1] = (bent, trajectory.steps[7][1][1])
    assert planned_steps(trajectory, 0.3, "first") == [0, 1, 2]
    assert 7 in planned_steps(trajectory, 0.3, "all")


# ---- end to end --------------------------------------------------------------------------------------------------------


class Pooled:
    """A classifier that was never trained: blurred pixels as features."""

    def features(self, x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 4).flatten(1)

    def spatial(self, x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 2).flatten(1)

    def logits(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10]


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Two blocks of the digits model, made-up real pictures and a classifier that knows nothing."""
    real = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    workload = replace(quality_workloads.WORKLOADS["digits"], load=lambda: first_blocks(2), real=lambda: real)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quality_workloads.WORKLOADS, "digits", workload)
        patch.setattr(quality, "classifier", lambda name: Pooled())
        yield


@pytest.fixture(scope="module")
def kept(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick run."""
    out = tmp_path_factory.mktemp("quality")
    result = invoke(quality.main, "--quick", "--out", str(out))
    assert result.exit_code == 0, result.output
    return out


def test_a_quick_run_writes_record_lines_report_and_pictures(kept: Path) -> None:
    record = json.loads((kept / "digits.json").read_text())
    cells = {cell["method"]: cell for cell in record["cells"]}
    assert list(cells) == ["TaylorSeer m=1", "MagCache", "RFC m=1"]
    assert cells["TaylorSeer m=1"]["nfc"] == 4
    assert cells["TaylorSeer m=1"]["pattern"].count("#") == 4
    assert abs(cells["RFC m=1"]["nfc"] - 4) <= 1
    assert all(0 < cell["error"] < 2 and 0 < cell["flops_share"] < 1 for cell in cells.values())
    assert record["ratios"]["ddim-8"]["4"]["taylorseer"] == "TaylorSeer m=1"
    assert record["ratios"]["ddim-8"]["4"]["methods"]["TaylorSeer m=1"]["taylorseer"] == [1, 1, 1]
    assert len((kept / "digits.csv").read_text().splitlines()) == 1 + 1 + 3
    assert len(read_arrays(kept / "digits.npz")["ddim-8/4/RFC m=1/errors"]) == record["settings"]["samples"]
    pictures = {path.name for path in kept.glob("*.png")}
    assert pictures == {
        f"digits-{name}.png" for name in ("error", "flops", "time", "grid-ddim-8-4", "schedule-ddim-8-4", "heat", "distance")
    }
    report = (kept / "digits.md").read_text()
    assert all(f"({name})" in report for name in pictures)


def test_the_report_is_made_from_the_record_alone(kept: Path, small: None) -> None:
    written = (kept / "digits.md").read_text()
    assert markdown(json.loads((kept / "digits.json").read_text())) == written
    result = invoke(quality.main, "--report", "--out", str(kept))
    assert result.exit_code == 0, result.output
    assert (kept / "digits.md").read_text() == written


def test_a_resumed_run_keeps_what_is_there_and_is_refused_for_other_settings(
    kept: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_run.plots, "draw", lambda *_: [])
    before = json.loads((kept / "digits.json").read_text())
    result = invoke(
        quality.main,
        "--quick",
        "--resume",
        "--parts=closed",
        "--methods=TaylorSeer m=1; FORA; Chebyshev; Chebyshev, calibrated",
        "--out",
        str(kept),
    )
    assert result.exit_code == 0, result.output
    after = json.loads((kept / "digits.json").read_text())
    new = {cell["method"]: cell for cell in after["cells"] if cell not in before["cells"]}
    assert list(new) == ["FORA", "Chebyshev", "Chebyshev, calibrated"]
    assert [cell for cell in after["cells"] if cell["method"] not in new] == before["cells"]
    assert new["Chebyshev"]["pattern"].count("#") == new["Chebyshev, calibrated"]["pattern"].count("#") == 4
    assert after["teacher_forced"] == before["teacher_forced"]
    result = invoke(quality.main, "--resume", "--samples=10", "--groups=1", "--batch=10", "--out", str(kept))
    assert result.exit_code != 0
    assert "was made with another samples" in said(result)


def test_unknown_names_are_refused_before_anything_runs() -> None:
    for option, value in (("--model", "cats"), ("--methods", "Magic"), ("--samplers", "euler"), ("--parts", "open")):
        result = invoke(quality.main, option, value)
        assert result.exit_code != 0
        assert value in result.output
