"""DisCa as an engine: the predictor's weights are in the artefact, which needs its folder no more."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, moved, sample
from predictors import random_predictor

import rfc
import rfc_export
import rfc_fx
from rfc_export.parity import TOLERANCE

STEPS, FULL = 6, (0, 1, 4)


def check(backend: Any, dispatch: Any, folder: Path) -> None:
    """Export, lose the predictor's folder, and run two generations beside the model."""
    model, kwargs = FAMILIES["dit"](layers=2)
    predictor = random_predictor(model, folder / "predictor", channels=16, blocks=1)
    method = rfc.DisCa(predictor=predictor, full_steps=FULL)
    cached = rfc_fx.transform(model, method, example_inputs=kwargs)
    path = rfc_export.export(
        model, folder / "engine", backend=backend, example_inputs=kwargs, method=method, config=rfc_fx.Config(dispatch=dispatch)
    )
    shutil.rmtree(predictor)
    engine = rfc_export.load(path)
    with torch.no_grad():
        for _ in range(2):
            for step in range(STEPS):
                got, wanted = (sample(one(**moved(kwargs, step, STEPS))) for one in (engine, cached))
                assert (got - wanted).norm() <= TOLERANCE["float32"] * wanted.norm()
            assert engine.stats.phases == cached.stats.phases
    assert isinstance(engine.method.estimator, rfc.Predicted)
    with pytest.raises(rfc.PredictorError, match="no predictor in"):
        engine.method.estimator.load(model)


@pytest.mark.onnx
@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["host", "cond"])
def test_an_onnx_engine_of_disca_draws_what_the_model_draws(dispatch: Any, tmp_path: Path) -> None:
    check("onnx", dispatch, tmp_path)


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["host", "cond"])
def test_an_aoti_engine_of_disca_draws_what_the_model_draws(dispatch: Any, tmp_path: Path) -> None:
    check("aoti", dispatch, tmp_path)
