"""A Ray cluster of several nodes on this machine, of which some are lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import ray
from ray._private.state import state
from ray.cluster_utils import Cluster

STORE_BYTES = 200 << 20


def unnoted_cluster(**head: Any) -> Cluster:
    """A cluster with its head. Ray notes the clusters of its tests where `ray start` notes its own, and every run on
    this machine without an address of its own would join one."""
    with patch("ray._private.utils.write_ray_address"):
        return Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head})


class Nodes:
    """A head without CPUs, for the driver, and `nodes`, each by what Ray takes of it: num_cpus, labels, ..."""

    def __init__(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        self._cluster = unnoted_cluster(num_cpus=0, object_store_memory=STORE_BYTES)
        self.there = []
        for node in nodes:
            self.add(**node)
        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        self._cluster.wait_for_nodes()

    @property
    def address(self) -> str:
        return self._cluster.address

    def add(self, **node: Any) -> None:
        self.there.append(self._cluster.add_node(object_store_memory=STORE_BYTES, **node))

    def actors(self) -> dict[str, list[str]]:
        """The living actors by the node that they are on, for every node that is there."""
        found: dict[str, list[str]] = {node.node_id: [] for node in self.there}
        for actor in state.actor_table(None, None, "ALIVE").values():
            found.setdefault(actor["Address"]["NodeID"], []).append(actor["Name"])
        return {node: sorted(names) for node, names in found.items()}

    def lose(self, node_id: str) -> None:
        """The node ends as by a power cut: nothing is told to anybody."""
        (node,) = [node for node in self.there if node.node_id == node_id]
        self.there.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()
