"""Alpha-beta model: what a generation takes on more devices, from the bytes that Ulysses and ring attention send; not measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A node of eight GPUs, and the network between nodes."""

    alpha: float = 15e-6
    """Seconds until a collective begins to send."""
    inside: float = 300e9
    """Bytes per second that a GPU sends within its node."""
    between: float = 50e9
    """Bytes per second that a GPU sends to other nodes."""
    memory: float = 4e12
    """Bytes per second that a GPU reads."""
    launch: float = 0.2e-3
    """Seconds of host and launches in an estimated step."""
    node: int = 8
    """GPUs of a node."""


@dataclass(frozen=True)
class Workload:
    """A transformer at one size, in bfloat16."""

    name: str
    tokens: int
    channels: int
    attentions: int
    full: float
    """Seconds of a full step on one GPU."""
    state: float
    """Bytes of state on one GPU."""
    output: float
    """Bytes of the output."""


FLUX = Workload("FLUX.1, 1024 x 1024", 4_608, 3_072, 57, 0.112, 6.5e9, 0.52e6)
WAN = Workload("Wan 2.1 14B, 720p, 81 frames", 75_600, 5_120, 40, 17.0, 186e9, 9.7e6)
STEPS, NFC = 50, 14


@dataclass(frozen=True)
class Estimate:
    """What the model says of one number of GPUs."""

    gpus: int
    sent_full: float
    """Bytes that a GPU sends in a full step."""
    sent_estimate: float
    full: float
    """Seconds of a full step."""
    estimate: float
    uncached: float
    """Seconds of a generation in which every step is full."""
    cached: float


def on(gpus: int, work: Workload, machine: Machine = Machine()) -> Estimate:
    """A generation on so many GPUs: Ulysses within a node, ring attention between nodes (all ranks of a node hold a ring each).

    FULL = full / P + collectives alpha + sent / bandwidth, where an attention sends 4 S d 2 B (u - 1) / (P u) within its node of u GPUs and
    2 S d 2 B (r - 1) / P to r - 1 others; ESTIMATE = launch + state / (P memory) + an all-reduce of a few numbers and the output's gather.
    """
    ulysses, ring = min(gpus, machine.node), max(1, gpus // machine.node)
    activations = 2.0 * work.tokens * work.channels
    heads = work.attentions * 4 * activations * (ulysses - 1) / (gpus * ulysses)
    passed = work.attentions * 2 * activations * (ring - 1) / gpus
    collectives = work.attentions * (4 * (ulysses > 1) + (ring > 1)) + (gpus > 1)
    gathered = work.output * (gpus - 1) / gpus
    rate = machine.inside if ring == 1 else machine.between
    full = work.full / gpus + collectives * machine.alpha + heads / machine.inside + passed / machine.between + gathered / rate
    estimate = machine.launch + work.state / gpus / machine.memory + 2 * (gpus > 1) * machine.alpha + gathered / rate
    return Estimate(gpus, heads + passed + gathered, gathered, full, estimate, STEPS * full, NFC * full + (STEPS - NFC) * estimate)
