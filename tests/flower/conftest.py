"""What every test of `salf.flower` needs: a run to which messages belong, and no word to the network."""

import os
from collections.abc import Iterator

import pytest

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_USAGE_STATS_ENABLED="0")


@pytest.fixture(autouse=True, scope="module")
def of_a_run() -> Iterator[None]:
    """Messages can be made only in a process that belongs to a run."""
    from flwr.supercore.task_identity import TaskIdentity  # noqa: PLC0415 - after the environment is set

    known = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = 1, 1, 1
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = known
