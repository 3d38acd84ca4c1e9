"""Ray on this machine: a node of its own, for as long as a command needs it."""

from __future__ import annotations

import os
from typing import Any

from rfc_fx.tools.load import LoadError, one_line

LOGS = "/tmp/ray/session_latest/logs"


def start_ray(workers: int, others: int = 1) -> Any:
    """Start Ray with a core for each worker and for so many others, whatever this machine has; returns the module.

    LoadError where it does not start.
    """
    import ray

    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the node's address is the loopback
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nothing listens beyond this machine
    os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")  # a loaded machine takes its time
    try:
        ray.init("local", num_cpus=workers + others, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises plain exceptions where its node does not come up
        raise LoadError(f"Ray did not start: {one_line(error, width=200)}; see {LOGS}") from error
    return ray
