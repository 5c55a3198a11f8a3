"""Ray itself: joining a running cluster or starting one here, with quiet workers and one authentication mode."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import AuthenticationMode, get_authentication_mode

from actors.carriers.tables import send_as_streams
from rlaif.config.checks import UserError

AUTH_MODE = "RAY_AUTH_MODE"     # see actors/__init__.py

# Where `ray start` notes the cluster it began; `ray.init()` notes nothing.
CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")

# Every actor's environment: warnings of the libraries below stay in Ray's log files.
QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CONFIGURE_LOGGING": "1", "TRANSFORMERS_VERBOSITY": "error",
    "DEEPSPEED_LOG_LEVEL": "error", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
}

ANSWER_S = 10.0     # in which a cluster answers that lives

_OPTIONS: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def connect() -> str:
    """Joins the cluster named by RAY_ADDRESS or begun here with `ray start`, else starts one; says which.

    A cluster started here has no dashboard, asks for a token (Ray's default), and no other run joins it. Raises
    UserError if a cluster is there but does not let this process in.
    """
    address = running_address()
    if address is None:
        ray.init(address="local", include_dashboard=False, **_OPTIONS)
        send_as_streams()
        return "started Ray on this machine"
    join(address)
    return f"joined the Ray cluster at {ray.get_runtime_context().gcs_address}"


def running_address() -> str | None:
    """Where a cluster runs that this process would join: RAY_ADDRESS, or what `ray start` noted here; None where none
    does, or RAY_ADDRESS is "local". Raises UserError where nothing answers at RAY_ADDRESS, and where a noted cluster
    is neither gone nor answers: it may be ending, and would take the run with it."""
    named = os.environ.get("RAY_ADDRESS")
    if named == "local":
        return None
    # Not "auto": that would join the private cluster of another run and end with it.
    address = named or (CURRENT_CLUSTER.read_text().strip() if CURRENT_CLUSTER.is_file() else None)
    if not address:
        return None
    is_there = _listens(address)
    why = _silent(address) if is_there else "where nothing answers"
    if why is None:
        return address
    if named:
        raise UserError(f"RAY_ADDRESS must name a running Ray cluster, got {named!r}, {why}; start it or unset "
                        "RAY_ADDRESS")
    if not is_there:
        return None     # what was noted has ended meanwhile
    raise UserError(f"the Ray cluster that {CURRENT_CLUSTER} names must answer, got {address!r}, {why}; wait until it "
                    "has ended or end it with `ray stop`, or set RAY_ADDRESS=local to start another one for this run")


def join(address: str) -> None:
    """Joins the cluster at `address`. Raises UserError where it does not let this process in, or knows no tokens: its
    calls would bring none, this process would refuse them, and the cluster take its actors for nobody's."""
    if get_authentication_mode() == AuthenticationMode.TOKEN and _lets_anyone_in(address):
        raise UserError(f"{AUTH_MODE} must be what it was for `ray start`, got 'token': the cluster at {address} asks "
                        f"for no token; export {AUTH_MODE}=disabled, or start the cluster with {AUTH_MODE}=token")
    try:
        ray.init(address=address, **_OPTIONS)
        send_as_streams()
    except ConnectionError as error:
        mine = os.environ.get(AUTH_MODE, "nothing")
        raise UserError(f"{AUTH_MODE} must be what it was for `ray start`, got {mine!r}: the cluster at {address} "
                        "does not let this process in") from error


def _listens(address: str) -> bool:
    """Whether anything answers at "host:port"; True where an address is of another form, which only Ray can tell."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return True
    try:
        with socket.create_connection((host, int(port)), timeout=3):
            return True
    except OSError:
        return False


def _silent(address: str) -> str | None:
    """Why a cluster whose head listens cannot be joined all the same; None where it can, or only Ray can tell."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return None
    channel = init_grpc_channel(address)
    try:
        ensure_token_if_auth_enabled(create_token_if_missing=False)
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=ANSWER_S)
        nodes = ray._raylet.GcsClient(address=address).get_all_node_info(timeout=ANSWER_S).values()
    except grpc.RpcError as error:
        is_silent = error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        return f"which gives no answer in {ANSWER_S:g} s" if is_silent else None
    except ray.exceptions.RayError:     # it does not let us in, which `join` tells
        return None
    finally:
        channel.close()
    alive = [node for node in nodes if node.state == node.ALIVE]
    if any(_listens(f"{node.node_manager_address}:{node.node_manager_port}") for node in alive):
        return None
    return "whose nodes are gone"


def _lets_anyone_in(address: str) -> bool:
    """Whether the cluster's head answers a call that brings no token; False where only Ray can tell."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return False
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=ANSWER_S)
        except grpc.RpcError:
            return False
    return True


def actor_environment(num_threads: int, num_gpus: float) -> dict[str, Any]:
    """The runtime environment of one actor. On a CPU one engine's threads must not pin those of another."""
    env = QUIET | {"OMP_NUM_THREADS": str(num_threads)}
    if num_gpus == 0:
        env |= {"CUDA_VISIBLE_DEVICES": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "DS_ACCELERATOR": "cpu",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCH_COMPILE_DISABLE": "1"}
    return {"env_vars": env}
