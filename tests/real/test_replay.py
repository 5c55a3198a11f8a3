"""A part of the loop alone on the real stack: rolling out and judging without learners, training on what is stored."""

from __future__ import annotations

from pathlib import Path

from rlaif.running.rollout_store import StoredRollouts
from tests.real.conftest import Run, launch, run_short

SAME = ("reward", "gold", "loss", "kl_per_token", "grad_norm", "entropy", "num_trained", "checksum")


def weights(run: Run) -> bytes:
    return (run.output_dir / "policy" / "model.safetensors").read_bytes()


def test_rollouts_alone_then_training_alone_come_to_the_bytes_of_the_run_that_did_both(short_run: Run, tmp_path: Path
                                                                                     ) -> None:
    """The first step's rows are the same bytes whether there are learners or not; later ones are of other weights. A
    replay of what the whole run stored ends with its weights."""
    whole = short_run
    alone = run_short(tmp_path / "alone", "mode=rollout")
    replay = run_short(tmp_path / "replay", "mode=replay", f"stored.read={whole.output_dir}/rollouts")

    first = "rollouts/step-000000001.parquet"
    assert (alone.output_dir / first).read_bytes() == (whole.output_dir / first).read_bytes()
    assert weights(replay) == weights(whole)
    for one, other in zip(replay.steps, whole.steps, strict=True):
        assert {name: one[name] for name in SAME} == {name: other[name] for name in SAME}
    assert replay.summary["weights_checksum"] == whole.summary["weights_checksum"]
    assert replay.summary["ledger"] == whole.summary["ledger"] == alone.summary["ledger"]

    assert not (alone.output_dir / "policy").exists() and "learner" not in ready_line(alone)
    assert ready_line(replay).endswith(" learner") and "rollout" not in ready_line(replay)
    stored = StoredRollouts(alone.output_dir / "rollouts")
    assert stored.num_steps == 3 and len(stored.groups) == 12
    assert {step["policy_version"] for step in alone.steps} == {1, 2, 3}
    assert {step["staleness_max"] for step in alone.steps} == {0}


def ready_line(run: Run) -> str:
    return next(line for line in run.printed.splitlines() if line.startswith("all actors ready"))


def test_rollouts_that_cannot_be_replayed_are_refused_before_anything_starts(tmp_path: Path) -> None:
    done = launch("launch/train.py", "configs/quickstart.yaml", f"output_dir={tmp_path}/run", "mode=replay",
                  f"stored.read={tmp_path}/none")
    assert done.returncode == 2 and "stored.read must be a folder of stored rollouts" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
