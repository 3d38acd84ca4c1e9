"""`rfc-fx doctor`: whether torch.compile works on this machine."""

from __future__ import annotations

from rfc_fx.tools import options
from rfc_fx.tools.doctor import examine
from rfc_fx.tools.terminal import terminal


def doctor(device: options.Device = options.CPU) -> None:
    """Check that torch.compile works here, and print the versions of what matters."""
    terminal(soft_wrap=True).print(examine(device))
