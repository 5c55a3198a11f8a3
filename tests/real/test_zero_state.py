"""What learners write down of themselves is taken up by as many ranks exactly, by other numbers of ranks as well."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlaif.config.learner import LearnerConfig
from tests.helpers import zero_ranks
from tests.helpers.disks import small_disk


@pytest.mark.parametrize(("zero_stage", "world_size", "atol"), [(0, 1, 1e-6), (1, 3, 1e-6), (2, 2, 0.0), (3, 1, 1e-6)])
def test_another_number_of_ranks_goes_on_where_two_stood(tmp_path: Path, zero_stage: int, world_size: int, atol: float
                                                         ) -> None:
    """The weights are those that were saved to the last bit; the steps after differ by the order of sums alone."""
    folder = tmp_path / "step" / "learner"
    zero_ranks.spawn(zero_ranks.save, 2, str(folder), zero_stage, "adamw")
    assert json.loads((folder / "learner.json").read_text()) == {
        "world_size": 2, "zero_stage": zero_stage, "optimizer": "adamw"}
    files = sorted(path.name for path in folder.rglob("*"))
    zero_ranks.spawn(zero_ranks.load, world_size, str(folder), zero_stage, "adamw", atol)
    assert sorted(path.name for path in folder.rglob("*")) == files, "the checkpoint stays as it was sealed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step"], "and what was made of it is gone"


def test_an_optimizer_that_cannot_be_cut_anew_is_refused_with_both_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "step" / "learner"
    zero_ranks.spawn(zero_ranks.save, 2, str(folder), 1, "muon")
    zero_ranks.spawn(zero_ranks.load, 1, str(folder), 1, "muon", 0.0)
    assert (tmp_path / "step" / zero_ranks.REFUSED).read_text() == (
        "placement.learner.num_actors must be 2 as in the run that is resumed, got 1: DeepSpeed cuts the states of "
        "muon anew for no other number")


def test_a_disk_that_is_full_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save does not say why it failed."""
    from actors.learners import zero_state

    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    engine = SimpleNamespace(save_checkpoint=lambda folder, **_: torch.save(
        {"weights": torch.zeros(1 << 20)}, Path(folder) / "state.pt"))
    with small_disk(tmp_path / "disk", 2) as disk, pytest.raises(OSError) as full:
        zero_state.save(engine, str(disk), {}, LearnerConfig())
    assert full.value.errno == errno.ENOSPC
