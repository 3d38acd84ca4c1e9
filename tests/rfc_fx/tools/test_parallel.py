"""`rfc-fx generate --parallel`: ranks that torchrun has started draw together."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import one_line_error, run
from PIL import Image

from rfc_export.cli import app
from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.parallel import Degrees, parse_parallel, split_sequence

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "degrees"), [("ulysses=2", Degrees(2, 1)), ("ring=4", Degrees(1, 4)), ("ulysses=2, ring=3", Degrees(2, 3))]
)
def test_degrees(text: str, degrees: Degrees) -> None:
    assert parse_parallel(text) == degrees


@pytest.mark.parametrize(
    "text", ["", "2", "ulysses", "ulysses=0", "ulysses=-2", "ulysses=two", "tensor=2", "ulysses=2,ulysses=2", "ulysses=1"]
)
def test_what_is_no_degree_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--parallel .*(must be such as ulysses=2|one rank is no group)"):
        parse_parallel(text)


def test_outside_of_torchrun_it_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    arguments = ("generate", "--model", "emoji", "--prompt", "an apple", "--parallel", "ulysses=2")
    assert "start them with torchrun: torchrun --nproc-per-node 2 -m rfc_export.main generate" in one_line_error(app, *arguments)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "needs 2 ranks, torchrun has started 3" in one_line_error(app, *arguments)


def test_models_without_a_plan_are_refused(few_blocks: None) -> None:
    from rfc_fx.zoo import load_digits

    assert "--parallel is for pipelines" in one_line_error(app, "generate", "--model", "digits", "--parallel", "ulysses=2")
    with pytest.raises(OptionError, match="DiTTransformer2DModel has no context-parallel plan in diffusers"):
        split_sequence(load_digits()[0], Degrees(2, 1))


@pytest.mark.slow
def test_two_ranks_draw_the_picture_of_one_process(tmp_path: Path) -> None:
    arguments = ["generate", "--model", "emoji", "--prompt", "an apple, flat style, on light blue", "--steps", "8", "--no-compile"]
    arguments += ["--negative-prompt", "", "--call", "true_cfg_scale=3", "--method", "newton", "--tau", "0.3"]
    run(app, *arguments, "--out", tmp_path / "one")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rfc_export.main"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "export")))}
    ended = subprocess.run(
        [*torchrun, *arguments, "--parallel", "ulysses=2", "--out", str(tmp_path / "two")], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    records: list[Any] = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert records[0]["methods"]["newton"]["nfc"] == records[1]["methods"]["newton"]["nfc"]
    names = sorted(path.name for path in (tmp_path / "one").glob("*.png") if path.stem not in ("images", "schedule"))
    assert names
    for name in names:
        one, two = (np.asarray(Image.open(tmp_path / folder / name), dtype=np.int16) for folder in ("one", "two"))
        assert np.abs(one - two).max() <= 2  # of 255
