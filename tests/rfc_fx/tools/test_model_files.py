"""Folders of models: pickles, pipes and configurations that the weights do not bear out are refused before memory is taken."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rfc_fx.errors import RFCError
from rfc_fx.tools.load import locate, model_kind, pickles_allowed
from rfc_fx.tools.model_files import ModelFilesError, check_files, check_sizes
from rfc_fx.tools.sources import load_source
from rfc_fx.zoo import DIGITS, EMOJI


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DIGITS, tmp_path / "model"))


def load(folder: Path) -> Any:
    return load_source(str(folder), classes=[1], prompts=[], seeds=[0], cfg=None, dtype=None, device=torch.device("cpu"))


def changed(folder: Path, file: str, name: str, value: Any) -> None:
    record = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**record, name: value}))


def test_the_shipped_models_pass() -> None:
    check_files(DIGITS, allow_pickle=False)
    check_sizes(DIGITS)
    check_files(EMOJI, allow_pickle=False)
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        check_sizes(EMOJI / part)


@pytest.mark.parametrize("value", [10**6, 10**12, 10**400, -1, 1.5, "x", [1], None], ids=str)
@pytest.mark.parametrize("name", ["num_layers", "num_attention_heads", "attention_head_dim", "sample_size", "in_channels"])
def test_a_configuration_that_the_weights_do_not_bear_out_is_refused(folder: Path, name: str, value: Any) -> None:
    changed(folder, "config.json", name, value)
    with pytest.raises(RFCError, match=r"config\.json|cannot be loaded"):
        load(folder)


@pytest.mark.parametrize("value", [-1, 10**9, "x", [1], float("nan")], ids=str)
@pytest.mark.parametrize("name", ["num_train_timesteps", "beta_end", "beta_schedule", "prediction_type", "timestep_spacing"])
def test_settings_that_no_sampler_works_with_are_refused_before_anything_is_drawn(folder: Path, name: str, value: Any) -> None:
    changed(folder, "scheduler_config.json", name, value)
    with pytest.raises(RFCError, match=r"cannot be loaded|not finite|scheduler_config\.json"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"])
def test_a_named_pipe_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ModelFilesError, match=f"{name}: is a pipe or a device"):
        load(folder)


def test_pickles_are_read_only_where_they_are_allowed(folder: Path) -> None:
    from safetensors.torch import load_file

    weights = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), folder / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelFilesError, match=r"the weights are a pickle, which can hold code; .*--allow-pickle"):
        load(folder)
    with pickles_allowed(True):
        load(folder)
    assert model_kind(locate(str(DIGITS))) == "digits"


def test_configurations_that_are_none_are_refused_by_name(folder: Path) -> None:
    for text, said in (
        ("[" * 100_000, "nested deeper"),
        ("[]", "expected an object"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("", "no JSON"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelFilesError, match=rf"config\.json: .*{said}"):
            load(folder)
