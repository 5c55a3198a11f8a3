"""What goes to vLLM's own senders."""

import pytest
import torch

from actors.engines.sync_client import buffer_bytes
from rlaif.modeling.weights import manifest_of

SHAPES = [("embedding", torch.bfloat16, (1000, 64)), ("norm", torch.float32, (64,))]


@pytest.mark.parametrize(("asked", "wanted"), [(1 << 20, 1 << 20), (1000, 1000 * 64 * 2)])
def test_a_senders_buffer_holds_the_largest_weight(asked, wanted):
    assert buffer_bytes(manifest_of(SHAPES), asked) == wanted
