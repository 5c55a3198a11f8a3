"""A Ray cluster that is dying is refused in one line; one that lives is joined."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from actors.cluster import connection
from actors.cluster.connection import join, running_address
from rlaif.config.checks import UserError
from tests.helpers.nodes import unnoted_cluster


def test_a_cluster_without_nodes_or_without_an_answer_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 3.0)
    cluster = unnoted_cluster(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    processes = {process.name(): process for process in psutil.Process().children(recursive=True)}
    try:
        assert running_address() == cluster.address
        processes["raylet"].kill()
        with pytest.raises(UserError, match=r"got '.*', whose nodes are gone; start it or unset RAY_ADDRESS"):
            running_address()
        processes["gcs_server"].suspend()
        with pytest.raises(UserError, match=r"got '.*', which gives no answer in 3 s; start it"):
            running_address()
        processes["gcs_server"].resume()
    finally:
        cluster.shutdown()


WITHOUT_TOKENS = """
from tests.helpers.nodes import unnoted_cluster
cluster = unnoted_cluster(num_cpus=0)
print(cluster.address, flush=True)
input()
cluster.shutdown()
"""


def test_a_cluster_that_knows_no_tokens_is_refused_by_a_process_that_brings_one() -> None:
    begun = subprocess.Popen([sys.executable, "-c", WITHOUT_TOKENS], env=os.environ | {"RAY_AUTH_MODE": "disabled"},
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        address = begun.stdout.readline().strip()
        with pytest.raises(UserError, match="asks for no token; export RAY_AUTH_MODE=disabled"):
            join(address)
    finally:
        begun.communicate("\n", timeout=60)
