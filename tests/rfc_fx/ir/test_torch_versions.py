"""What differs between versions of torch: settings that one of them lacks are left out, and one that compiles wrongly is named."""

from contextlib import nullcontext

import pytest
import torch
from families import moved, shared_model

import rfc
import rfc_fx
from rfc_export import aoti
from rfc_fx.ir import torch_versions
from rfc_fx.ir.torch_versions import WITHOUT_TILING_ANALYSIS, isolated_recompiles, known_options


def test_settings_that_inductor_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_options(aoti.OPTIONS) == aoti.OPTIONS
    lacking = "aot_inductor.enable_line_tables"
    assert lacking in aoti.OPTIONS
    monkeypatch.setattr(torch._inductor, "list_options", lambda: [name for name in aoti.OPTIONS if name != lacking])
    assert known_options(aoti.OPTIONS) == {name: value for name, value in aoti.OPTIONS.items() if name != lacking}


def test_recompilations_are_kept_apart_where_torch_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, *, isolate_recompiles=False: model)
    assert isolated_recompiles() == {"isolate_recompiles": True}
    monkeypatch.setattr(torch, "compile", lambda model: model)
    assert isolated_recompiles() == {}


@pytest.mark.parametrize(("version", "warns"), [((2, 11), True), ((2, 13), False), ((2, 14), False)])
def test_a_torch_whose_inductor_compiles_full_steps_wrongly_is_named(
    version: tuple[int, int], warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_versions, "TORCH", version)
    with pytest.warns(UserWarning, match=r"needs torch 2\.13 or later") if warns else nullcontext():
        torch_versions.warn_of_wrong_code()


@pytest.mark.parametrize(("version", "is_known"), [((2, 13), True), ((2, 14), False)])
@pytest.mark.usefixtures("captured_once")
def test_an_error_that_is_torchs_own_says_what_to_do(version: tuple[int, int], is_known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def solve_for_tiling(*_: object) -> None:
        raise AssertionError

    assert known_options(WITHOUT_TILING_ANALYSIS) == WITHOUT_TILING_ANALYSIS
    monkeypatch.setattr(torch_versions, "TORCH", version)
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, rfc.FORA(interval=2), example_inputs=moved(kwargs, 0))
    cached.compile(backend=lambda module, inputs: solve_for_tiling)
    with pytest.raises(AssertionError) as raised:
        cached(**moved(kwargs, 0))
    notes = [note for note in raised.value.__notes__ if "coalesce_tiling_analysis = False" in note]
    assert len(notes) == is_known
    assert all("pytorch#191603" in note and "torch 2.14" in note for note in notes)
