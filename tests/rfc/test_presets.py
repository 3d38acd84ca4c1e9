"""Presets: published settings, checked against the numbers that were published with them."""

import re
from typing import Any

import pytest

import rfc
from rfc import PRESETS, Method, Record, preset


def nfc(method: Method, steps: int = 50) -> int:
    generation, schedule = Record(), method.schedule
    for _ in range(steps):
        generation.decide(schedule, schedule.numbers(), None, None)
    return generation.nfc


EVERY = [(method, model) for method, rows in PRESETS.items() for model in rows]


@pytest.mark.parametrize(("method", "model"), EVERY)
def test_a_row_is_the_method_of_that_name_and_can_skip_in_fifty_steps(method: str, model: str) -> None:
    made = preset(method, model)
    assert made is PRESETS[method][model] or made == PRESETS[method][model]
    kinds = {"first-block": "firstblockcache", "dbcache": "firstblockcache"}
    assert made.name.lower() == kinds.get(method, method.replace("-", ""))
    assert made.schedule.can_skip(50)
    assert model == model.lower()


@pytest.mark.parametrize(
    ("method", "model", "changes", "full"),
    [
        # tables of arXiv 2602.19506, 50 steps
        *(("fora", "dit-xl-2", {"interval": N}, full) for N, full in ((4, 14), (5, 11), (6, 10), (7, 8))),
        *(("taylorseer", "dit-xl-2", {"interval": N}, full) for N, full in ((4, 14), (5, 11), (6, 10), (7, 8), (9, 7))),
        ("fora", "flux.1-dev", {}, 17),
        ("fora", "flux.1-dev", {"interval": 7}, 8),
        ("taylorseer", "flux.1-dev", {"interval": 4}, 14),
        ("taylorseer", "flux.1-dev", {"interval": 9}, 8),
        ("fora", "hunyuanvideo", {}, 9),
        ("fora", "hunyuanvideo", {"interval": 8}, 7),
        ("taylorseer", "hunyuanvideo", {}, 10),
        ("taylorseer", "hunyuanvideo", {"interval": 6}, 9),
        ("taylorseer", "hunyuanvideo", {"interval": 8}, 7),
        # steps that are full in every layer, in a simulation of ToCa's released code
        *(("toca", "dit-xl-2", {"interval": N}, full) for N, full in ((4, 14), (5, 11), (6, 10), (7, 8))),
        # 4.99x of the FLOPs (arXiv 2503.06923)
        ("taylorseer", "flux.1-dev", {}, 10),
    ],
)
def test_the_number_of_full_computations_is_the_published_one(method: str, model: str, changes: dict[str, Any], full: int) -> None:
    assert nfc(preset(method, model, **changes)) == full


def test_magcaches_ratios_are_one_per_step_as_measured() -> None:
    assert {model: len(row.schedule.ratios) for model, row in PRESETS["magcache"].items()} == {  # type: ignore[attr-defined]
        "flux.1-dev": 28,
        "hunyuanvideo": 50,
        "wan2.1-t2v-1.3b": 50,
        "wan2.1-t2v-14b": 50,
    }


def test_magcaches_ratios_for_flux_are_those_that_diffusers_ships() -> None:
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    assert preset("magcache", "flux.1-dev").schedule.ratios == pytest.approx(FLUX_MAG_RATIOS.tolist())  # type: ignore[attr-defined]


def test_changes_replace_settings_and_leave_the_row_as_it_was() -> None:
    before = PRESETS["speca"]["flux.1-dev"]
    changed = preset("speca", "FLUX.1-dev", num_steps=28, base=3.0)
    assert changed == rfc.SpeCa(base=3.0, decay=0.3, floor=0.1, min_drafts=2, max_drafts=8, order=2, enhanced=3, num_steps=28)
    assert (
        PRESETS["speca"]["flux.1-dev"]
        == before
        == rfc.SpeCa(base=7.0, decay=0.3, floor=0.1, min_drafts=2, max_drafts=8, order=2, enhanced=3, num_steps=50)
    )
    with pytest.raises(TypeError):
        PRESETS["speca"]["mine"] = before  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "changes", "text"),
    [
        (("magic", "flux.1-dev"), {}, f"preset: method must be one of {', '.join(PRESETS)}, got 'magic'"),
        (("speca", "sd3"), {}, "preset: speca was published with settings for dit-xl-2, flux.1-dev, hunyuanvideo, got 'sd3'"),
        (("fora", "dit-xl-2"), {"tau": 1}, "preset: fora has the settings interval, warmup, got tau"),
        (("fora", "dit-xl-2"), {"interval": 0}, "Every: interval must be an integer of at least 1, got 0"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(arguments: tuple[str, str], changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        preset(*arguments, **changes)
