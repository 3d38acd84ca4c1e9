"""Arguments of the command line become methods and configurations with the settings that were passed, or one line that says why not."""

from typing import Any, get_args

import pytest
import torch

import rfc
import rfc_fx
from rfc.storage import STORED
from rfc_fx.tools.arguments import OptionError, StateDTypeName, dtype_named, new_config, parse_budget, parse_granularity_option
from rfc_fx.tools.named_methods import (
    DIGITS_TAU,
    METHODS,
    MethodArguments,
    best_known,
    check_dispatch,
    new_method,
    new_methods,
    taking,
)
from rfc_fx.zoo import DIGITS_PREDICTOR, load_digits

MAKEABLE = [name for name in METHODS if name not in ("magcache", "log-snr")]


@pytest.mark.parametrize(
    ("name", "asked", "method"),
    [
        ("fora", {}, rfc.FORA()),
        ("fora", {"interval": 7, "order": 3, "tau": 1.0}, rfc.FORA(interval=7)),
        ("taylorseer", {"interval": 5, "order": 1}, rfc.TaylorSeer(interval=5, order=1)),
        ("taylorseer-lite", {"order": 3}, rfc.TaylorSeerLite(order=3)),
        ("hicache", {"interval": 6}, rfc.HiCache(interval=6)),
        ("delta-dit", {}, rfc.DeltaDiT(interval=3)),
        ("rfc", {"tau": 0.3, "order": 2}, rfc.RFC(tau=0.3, order=2)),
        ("projective", {"tau": 0.3}, rfc.Method(estimator=rfc.Projective(), schedule=rfc.RCS(tau=0.3))),
        ("newton", {}, rfc.NewtonRCS()),
        ("newton", {"order": 3, "tau": 0.2}, rfc.NewtonRCS(tau=0.2, order=3)),
        ("chebyshev", {}, rfc.Chebyshev()),
        ("chebyshev", {"nfc": 5, "num_steps": 20, "order": 3}, rfc.Chebyshev(nfc=5, num_steps=20, order=3)),
        ("log-snr", {"model": "digits"}, rfc.LogSNR(load_digits()[1], 50)),
        ("log-snr", {"model": "digits", "nfc": 5, "num_steps": 20, "order": 3}, rfc.LogSNR(load_digits()[1], 20, 5, order=3)),
        ("speca", {}, rfc.SpeCa(num_steps=50)),
        ("speca", {"num_steps": 20, "order": 1, "threshold": 9.0}, rfc.SpeCa(num_steps=20, order=1)),
        ("teacache", {"threshold": 0.2, "num_steps": 28}, rfc.TeaCache(threshold=0.2, num_steps=28)),
        ("first-block", {"threshold": 0.2, "num_steps": 28}, rfc.FirstBlockCache(threshold=0.2)),
        ("dicache", {"num_steps": 30}, rfc.preset("dicache", "flux.1-dev")),
        ("toca", {"num_steps": 20}, rfc.ToCa(num_steps=20)),
        ("duca", {"interval": 5}, rfc.DuCa(interval=5)),
        ("disca", {"interval": 2}, rfc.DisCa(predictor=DIGITS_PREDICTOR, interval=2, warmup=2)),
        ("magcache", {"preset": "flux.1-dev", "num_steps": 50}, rfc.preset("magcache", "flux.1-dev", num_steps=50)),
        ("rfc", {"preset": "dit-xl-2", "is_digits": True}, rfc.preset("rfc", "dit-xl-2")),
        ("rfc", {"is_digits": True}, rfc.RFC(tau=DIGITS_TAU)),
        ("rfc", {"is_digits": True, "tau": 0.4}, rfc.RFC(tau=0.4)),
    ],
)
def test_a_method_takes_the_passed_settings_that_it_has(name: str, asked: dict[str, Any], method: rfc.Method) -> None:
    assert new_method(name, MethodArguments(**asked)) == method


@pytest.mark.parametrize("name", MAKEABLE)
def test_every_method_is_made_with_no_setting_and_with_all_of_its_settings(name: str) -> None:
    said = {"tau": 0.3, "threshold": 0.3, "order": 1, "interval": 2, "nfc": 5, "num_steps": 30}
    plain, told = new_method(name, MethodArguments()), new_method(name, MethodArguments(**said))  # type: ignore[arg-type]
    assert plain.schedule.can_skip(50)
    assert (plain == told) is (not METHODS[name].settings)


def test_the_noise_levels_of_a_model_that_draws_are_needed() -> None:
    with pytest.raises(OptionError, match=r"^--method log-snr: it places full steps by a sampler's noise levels, and nothing"):
        new_method("log-snr", MethodArguments())
    with pytest.raises(OptionError, match=r"^--method log-snr: noise levels: DDIMScheduler.set_timesteps.* failed: .* \(chebyshev needs"):
        new_method("log-snr", MethodArguments(model="digits", num_steps=2000))
    assert best_known(MethodArguments(model="digits")) == ("log-snr", None)
    assert best_known(MethodArguments(model="digits", num_steps=2000))[0] == "chebyshev"


def test_methods_are_made_once_each_in_the_order_in_which_they_were_named() -> None:
    assert list(new_methods(["speca", "fora", "speca"], MethodArguments())) == ["speca", "fora"]


@pytest.mark.parametrize("setting", ["tau", "threshold", "order", "interval", "nfc"])
def test_a_setting_that_no_method_has_is_refused_with_those_that_have_it(setting: str) -> None:
    having = taking(setting)
    stranger = next(name for name in MAKEABLE if name not in having)
    with pytest.raises(OptionError, match=rf"^--{setting}: not a setting of {stranger}; {', '.join(having)} have it$"):
        new_methods([stranger], MethodArguments(**{setting: 1}))  # type: ignore[arg-type]
    assert len(new_methods([stranger, having[0]], MethodArguments(**{setting: 1}))) == 2  # type: ignore[arg-type]


def test_the_options_of_a_command_become_one_configuration() -> None:
    assert new_config() == rfc_fx.Config()
    assert new_config(
        granularity=parse_granularity_option("blocks[-3:]"),
        state_dtype="int8",
        state_budget=parse_budget("2 KiB"),
        decision="per_sample",
        hoist=True,
    ) == rfc_fx.Config(granularity="blocks[-3:]", state_dtype=torch.int8, state_budget=2048, decision="per_sample", hoist=True)
    with pytest.raises(
        OptionError, match=r"^--granularity must be one of module, block, stack, output, prediction, blocks\[a:b\], got auto$"
    ):
        parse_granularity_option("auto")


def test_a_method_of_more_than_two_phases_is_refused_for_one_conditional_step() -> None:
    methods = new_methods(["rfc", "teacache", "duca"], MethodArguments())
    check_dispatch(methods, "host")
    check_dispatch({name: methods[name] for name in ("rfc", "teacache")}, "cond")
    with pytest.raises(OptionError, match=r"^--dispatch cond: duca has the phases FULL, PARTIAL_1, .*, REUSE, a torch\.cond has two"):
        check_dispatch(methods, "cond")


def test_state_can_be_kept_in_every_type_that_there_is_for_it() -> None:
    assert {dtype_named(name) for name in get_args(StateDTypeName)} == set(STORED)
