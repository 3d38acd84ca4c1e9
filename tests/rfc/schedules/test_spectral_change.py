"""The schedule of SeaCache: the filter against the FFT in numpy, the decisions against the released loop."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from families import shared_model
from hypothesis import assume, given
from hypothesis import strategies as st
from tolerances import FORECAST
from torch import Tensor, nn

import rfc
import rfc.eager
import rfc_fx
from rfc import SeaCache, SpectralChange
from rfc.eager.run import Run
from rfc.ranks import completed_by
from rfc.record import Direction
from rfc.schedules.spectral_change import spectral_filter
from rfc_fx.errors import NoSiteError

INF = math.inf


def filtered(x: Any, sigma: float, power: float) -> Any:
    """The released filter: Wiener gain by axis, over the FFT of all inner axes, divided by the mean of the whole response."""
    inner = range(1, x.ndim - 1)
    response = np.ones([x.shape[axis] for axis in inner])
    for place, axis in enumerate(inner):
        clean = 1 / (np.abs(np.fft.fftfreq(x.shape[axis])) ** power + 1e-16)
        gain = (1 - sigma) * clean / ((1 - sigma) ** 2 * clean + sigma**2 + 1e-16)
        response = response * gain.reshape([-1 if other == place else 1 for other in range(len(inner))])
    spectrum = np.fft.fftn(x, axes=list(inner)) * (response / response.mean())[None, ..., None]
    return np.fft.ifftn(spectrum, axes=list(inner)).real


@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(1, 4, 4), (2, 3, 5), (3, 1, 6), (1, 16, 9)]),
    sigma=st.floats(0.001, 0.999),
    power=st.sampled_from([2.0, 3.0]),
)
def test_the_filter_is_the_wiener_filter_by_fft(seed: int, shape: tuple[int, int, int], sigma: float, power: float) -> None:
    x = torch.randn(2, *shape, 3, generator=torch.Generator().manual_seed(seed))
    got = spectral_filter(x, torch.tensor(math.log((1 - sigma) / sigma)), power).numpy()
    wanted = filtered(x.double().numpy(), sigma, power)
    assert np.abs(got - wanted).max() <= FORECAST * np.abs(wanted).max()


def seacache(I: list[Tensor], threshold: float, warmup: int, steps: int | None, most: int | None) -> tuple[list[int], float]:
    """The released loop over a flow's timesteps, and how close a decision came to its threshold."""
    full: list[int] = []
    total, skipped, closest, before = 0.0, 0, INF, None
    for t, x in enumerate(I):
        y = filtered(x.double().numpy().reshape(2, 4, 4, 3), 1 - t / len(I) if t else 1 - 1e-6, 3.0)
        is_full = t < warmup or t + 1 == steps or (most is not None and skipped >= most)
        if before is not None:
            total += np.abs(y - before).mean() / np.abs(before).mean()
            closest = min(closest, abs(total - threshold))
        is_full = is_full or not total < threshold
        before = y
        skipped = 0 if is_full else skipped + 1
        if is_full:
            full.append(t)
            total = 0.0
    return full, closest


def run_of(schedule: SpectralChange, I: list[Tensor], scale: float) -> Run:
    """The schedule's decisions, as the twin takes them, in a flow that is called with timesteps from `scale` to 0."""
    run = Run(rfc.Method(estimator=rfc.Reuse(), schedule=schedule), schedule.numbers())
    for step, x in enumerate(I):
        run.begin(scale * (1 - step / len(I)), (), Direction())
        run.decide(I=x)
    return run


