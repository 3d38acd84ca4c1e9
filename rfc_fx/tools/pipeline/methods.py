"""Methods of a pipeline by their names; the default is left to `accelerate`, which knows the scheduler's own levels."""

from __future__ import annotations

from rfc.method import Method
from rfc.placement.base import PlacedByCount
from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.named_methods import MethodArguments, check_settings, new_method, taking

DEFAULT = "log-snr"


def takes_speedup(method: Method | None) -> bool:
    """Whether a speed-up can say how many steps of a method are full; None is the default."""
    return method is None or isinstance(method.schedule, PlacedByCount)


def pipeline_methods(names: list[str], arguments: MethodArguments) -> dict[str, Method | None]:
    """The methods by name, each once; None for the default. OptionError also for a setting that none of them has."""
    names = list(dict.fromkeys(names))
    is_default = arguments.order is None and arguments.preset is None
    methods = {name: None if name == DEFAULT and is_default else new_method(name, arguments) for name in names}
    check_settings(names, arguments)
    if arguments.speedup is not None and not any(takes_speedup(method) for method in methods.values()):
        raise OptionError(f"--speedup: {', '.join(names)} places no number of full steps; {', '.join(taking('nfc'))} do")
    most = arguments.num_steps
    if None in methods.values() and isinstance(arguments.nfc, int) and most is not None and arguments.nfc > most:
        raise OptionError(f"--nfc must be from 1 to {most}, the steps of a generation, got {arguments.nfc}")
    return methods
