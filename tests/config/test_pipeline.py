import pytest

from rlaif.config.checks import UserError
from rlaif.config.pipeline import PipelineConfig


def test_a_synchronous_run_is_reproducible_unless_it_need_not_be():
    assert PipelineConfig().is_reproducible
    assert not PipelineConfig(reproducible=False).is_reproducible
    assert not PipelineConfig(max_staleness=1).is_reproducible
    assert not PipelineConfig(max_staleness=2, reproducible=False).is_reproducible


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_staleness": 1, "reproducible": True},
         "reproducible must be false or null with max_staleness 1, got True: .*; set max_staleness to 0"),
        ({"max_staleness": -1}, "max_staleness must be >= 0, got -1"),
        ({"portion_groups": 0}, "portion_groups must be > 0, got 0"),
        ({"max_buffered_mb": 0}, "max_buffered_mb must be > 0, got 0"),
    ])
def test_what_cannot_be_is_refused_by_its_name(fields, message):
    with pytest.raises(UserError, match=message):
        PipelineConfig(**fields)