@given(
    seed=st.integers(0, 10**6),
    threshold=st.floats(0.05, 2.0) | st.just(INF),
    warmup=st.integers(1, 4),
    steps=st.none() | st.just(14),
    most=st.none() | st.integers(1, 4),
    scale=st.sampled_from([1.0, 1000.0]),
)
def test_spectral_change_decides_as_seacaches_loop_does(
    seed: int, threshold: float, warmup: int, steps: int | None, most: int | None, scale: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    I = list((torch.randn(14, 2, 16, 3, generator=draw) * 0.3).cumsum(0))
    wanted, closest = seacache(I, threshold, warmup, steps, most)
    assume(closest > 1e-3)
    schedule = SpectralChange(threshold=threshold, warmup=warmup, num_steps=steps, max_skip=most)
    phases = run_of(schedule, I, scale).generation.phases
    assert [step for step, phase in enumerate(phases) if phase == "FULL"] == wanted


def test_noise_levels_are_read_from_a_scheduler() -> None:
    scheduler = DDIMScheduler()
    schedule = SeaCache(scheduler).schedule
    assert isinstance(schedule, SpectralChange)
    squared = scheduler.alphas_cumprod.double()
    for t in (1, 20, 333, 500, 951, 999):
        wanted = float((squared[t].log() - (1 - squared[t]).log()) / 2)
        assert float(schedule.level(torch.tensor([t, 0]))) == pytest.approx(wanted, abs=0.05)
    for flow in (None, FlowMatchEulerDiscreteScheduler()):
        schedule = SeaCache(flow).schedule
        assert isinstance(schedule, SpectralChange)
        assert float(schedule.level(torch.tensor([250.0]))) == pytest.approx(math.log(3), rel=1e-5)
        assert float(schedule.level(torch.tensor([0.25]))) == pytest.approx(math.log(3), rel=1e-5)
        assert float(schedule.level(torch.tensor([0.0]))) == pytest.approx(-float(schedule.level(torch.tensor([1000.0]))), rel=0.01)


def test_a_light_of_noise_lets_everything_through_and_much_of_it_the_mean_alone() -> None:
    x = torch.randn(1, 4, 4, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(spectral_filter(x, torch.tensor(12.0), 3.0), x)
    mean = x.mean((1, 2), keepdim=True) * 16  # a gain of 1 on average: all of it lies at frequency 0
    torch.testing.assert_close(spectral_filter(x, torch.tensor(-12.0), 3.0), mean.expand_as(x), rtol=1e-3, atol=1e-3)


def test_tokens_are_a_square_or_frames_of_a_grid_and_lie_on_one_rank() -> None:
    assert SpectralChange(threshold=1).axes((2, 16, 3)) == (1, 4, 4)
    assert SpectralChange(threshold=1, grid=(2, 4)).axes((2, 24, 3)) == (3, 2, 4)
    with pytest.raises(ValueError, match=r"with a square of 4 x 4 tokens, got \(2, 24, 3\); pass grid=\(rows, columns\)$"):
        SpectralChange(threshold=1).axes((2, 24, 3))
    with pytest.raises(ValueError, match=r"with frames of 5 x 4 tokens, got \(2, 24, 3\)"):
        SpectralChange(threshold=1, grid=(5, 4)).axes((2, 24, 3))
    with completed_by(lambda sums: sums), pytest.raises(ValueError, match="which here lie on several ranks"):
        SpectralChange(threshold=1).axes((2, 16, 3))


def test_a_model_without_a_timestep_is_refused() -> None:
    class Untimed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.kwargs = shared_model("dit")

        def forward(self, hidden_states: Tensor) -> Any:
            return self.inner(**{**self.kwargs, "hidden_states": hidden_states}, return_dict=False)[0]

    model = Untimed()
    with pytest.raises(NoSiteError, match="SpectralChange reads the timestep, and the model has no such argument"):
        rfc_fx.transform(model, SeaCache(), example_inputs={"hidden_states": model.kwargs["hidden_states"]})
    run = Run(SeaCache(), SeaCache().schedule.numbers())
    run.begin(None, (), Direction())
    with pytest.raises(ValueError, match="SpectralChange reads the timestep, and the model was called with none"):
        run.decide(I=torch.ones(1, 4, 2))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SeaCache(threshold=-1), r"^SpectralChange: threshold must be a number >= 0"),
        (lambda: SeaCache(max_skip=0), r"^SpectralChange: max_skip must be an integer of at least 1, got 0$"),
        (lambda: SeaCache(power=0), r"^SpectralChange: power must be a number above 0, got 0$"),
        (lambda: SeaCache(order=2), r"^SeaCache: order must be 0 \(reuse\) or 1 \(a line\), got 2$"),
        (lambda: SeaCache(grid=(4,)), r"^SpectralChange: grid must be rows and columns, got \(4,\)$"),  # type: ignore[arg-type]
        (lambda: SpectralChange(threshold=1, levels=(INF, 0)), r"^SpectralChange: levels must be 2 to 129 finite numbers, got \(inf, 0\)$"),
        (lambda: SpectralChange(threshold=1, span=-1), r"^SpectralChange: span must be a number above 0, got -1$"),
    ],
)
def test_bad_settings_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
