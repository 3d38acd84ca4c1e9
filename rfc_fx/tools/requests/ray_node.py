"""Ray on this machine: a node of its own, for as long as a command needs it, which nobody else reaches."""

from __future__ import annotations

import os
import secrets
import sys
from typing import Any

from rfc_fx.tools.load import LoadError, one_line

LOGS = "/tmp/ray/session_latest/logs"


def imported_ray() -> Any:
    """The module, which reads its environment when it is imported; ImportError where it is missing."""
    if "ray" not in sys.modules:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the loopback is the node's address, and its processes listen nowhere else
        os.environ["RAY_AUTH_MODE"] = "token"  # nor does another user of this machine give it work
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")  # a loaded machine takes its time
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "ServeController.*failed")  # Serve ends its controller itself
    import ray

    return ray


def start_ray(workers: int, others: int = 1) -> Any:
    """Start Ray with a core for each worker and for so many others, whatever this machine has; returns the module.

    LoadError where it does not start.
    """
    ray = imported_ray()
    try:
        ray.init(
            "local",
            num_cpus=workers + others,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:  # Ray raises plain exceptions where its node does not come up
        raise LoadError(f"Ray did not start: {one_line(error, width=200)}; see {LOGS}") from error
    return ray


def listen_on_loopback() -> None:
    """Bind what a replica of Ray Serve listens at to the loopback: it is hard-coded to every address of the machine."""
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", "127.0.0.1"))
