"""Metrics: counts of a server in Prometheus' text form."""

from __future__ import annotations

from collections import Counter


class Metrics:
    """What a server has done since it started, and what it holds now."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        """By HTTP status."""
        self.pictures = self.full_steps = self.steps = self.retries = 0
        self.seconds = 0.0
        self.full_ms: float | None = None
        """Of the latest generation that says."""
        self.estimate_ms: float | None = None
        self.state_bytes = self.waiting = 0

    def note(self, picture: object) -> None:
        """A picture has been drawn (`rfc_fx.tools.requests.worker.Picture`)."""
        nfc, steps, seconds, times, held = (getattr(picture, name) for name in ("nfc", "steps", "seconds", "step_ms", "state_bytes"))
        self.pictures, self.full_steps, self.steps = self.pictures + 1, self.full_steps + nfc, self.steps + steps
        self.seconds += seconds
        self.state_bytes = held
        if times is not None:
            self.full_ms, self.estimate_ms = times

    def text(self) -> str:
        """All of them, one family after the other."""
        lines: list[str] = []
        families: list[tuple[str, str, str, list[tuple[str, float | None]]]] = [
            (
                "requests_total",
                "counter",
                "requests by HTTP status",
                [(f'{{status="{status}"}}', count) for status, count in sorted(self.answers.items())],
            ),
            ("pictures_total", "counter", "pictures drawn", [("", self.pictures)]),
            ("full_steps_total", "counter", "steps that were computed in full (NFC)", [("", self.full_steps)]),
            ("steps_total", "counter", "steps", [("", self.steps)]),
            ("generation_seconds_total", "counter", "time of generations, of every picture", [("", self.seconds)]),
            ("retries_total", "counter", "pictures drawn again after a replica died", [("", self.retries)]),
            ("full_step_ms", "gauge", "median of a full step in the latest generation", [("", self.full_ms)]),
            ("estimated_step_ms", "gauge", "median of an estimated step in the latest generation", [("", self.estimate_ms)]),
            ("queue", "gauge", "pictures that are waited for", [("", self.waiting)]),
            ("state_bytes", "gauge", "bytes of state that a replica holds", [("", self.state_bytes)]),
        ]
        for name, kind, meaning, values in families:
            lines += [f"# HELP rfc_fx_{name} {meaning}", f"# TYPE rfc_fx_{name} {kind}"]
            lines += [f"rfc_fx_{name}{labels} {value:g}" for labels, value in values if value is not None]
        return "\n".join(lines) + "\n"
