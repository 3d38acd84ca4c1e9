"""The shapes: their drawing, the classifier that reads them, and the training loop."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from benchmarks.quality import classifier
from benchmarks.quality import workloads as quality_workloads
from benchmarks.training import loop
from benchmarks.training import shapes as train_shapes
from benchmarks.training import shapes_data as shapes
from benchmarks.training.loop import Recipe, Task, train
from rfc_fx.zoo import NULL_CLASS, digits_noise

LABELS = torch.arange(10)
MEGABYTE = 1_000_000


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_seed_draws_the_same_pictures_again_and_another_seed_others() -> None:
    first = shapes.draw(LABELS, seeded(1))
    assert first.shape == (10, 3, 32, 32)
    assert torch.equal(first, shapes.draw(LABELS, seeded(1)))
    assert not torch.equal(first, shapes.draw(LABELS, seeded(2)))


def test_a_picture_does_not_depend_on_the_labels_beside_it() -> None:
    others = LABELS.clone()
    others[1:] = 7
    assert torch.equal(shapes.draw(LABELS, seeded(0))[0], shapes.draw(others, seeded(0))[0])


def test_pixels_lie_in_the_range_and_use_it() -> None:
    pixels = shapes.draw(LABELS.repeat(50), seeded(0))
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    assert pixels.std() > 0.3


def test_every_two_classes_differ_in_the_same_scene() -> None:
    scene = shapes.scenes(1, seeded(0))
    pictures = torch.cat([shapes.render(label[None], scene) for label in LABELS]).flatten(1)
    apart = torch.cdist(pictures, pictures, p=1) / pictures.shape[1] + torch.eye(10)
    assert apart.min() > 0.02  # of a range of 2, averaged over the picture; a shape covers about a third of it


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_a_distance_is_negative_inside_positive_beyond_the_radius_and_nowhere_steeper_than_one(name: str) -> None:
    function = shapes.DISTANCES[name]
    axis = torch.linspace(-2, 2, 201, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    distance = function(x[None], y[None])[0]
    assert distance.min() < -0.15
    assert distance[torch.hypot(x, y) > 1.1].min() > 0
    step = float(axis[1] - axis[0])
    for along in (0, 1):
        assert distance.diff(dim=along).abs().max() <= step * (1 + 1e-6)


def test_shapes_lie_wholly_inside_the_picture() -> None:
    scene = shapes.scenes(500, seeded(0))
    nearest = torch.minimum(scene.centre, shapes.SIZE - scene.centre).min(dim=1).values
    assert (nearest >= scene.radius).all()


def test_the_classifier_reads_newly_drawn_shapes() -> None:
    labels = LABELS.repeat(40)
    assert classifier.accuracy(classifier.load("shapes"), shapes.draw(labels, seeded(5)), labels) >= 0.97


@pytest.mark.parametrize(("name", "noise"), [("digits", digits_noise), ("shapes", shapes.noise)])
def test_a_classifier_gives_features_a_spatial_map_and_logits(name: classifier.Name, noise: Any) -> None:
    judge, pixels = classifier.load(name), noise([0, 1, 2])
    features = judge.features(pixels)
    assert features.shape == (3, 64)
    assert judge.spatial(pixels).shape == (3, 64)
    assert torch.equal(judge.read(features), judge.logits(pixels))
    assert torch.equal(judge.logits(pixels), judge.logits(pixels.clamp(-1, 1)))


@pytest.mark.slow
def test_the_shapes_classifier_can_be_trained(tmp_path: Path) -> None:
    model, figures = classifier.train("shapes", 20, Console(quiet=True))
    again, _ = classifier.train("shapes", 20, Console(quiet=True))
    assert figures["steps"] == 20
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_shipped_classifiers_are_small() -> None:
    assert sum(path.stat().st_size for path in classifier.FOLDER.glob("*.safetensors")) < 0.4 * MEGABYTE


def test_noise_of_one_seed_does_not_depend_on_the_others() -> None:
    assert shapes.noise([3]).shape == (1, 3, shapes.SIZE, shapes.SIZE)
    assert torch.equal(shapes.noise([3, 4])[1], shapes.noise([4])[0])


def test_the_laboratory_says_how_to_train_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "MODEL", tmp_path / "none")
    with pytest.raises(typer.BadParameter, match=r"train one with python -m benchmarks\.train_shapes"):
        quality_workloads.WORKLOADS["shapes"].load()


def test_the_shipped_model_is_the_one_of_the_laboratory_and_small() -> None:
    model, scheduler = quality_workloads.WORKLOADS["shapes"].load()
    assert (model.config.sample_size, model.config.in_channels, model.config.num_embeds_ada_norm) == (shapes.SIZE, 3, 10)
    assert scheduler.config.prediction_type == "v_prediction"
    root = Path(shapes.__file__).parents[2]
    shipped = [path for folder in ("rfc_fx", "benchmarks") for path in (root / folder).rglob("*.safetensors")]
    assert len(shipped) >= 3
    assert sum(path.stat().st_size for path in shipped) < 46_000_000  # a checkout stays below 60 MB


class Tiny(nn.Module):
    """Enough of a noise predictor to train in milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)
        self.classes = nn.Embedding(NULL_CLASS + 1, 3)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (self.mix(x) + self.classes(y)[:, :, None, None] * (t / 1000).view(-1, 1, 1, 1),)


RECIPE = Recipe(
    batch=4,
    learning_rate=1e-2,
    betas=(0.9, 0.99),
    weight_decay=0.01,
    warmup_steps=2,
    ema_decay=0.9,
    label_dropout=0.1,
    report_every=3,
    checkpoint_every=2,
)


class StoppedError(Exception):
    """Stands for the end of a process."""


def trained(work: Path, stop_at: int | None = None, steps: int = 6, minutes: float | None = None) -> dict[str, Tensor]:
    def checkpoint(_: Any, step: int) -> None:
        if step == stop_at:
            raise StoppedError

    task = Task(
        new_model=Tiny,
        scheduler=train_shapes.new_scheduler(),
        batch=lambda size: train_shapes.drawn(size, torch.default_generator),
        report=lambda *_: {},
        checkpoint=checkpoint,
    )
    model = train(task, RECIPE, work, steps=steps, seed=0, console=Console(quiet=True), minutes=minutes)
    weights: dict[str, Tensor] = model.state_dict()
    return weights


def test_a_training_that_was_stopped_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    with pytest.raises(StoppedError):
        trained(tmp_path / "stopped", stop_at=4)
    resumed = trained(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_training_refuses_the_checkpoint_of_another_run(tmp_path: Path) -> None:
    trained(tmp_path, steps=4)
    with pytest.raises(
        Exception, match=r"was made with --steps 4 --seed 0, called with --steps 2 --seed 0; pass the same, more steps, or another --work"
    ):
        trained(tmp_path, steps=2)
    trained(tmp_path, steps=6)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 6


def test_minutes_end_a_training_and_its_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.time, "monotonic", itertools.count(step=0.01).__next__)
    trained(tmp_path, steps=1_000_000, minutes=0.02)
    done = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert 0 < done["step"] < 1_000_000
    assert done["optimizer"]["param_groups"][0]["lr"] < 0.1 * RECIPE.learning_rate
