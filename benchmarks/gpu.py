"""The whole stack on a CUDA GPU: python benchmarks/gpu.py [quick | full] [only=<part>]

  losses    policy loss, advantages and log-probabilities, GPU against CPU
  learners  policy updates under DeepSpeed, GPU against CPU: ZeRO 0 to 3, bfloat16, offload, checkpointing, LoRA
  speed     tokens a second, memory and share of the matrix rate of a learner of half a billion parameters
  slots     scores, GPU against CPU; rows a second and share of the matrix rate
  weights   seconds of a weight sync by backend, beside a copy of the same bytes to the host
  loop      launch/train.py on the quickstart's configuration, by sync backend and mode

Every part runs in a process of its own, its output in outputs/gpu; one that fails is told of and the others go on. Each
difference stands beside its tolerance. NCCL between learner and engine needs two GPUs and is not run on one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import RESULTS, environment, store, table_lines  # noqa: E402

PARTS = ("losses", "learners", "speed", "slots", "weights", "loop")
MODULES = {"speed": "learner_speed"}
FOLDER = ROOT / "outputs" / "gpu"
TIMEOUT_S = 3600


def main(arguments: Sequence[str]) -> int:
    forms = [argument for argument in arguments if argument in ("quick", "full")] or ["quick"]
    only = [argument.removeprefix("only=") for argument in arguments if argument.startswith("only=")]
    if len(forms) > 1 or len(forms) + len(only) < len(arguments) or set(only) - set(PARTS):
        print(f"usage: {Path(__file__).name} [quick | full] [only={' | '.join(PARTS)}]", file=sys.stderr)
        return 2
    device = gpu()
    if device is None:
        print("error: a CUDA GPU must answer torch and nvidia-smi here, got none; this benchmark is of GPUs alone",
              file=sys.stderr)
        return 2
    about = environment()
    parts = {name: part(name, forms[0]) | {"commit": about["commit"]} for name in only or PARTS}
    checks = [row for found in parts.values() for row in found["checks"]]
    print("\n".join(table_lines(["what", "difference", "tolerance", "holds"], checks)))
    for name, found in parts.items():
        print(f"\n{name}, {found['seconds']:.0f} s")
        print("\n".join(lines_of(found.get("figures", {}))) or "no figures")
    failed = [name for name, found in parts.items() if "error" in found or found.get("figures", {}).get("errors")]
    if failed:
        print(f"\nfailed, see outputs/gpu: {', '.join(failed)}")
    result = "gpu" + ("_quick" if forms[0] == "quick" else "")
    date = datetime.now(UTC).date().isoformat()
    store(result, {"benchmark": "gpu", "form": forms[0], "date": date, **device, **about,
                   "parts": known_parts(result) | parts})
    return int(bool(failed) or not all(row["holds"] for row in checks))


def known_parts(result: str) -> dict[str, Any]:
    """What earlier calls stored: with `only` one part at a time may be measured anew."""
    there = RESULTS / f"{result}.json"
    return json.loads(there.read_text(encoding="utf-8"))["parts"] if there.is_file() else {}


def gpu() -> dict[str, str] | None:
    """Name, memory and driver of the first GPU; None where there is none that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        asked = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
                               capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    name, memory, driver = (field.strip() for field in asked.splitlines()[0].split(","))
    return {"gpu": name, "gpu_memory": memory, "driver": driver, "num_gpus": str(torch.cuda.device_count())}


def part(name: str, form: str) -> dict[str, Any]:
    """What the part found; with `error` where it came to no end."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    target, started = FOLDER / f"{name}.json", time.perf_counter()
    target.unlink(missing_ok=True)
    print(f"{name} ...", flush=True)
    with (FOLDER / f"{name}.log").open("w", encoding="utf-8") as log:
        subprocess.run([sys.executable, "-m", f"benchmarks.on_gpu.{MODULES.get(name, name)}", form, str(target)],
                       cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=TIMEOUT_S)
    found = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {
        "checks": [], "error": (FOLDER / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-4000:]}
    return found | {"seconds": time.perf_counter() - started}


def lines_of(figures: dict[str, Any], before: str = "  ") -> list[str]:
    """Figures, those of a group below its name."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            lines += [f"{before}{name}", *lines_of(value, before + "  ")] if value else []
        else:
            lines.append(f"{before}{name}: {value:.4g}" if isinstance(value, float) else f"{before}{name}: {value}")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
