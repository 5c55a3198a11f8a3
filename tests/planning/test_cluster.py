import pytest

from rlaif.config.checks import UserError
from rlaif.planning.cluster import GIB, GPU_KINDS, NodeConfig, gpu_kind, read_cluster

SMALL = """
network_gb_s: 25
nodes:
  - {name: head, cpus: 4, memory_gb: 16}
  - {name: big, count: 2, cpus: 96, memory_gb: 512, gpus: 8, gpu: A100-80G, pool: learn}
models:
  - {name: some/model, config: {model_type: qwen2, hidden_size: 64}}
"""


def test_a_described_cluster_is_read_node_by_node(tmp_path):
    (tmp_path / "c.yaml").write_text(SMALL)
    cluster = read_cluster(tmp_path / "c.yaml")
    assert [(node.name, node.num_cpus, node.num_gpus, node.pool) for node in cluster.nodes] == [
        ("head", 4, 0, None), ("big-0", 96, 8, "learn"), ("big-1", 96, 8, "learn")]
    assert cluster.nodes[0].gpu is None and cluster.nodes[1].gpu == GPU_KINDS["A100-80G"]
    assert (cluster.nodes[1].memory, cluster.network) == (512 * GIB, 25e9)
    assert cluster.models == {"some/model": {"model_type": "qwen2", "hidden_size": 64}}


@pytest.mark.parametrize(("old", "new", "message"), [
    ("gpu: A100-80G", "gpu: A900", "nodes[1].gpu must be one of A10G, "),
    ("gpu: A100-80G, ", "", "nodes[1].gpu must be one of A10G, "),
    ("cpus: 4, ", "", "nodes[0].cpus must be given"),
    ("count: 2", "count: 0", "nodes[1].count must be > 0, got 0"),
    ("name: head", "name: big-1", "nodes must have names of their own, got 'big-1' twice"),
    ("model_type: qwen2, ", "", "models[0].config must be the fields of config.json, model_type among them"),
    ("pool: learn", "pol: learn", "did you mean nodes[1].pool?"),
])
def test_a_mistake_in_the_file_is_named_with_its_key(tmp_path, old, new, message):
    path = tmp_path / "c.yaml"
    path.write_text(SMALL.replace(old, new))
    with pytest.raises(UserError) as caught:
        read_cluster(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_numbers_of_a_gpu_go_over_its_kind_and_stand_for_an_unknown_one():
    halved = NodeConfig(cpus=1, memory_gb=1, gpus=1, gpu="H100", gpu_memory_gb=40).kind()
    assert (halved.memory, halved.flops) == (40 * GIB, GPU_KINDS["H100"].flops)
    own = NodeConfig(cpus=1, memory_gb=1, gpus=1, gpu="Mine", gpu_memory_gb=1, gpu_tflops=2, gpu_bandwidth_gb_s=3)
    assert (own.kind().memory, own.kind().flops, own.kind().bandwidth) == (GIB, 2e12, 3e9)


@pytest.mark.parametrize(("text", "name"), [
    ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H200", "H200"), ("A100-40G", "A100-40G"), ("A100", "A100-80G"),
    ("NVIDIA A100-SXM4-80GB", "A100-80G"), ("NVIDIA L4", "L4"), ("NVIDIA L40S", "L40S"), ("H100", "H100"),
    ("NVIDIA GeForce RTX 4090", "RTX4090"), ("NVIDIA L40", None), ("Tesla T4", None), ("GeForce GTX 1080", None)])
def test_names_of_drivers_and_of_ray_are_understood(text, name):
    assert getattr(gpu_kind(text), "name", None) == name
