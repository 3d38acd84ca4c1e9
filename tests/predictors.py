"""Predictors with random weights, in a folder as DisCa takes them."""

from pathlib import Path

import torch
from torch import nn

import rfc_fx
from rfc.granularity import block_modules
from rfc.predictor import Predictor


def random_predictor(model: nn.Module, folder: Path, channels: int, blocks: int = 2, seed: int = 0) -> Path:
    """Write a predictor of the model's blocks."""
    torch.manual_seed(seed)
    predictor = Predictor(block_modules(model)[0][1], channels, blocks)
    for parameter in predictor.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    return rfc_fx.write_predictor(folder, model, predictor)
