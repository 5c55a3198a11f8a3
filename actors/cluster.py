"""Ray itself: joining a running cluster or starting one here, with quiet workers and one authentication mode."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import ray

from rlaif.config import UserError

# Ray reads this before it connects. "token" is what a cluster should use; whoever starts the cluster decides.
AUTH_MODE = "RAY_AUTH_MODE"

# Where `ray start` notes the cluster it began; `ray.init()` notes nothing.
CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")

# Every actor's environment: warnings of the libraries below stay in Ray's log files.
QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CONFIGURE_LOGGING": "1", "TRANSFORMERS_VERBOSITY": "error",
    "DEEPSPEED_LOG_LEVEL": "error", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
}


def connect() -> str:
    """Joins the cluster named by RAY_ADDRESS or begun here with `ray start`, else starts one; says which.

    A cluster started here has no dashboard, asks for a token (Ray's default), and no other run joins it.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    named = os.environ.get("RAY_ADDRESS")
    # Not "auto": that would join the private cluster of another run and end with it.
    address = named or (CURRENT_CLUSTER.read_text().strip() if CURRENT_CLUSTER.is_file() else None)
    if address:
        try:
            ray.init(address=address, **options)
            return f"joined the Ray cluster at {ray.get_runtime_context().gcs_address}"
        except ConnectionError as error:
            if named:
                raise UserError(f"RAY_ADDRESS must name a running Ray cluster, got {named!r}: "
                                f"{str(error).splitlines()[0]}") from error
        except Exception as error:
            if "uthenticat" not in str(error):
                raise
            mine = os.environ.get(AUTH_MODE, "nothing")
            raise UserError(f"{AUTH_MODE} must be the mode that the running cluster was started with, got {mine!r}; "
                            f"export the same {AUTH_MODE} for both") from error
    ray.init(include_dashboard=False, **options)
    return "started Ray on this machine"


def actor_environment(num_threads: int, num_gpus: float) -> dict[str, Any]:
    """The runtime environment of one actor. On a CPU one engine's threads must not pin those of another."""
    env = QUIET | {"OMP_NUM_THREADS": str(num_threads)}
    if num_gpus == 0:
        env |= {"CUDA_VISIBLE_DEVICES": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "DS_ACCELERATOR": "cpu",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCH_COMPILE_DISABLE": "1"}
    return {"env_vars": env}
