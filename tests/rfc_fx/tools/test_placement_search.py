"""The search for the best full steps: it finds a known best list, measures no more than it may, and nothing twice."""

import itertools

import pytest

import rfc
from rfc_fx.tools.calibrate.placement_search import Steps, best_placed, starts


def distance(steps: Steps, best: Steps) -> float:
    return float(sum(abs(a - b) for a, b in zip(steps, best, strict=True)))


@pytest.mark.parametrize("best", [(0, 3, 9, 30, 49), (0, 1, 2, 3, 4), (0, 20, 30, 40, 45)])
def test_single_moves_and_runs_find_the_best_list_of_a_smooth_error(best: Steps) -> None:
    found = best_placed(lambda forecast, steps: distance(steps, best), ["one"], [(0, 12, 24, 36, 49)], 50, most=10_000)
    assert found.steps == best
    assert found.error == 0


def test_the_forecast_is_the_one_that_is_best_at_the_first_list() -> None:
    goal = (0, 9, 12, 15)
    seen: list[tuple[str, Steps]] = []

    def measure(forecast: str, steps: Steps) -> float:
        seen.append((forecast, steps))
        return distance(steps, goal) + {"bad": 3, "good": 0, "worse": 5}[forecast]

    begin = [(0, 1, 2, 3), (0, 8, 11, 15)]
    found = best_placed(measure, ["bad", "good", "worse"], begin, 20, most=10_000)
    assert (found.forecast, found.steps, found.error) == ("good", goal, 0)
    assert seen[:4] == [("bad", begin[0]), ("good", begin[0]), ("worse", begin[0]), ("good", begin[1])]
    assert {forecast for forecast, _ in seen[3:]} == {"good"}
    assert len({*seen}) == len(seen) == found.measured


@pytest.mark.parametrize("most", [1, 2, 3])
def test_with_few_measurements_the_forecasts_come_first(most: int) -> None:
    seen: list[tuple[int, Steps]] = []

    def measure(forecast: int, steps: Steps) -> float:
        seen.append((forecast, steps))
        return 1.0

    found = best_placed(measure, [7, 8], [(0, 4), (0, 3), (0, 2)], 5, most=most)
    assert seen == [(7, (0, 4)), (8, (0, 4)), (7, (0, 3))][:most]
    assert found == (7, (0, 4), 1.0, most)


@pytest.mark.parametrize("enough", [30.0, 12.0, 3.0, 0.0])
def test_it_ends_where_the_error_is_small_enough(enough: float) -> None:
    errors: list[float] = []

    def measure(forecast: str, steps: Steps) -> float:
        errors.append(distance(steps, (0, 3, 9, 30, 45)))
        return errors[-1]

    found = best_placed(measure, ["one"], [(0, 12, 24, 36, 49)], 50, most=10_000, enough=enough)
    assert found.error <= enough
    assert errors[-1] == found.error
    assert all(error > enough for error in errors[:-1])


@pytest.mark.parametrize("most", [1, 2, 7, 40])
def test_no_list_is_measured_twice_and_none_too_many(most: int) -> None:
    seen: list[Steps] = []

    def measure(forecast: None, steps: Steps) -> float:
        assert all(a < b for a, b in itertools.pairwise(steps))
        assert steps[0] == 0
        assert steps[-1] < 20
        seen.append(steps)
        return distance(steps, (0, 2, 4, 6, 8, 10))

    found = best_placed(measure, [None], [(0, 4, 8, 12, 16, 19), (0, 1, 2, 3, 4, 5)], 20, most=most)
    assert len(seen) == len({*seen}) == found.measured == most
    assert found.error == min(distance(steps, (0, 2, 4, 6, 8, 10)) for steps in seen)


def test_where_no_move_helps_it_ends_at_once() -> None:
    found = best_placed(lambda forecast, steps: 0.0, ["one"], [(0,)], 1, most=50)
    assert found == ("one", (0,), 0.0, 1)
    start = (0, 1, 2)
    assert best_placed(lambda forecast, steps: float(steps != start), ["one"], [start], 3, most=50).measured == 1  # all steps are full


@pytest.mark.parametrize(
    ("begin", "most", "said"),
    [
        ([()], 5, "begin must be lists of one length that rise from 0 to below 10"),
        ([(1, 2)], 5, r"got \[1, 2\]"),
        ([(0, 4, 2)], 5, r"got \[0, 4, 2\]"),
        ([(0, 10)], 5, "to below 10"),
        ([(0, 4), (0, 4, 5)], 5, "of one length"),
        ([(0, 4)], 0, "most must be at least 1, begin and forecasts not empty, got 0, 1 lists and 1 forecasts"),
        ([], 3, "got 3, 0 lists and 1 forecasts"),
    ],
)
def test_a_beginning_that_is_no_list_is_refused(begin: list[Steps], most: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        best_placed(lambda forecast, steps: 0.0, ["one"], begin, 10, most=most)


def test_a_search_without_a_forecast_is_refused() -> None:
    with pytest.raises(ValueError, match="got 5, 1 lists and 0 forecasts"):
        best_placed(lambda forecast, steps: 0.0, [], [(0, 4)], 10, most=5)


@pytest.mark.parametrize(("nfc", "steps"), [(1, 1), (2, 20), (8, 50), (14, 50), (20, 20)])
def test_a_search_begins_with_different_lists_of_which_the_first_is_the_method_s_own(nfc: int, steps: int) -> None:
    own = tuple(range(nfc))
    made = starts(nfc, steps, own)
    assert made[0] == own
    assert rfc.Chebyshev(nfc=nfc, num_steps=steps).schedule.full_steps in made
    assert len(made) == len({*made})
    assert {len(one) for one in made} == {nfc}
    assert all(a < b for one in made for a, b in itertools.pairwise(one))
