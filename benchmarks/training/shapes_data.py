"""An endless class-conditional data set that a script draws: ten shapes, 32x32 RGB, and a grid of them to look at.

`python -m benchmarks.shapes --out out/shapes.png`. A shape is a signed distance function (the formulas of Inigo Quilez,
iquilezles.org/articles/distfunctions2d); edges are smoothed over one pixel, a soft shadow lies on a gradient of two colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.training.loop import save_grid
from rfc_fx.zoo import starting_noise

MODEL = Path(__file__).parents[1] / "shapes_model"
"""Folder of the trained model: config.json, safetensors, scheduler_config.json, and its card."""


GUIDANCE = 3.0
"""Scale of classifier-free guidance that its samples are drawn with."""


SIZE = 32
"""Pixels on a side."""


RADIUS = (8.0, 13.0)
"""The circle around a shape, pixels."""


TILT = 0.5
"""The greatest rotation to either side, radians."""


Plane = Float[Tensor, "N H W"]


def half_planes(x: Plane, y: Plane, sides: int, inner: float) -> Plane:
    """Distance to a regular polygon with one side below; `inner` is the radius of the circle inside it."""
    angles = [2 * math.pi * side / sides for side in range(sides)]
    return torch.stack([x * math.sin(angle) - y * math.cos(angle) for angle in angles]).amax(0) - inner


def box(x: Plane, y: Plane, width: float, height: float) -> Plane:
    """Distance to a rectangle of these half sides."""
    return torch.maximum(x.abs() - width, y.abs() - height)


def circle(x: Plane, y: Plane) -> Plane:
    return torch.hypot(x, y) - 0.88


def square(x: Plane, y: Plane) -> Plane:
    return box(x, y, 0.72, 0.72)


def triangle(x: Plane, y: Plane) -> Plane:
    return half_planes(x, y + 0.15, 3, 0.52)


def star(x: Plane, y: Plane) -> Plane:
    """Five points: the plane folded into one tenth of a turn, in which the edge is a straight line."""
    r, fold = torch.hypot(x, y), 2 * math.pi / 5
    angle = (torch.remainder(torch.atan2(x, y) + fold / 2, fold) - fold / 2).abs()
    outer, inner = 1.0, 0.45
    across, along = outer - inner * math.cos(fold / 2), inner * math.sin(fold / 2)
    return ((r * angle.cos() - outer) * along + r * angle.sin() * across) / math.hypot(across, along)


def cross(x: Plane, y: Plane) -> Plane:
    return torch.minimum(box(x, y, 0.92, 0.3), box(x, y, 0.3, 0.92))


def ring(x: Plane, y: Plane) -> Plane:
    return (torch.hypot(x, y) - 0.68).abs() - 0.22


def heart(x: Plane, y: Plane) -> Plane:
    size = 0.62
    x, y = x.abs() * size, y * size + 0.55
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    nearest = (x + y).clamp(min=0) / 2
    side = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - nearest, y - nearest)) * (x - y).sign()
    return torch.where(x + y > 1, lobe, side) / size


def crescent(x: Plane, y: Plane) -> Plane:
    return torch.maximum(torch.hypot(x + 0.05, y) - 0.92, 0.74 - torch.hypot(x - 0.4, y))


def diamond(x: Plane, y: Plane) -> Plane:
    return ((x.abs() / 0.6 + y.abs() / 1.0) - 1) * (0.6 / math.hypot(0.6, 1.0))


def hexagon(x: Plane, y: Plane) -> Plane:
    return half_planes(x, y, 6, 0.8)


DISTANCES: dict[str, Callable[[Plane, Plane], Plane]] = {
    function.__name__: function for function in (circle, square, triangle, star, cross, ring, heart, crescent, diamond, hexagon)
}
"""Signed distances (negative inside) by name, in the order of the labels; x to the right, y up, the unit is the shape's radius."""


