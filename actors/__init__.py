"""Ray actors: the only part of the project that touches ray, vllm and deepspeed."""

import os
import sys

# Ray reads this once, when it is imported: hence here. `ray start` asks for a token by itself, a process that joins and
# is told nothing brings none. Whoever starts a cluster with "disabled" says so to those who join it. Where Ray has been
# imported before us, it has read what there was, and the processes it starts must read the same.
if "ray" not in sys.modules:
    os.environ.setdefault("RAY_AUTH_MODE", "token")

# Errors of calls are told where their metrics are awaited; Ray would tell them once more for each table of the call.
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
