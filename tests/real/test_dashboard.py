"""The numbers of a run as Ray's own agent gives them to Prometheus."""

import time
import urllib.request

import pytest
import ray

from actors.training.dashboard import Dashboard

VALUES = {"reward": 0.5, "gold": 0.25, "kl": 1.5, "staleness_max": 1, "num_rollouts": 128, "num_completion_tokens": 640,
          "step_s": 2.0, "rollout_s": 0.7, "sync_s": 0.1, "restarts_rollout": 2, "ready_slot": 1, "groups_skipped": 3,
          "some_other": 4.5, "checksum": "abcd", "grad_norm": float("nan")}


class _Pool:
    role, in_flight = "rollout", [5, 7]


@pytest.fixture(scope="module")
def exported():
    """name -> [(tags, value)] of what two steps left with the agent of this node."""
    # As actors.cluster.connection.connect starts Ray; the agent hears every second, not every ten.
    ray.init(address="local", include_dashboard=False, num_cpus=1, log_to_driver=False,
             _system_config={"metrics_report_interval_ms": 1000})
    try:
        dashboard = Dashboard("outputs/run7")
        dashboard.step(VALUES)
        dashboard.step(VALUES | {"reward": 0.75, "restarts_rollout": 3})
        dashboard.queues([_Pool()])
        port = ray.nodes()[0]["MetricsExportPort"]
        found = {}
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not {"ray_rlaif_rows_in_flight", "ray_rlaif_restarts_total"} <= {*found}:
            time.sleep(1)
            found = parsed(f"http://127.0.0.1:{port}/metrics")
        yield found
    finally:
        ray.shutdown()


def parsed(url):
    found = {}
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:     # not up yet
        return found
    for line in lines:
        name, brace, rest = line.partition("{")
        if brace and name.startswith("ray_rlaif"):
            tags, _, value = rest.rpartition("} ")
            pairs = dict(part.split("=", 1) for part in tags.split('",') if "=" in part)
            found.setdefault(name, []).append(({key: text.strip('"') for key, text in pairs.items()}, float(value)))
    return found


def value(exported, metric, **tags):
    fitting = [number for there, number in exported[f"ray_rlaif_{metric}"] if there["run"] == "run7" and all(
        there.get(key) == text for key, text in tags.items())]
    assert len(fitting) == 1, (metric, tags, exported[f"ray_rlaif_{metric}"])
    return fitting[0]


def test_figures_of_the_last_step_are_there(exported):
    assert [value(exported, name) for name in ("reward", "gold", "kl", "staleness_max", "sync_s")] == [
        0.75, 0.25, 1.5, 1.0, 0.1]
    assert value(exported, "rollouts_per_second") == 64 and value(exported, "tokens_per_second") == 320
    assert value(exported, "figure", name="some_other") == 4.5 and value(exported, "figure", name="rollout_s") == 0.7
    assert "ray_rlaif_grad_norm" not in exported        # not a finite number


def test_counts_add_up_over_the_steps_and_sums_are_not_counted_twice(exported):
    assert value(exported, "rollouts_total") == 256 and value(exported, "completion_tokens_total") == 1280
    assert value(exported, "restarts_total", role="rollout") == 3 and value(exported, "skipped_groups_total") == 3


def test_queues_are_told_by_role_and_rank(exported):
    assert [value(exported, "rows_in_flight", role="rollout", rank=rank) for rank in ("0", "1")] == [5, 7]
    assert value(exported, "ready", role="slot") == 1


def test_stages_are_a_histogram(exported):
    assert value(exported, "stage_seconds_count", role="rollout") == 2
    assert value(exported, "stage_seconds_bucket", role="rollout", le="0.3") == 0
    assert value(exported, "stage_seconds_bucket", role="rollout", le="1.0") == 2
    assert value(exported, "step_seconds_count") == 2