CLASSES: tuple[str, ...] = tuple(DISTANCES)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is drawn, apart from the class: colours in [0, 1], places in pixels, angles in radians."""

    foreground: Float[Tensor, "N 3"]
    background: Float[Tensor, "N 2 3"]
    gradient: Float[Tensor, " N"]
    radius: Float[Tensor, " N"]
    centre: Float[Tensor, "N 2"]
    tilt: Float[Tensor, " N"]


def rgb(hue: Float[Tensor, " N"], saturation: Float[Tensor, " N"], value: Float[Tensor, " N"]) -> Float[Tensor, "N 3"]:
    """Hue (turns), saturation and value as red, green and blue in [0, 1]."""
    k = (torch.tensor([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def scenes(n: int, generator: torch.Generator) -> Scene:
    """Random scenes: a saturated shape on a paler background of roughly the opposite hue, wholly inside the picture."""
    u = torch.rand(n, 14, generator=generator).unbind(1)
    hue = u[0]
    foreground = rgb(hue + 0.5 + 0.5 * (u[1] - 0.5), 0.75 + 0.25 * u[2], 0.7 + 0.3 * u[3])
    near = rgb(hue, 0.12 + 0.38 * u[4], 0.55 + 0.45 * u[5])
    far = rgb(hue + 0.3 * (u[6] - 0.5), 0.12 + 0.38 * u[7], 0.55 + 0.45 * u[8])
    radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * u[9]
    room = SIZE / 2 - 1 - radius
    centre = SIZE / 2 + room[:, None] * (2 * torch.stack([u[10], u[11]], dim=1) - 1)
    return Scene(
        foreground=foreground,
        background=torch.stack([near, far], dim=1),
        gradient=2 * math.pi * u[12],
        radius=radius,
        centre=centre,
        tilt=TILT * (2 * u[13] - 1),
    )


def distance(labels: Int[Tensor, " N"], x: Plane, y: Plane) -> Plane:
    """The distance function of every row's class."""
    out = torch.empty_like(x)
    for label, function in enumerate(DISTANCES.values()):
        rows = (labels == label).nonzero()[:, 0]
        if len(rows):
            out[rows] = function(x[rows], y[rows])
    return out


def smooth(x: Tensor) -> Tensor:
    """Smooth step from 0 at 0 to 1 at 1."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def render(labels: Int[Tensor, " N"], scene: Scene) -> Float[Tensor, "N 3 32 32"]:
    """The picture of each scene, in [-1, 1]: background, shadow, shape lit from the upper left."""
    middle = torch.arange(SIZE) + 0.5
    right, down = middle.view(1, 1, -1), middle.view(1, -1, 1)
    radius, tilt, gradient = (value.view(-1, 1, 1) for value in (scene.radius, scene.tilt, scene.gradient))
    x = (right - scene.centre[:, 0].view(-1, 1, 1)) / radius
    y = (scene.centre[:, 1].view(-1, 1, 1) - down) / radius
    cos, sin = tilt.cos(), tilt.sin()
    shadow_x, shadow_y = x - 0.14, y + 0.2
    both_x = torch.cat([x * cos + y * sin, shadow_x * cos + shadow_y * sin])
    both_y = torch.cat([y * cos - x * sin, shadow_y * cos - shadow_x * sin])
    pixels = distance(labels.repeat(2), both_x, both_y) * radius.repeat(2, 1, 1)
    inside, shadow = pixels.chunk(2)

    ramp = ((right / SIZE - 0.5) * gradient.cos() + (down / SIZE - 0.5) * gradient.sin() + 0.5).clamp(0, 1)[:, None]
    near, far = scene.background[:, :, :, None, None].unbind(1)
    back = (near + (far - near) * ramp) * (1 - 0.45 * smooth(0.5 - shadow / 4))[:, None]

    light = 0.95 + 0.2 * (y - x).clamp(-1, 1) - 0.25 * smooth(1 + inside / 2)  # darker away from the light and along the edge
    gloss = 0.4 * torch.exp(-4 * ((x + 0.35) ** 2 + (y - 0.4) ** 2))[:, None]
    front = (scene.foreground[:, :, None, None] * light[:, None]).clamp(0, 1)
    front = front + (1 - front) * gloss
    cover = (0.5 - inside).clamp(0, 1)[:, None]
    return 2 * (back + (front - back) * cover).clamp(0, 1) - 1


def draw(labels: Int[Tensor, " N"], generator: torch.Generator) -> Float[Tensor, "N 3 32 32"]:
    """A random picture of every label's shape, in [-1, 1]; the scene of a row does not depend on the labels."""
    return render(labels, scenes(len(labels), generator))


def noise(seeds: list[int], dtype: torch.dtype = torch.float32) -> Float[Tensor, "N 3 32 32"]:
    """Starting noise of a model of shapes, one generator per seed."""
    return starting_noise((3, SIZE, SIZE), seeds, dtype)


def main(out: Annotated[Path, typer.Option(help="picture to write")] = Path("out/shapes.png"), seed: int = 0) -> None:
    """Draw ten pictures of every class, a class to a row."""
    out.parent.mkdir(parents=True, exist_ok=True)
    labels = torch.arange(len(CLASSES)).repeat_interleave(10)
    save_grid(draw(labels, torch.Generator().manual_seed(seed)), out, columns=10, zoom=3)


__all__: Sequence[str] = ("CLASSES", "Scene", "draw", "render", "scenes")
