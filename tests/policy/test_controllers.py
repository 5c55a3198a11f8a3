import dataclasses
import json
import math
import random

import pytest

from rlaif.policy.controllers import KlController, MovingBaseline


def test_the_coefficient_moves_by_hand():
    controller = KlController(0.1, target=4.0, horizon=1000)
    assert controller.after(4.0, 128) == controller
    assert controller.after(4.4, 500).coefficient == pytest.approx(0.1 * math.exp(0.1 * 0.5))
    assert controller.after(3.6, 500).coefficient == pytest.approx(0.1 * math.exp(-0.1 * 0.5))
    for kl, sign in ((400.0, 1), (0.0, -1), (-3.0, -1)):       # an error beyond 20 % counts as 20 %
        assert controller.after(kl, 1000).coefficient == pytest.approx(0.1 * math.exp(sign * 0.2))


def test_the_coefficient_does_not_depend_on_how_completions_are_dealt_out_to_steps():
    once = KlController(0.1, 4.0, 1000).after(9.0, 640)
    often = KlController(0.1, 4.0, 1000)
    for _ in range(10):
        often = often.after(9.0, 64)
    assert often.coefficient == pytest.approx(once.coefficient)


def test_a_fixed_coefficient_stays():
    assert KlController(0.02).after(1e9, 10**6) == KlController(0.02)
    assert KlController(0.02).after(math.nan, 1) == KlController(0.02)


@pytest.mark.parametrize("start", [1e-4, 0.05, 5.0])
def test_the_controller_brings_a_noisy_kl_to_its_target(start):
    """The KL of a policy that answers a coefficient slowly, kl -> 0.3 / coefficient, measured with noise of 20 %."""
    noise = random.Random(0)
    controller, kl, seen = KlController(start, target=3.0, horizon=500), 0.0, []
    for _ in range(600):
        kl += 0.1 * (0.3 / controller.coefficient - kl)
        controller = controller.after(kl * noise.gauss(1.0, 0.2), 128)
        seen.append(kl)
    settled = seen[-200:]
    assert sum(settled) / 200 == pytest.approx(3.0, rel=0.1)
    assert controller.coefficient == pytest.approx(0.1, rel=0.25)
    assert max(settled) < 4.5 and min(settled) > 2.0


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_kl_that_is_not_finite_is_refused(kl):
    with pytest.raises(ValueError, match=f"kl must be finite, got {kl}; the policy has left the reference"):
        KlController(0.1, 4.0).after(kl, 1)


def test_the_baseline_by_hand():
    baseline = MovingBaseline()
    assert baseline.value is None
    baseline = baseline.after(2.0, 0.9)
    assert baseline.value == pytest.approx(2.0)     # no pull to zero at the start
    baseline = baseline.after(5.0, 0.9)
    assert baseline.value == pytest.approx((0.9 * 2 + 5) / 1.9)
    assert MovingBaseline().after(2.0, 0.0).after(5.0, 0.0).value == 5.0


def test_the_baseline_forgets():
    baseline = MovingBaseline()
    for step in range(200):
        baseline = baseline.after(1.0 if step < 100 else 3.0, 0.9)
    assert baseline.value == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("record", [KlController(0.1, 4.0, 500), KlController(0.1), MovingBaseline(0.3, 0.1)])
def test_a_checkpoint_can_hold_the_records(record):
    assert type(record)(**json.loads(json.dumps(dataclasses.asdict(record)))) == record
