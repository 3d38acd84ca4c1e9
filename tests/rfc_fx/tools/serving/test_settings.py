"""What `rfc-fx serve` refuses before Ray starts, and what its workers are given."""

import socket

import pytest
import torch
from command import one_line_error

from rfc_export.cli import app
from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.requests.worker import WorkerSettings, ray_resources
from rfc_fx.tools.serving.deployments import check_port


def test_an_address_that_others_can_reach_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for token in (None, ""):
        monkeypatch.setenv("RFC_FX_TOKEN", token) if token is not None else monkeypatch.delenv("RFC_FX_TOKEN", raising=False)
        assert "--host 0.0.0.0: others can reach it; put a token into" in one_line_error(app, "serve", "digits", "--host", "0.0.0.0")


@pytest.mark.parametrize("command", [("serve", "digits"), ("batch", "digits", "--prompts", "prompts.jsonl", "--out", "out")])
def test_steps_of_requests_that_say_none_have_the_limit_of_those_that_do(command: tuple[str, ...]) -> None:
    assert "'--steps': Input should be less than or equal to 200" in one_line_error(app, *command, "--steps", "201")


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OptionError, match=f"--host 127.0.0.1 --port {port}: cannot listen there: Address already in use"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_workers_share_devices_where_there_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cuda = WorkerSettings(model="emoji", device="cuda")
    assert [ray_resources(cuda, workers)["num_gpus"] for workers in (1, 2, 4)] == [1, 1, 0.5]
    assert ray_resources(WorkerSettings(model="emoji"), 4) == {"num_cpus": 1}
