"""Machines to plan for: nodes with their CPUs, GPUs and memory, as they are here or as a YAML file describes them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from rlaif.config.checks import UserError, not_negative, positive, require
from rlaif.config.files import load

__all__ = ["GIB", "GPU_KINDS", "Cluster", "ClusterConfig", "GpuKind", "ModelDescription", "Node", "gpu_kind",
           "read_cluster"]

GIB = 1 << 30


@dataclass(frozen=True)
class GpuKind:
    """What one GPU can: memory in bytes, products a second (bfloat16, dense, 2 for a multiply-add), bytes a second."""

    name: str
    memory: float
    flops: float
    bandwidth: float


def _kind(name: str, memory_gb: float, tflops: float, bandwidth_gb_s: float) -> GpuKind:
    return GpuKind(name, memory_gb * GIB, tflops * 1e12, bandwidth_gb_s * 1e9)


# Memory as the driver reports it, in GiB; rates of the makers' data sheets.
GPU_KINDS: dict[str, GpuKind] = {kind.name: kind for kind in (
    _kind("A10G", 22.0, 70, 600), _kind("L4", 22.5, 121, 300), _kind("L40S", 44.7, 362, 864),
    _kind("A100-40G", 39.4, 312, 1555), _kind("A100-80G", 79.2, 312, 2039), _kind("H100", 79.6, 989, 3350),
    _kind("H200", 140.4, 989, 4800), _kind("B200", 178.3, 2250, 8000), _kind("RTX4090", 23.5, 165, 1008))}


def gpu_kind(text: str) -> GpuKind | None:
    """The kind that a driver's or Ray's name of a GPU means, such as "NVIDIA A100-SXM4-80GB" or "H100"; else None."""
    words = re.findall("[A-Z0-9]+", text.upper().replace("RTX ", "RTX"))
    if "A100" in words:
        return GPU_KINDS["A100-40G" if any(word.startswith("40G") for word in words) else "A100-80G"]
    return next((kind for name, kind in GPU_KINDS.items() if name in words), None)


@dataclass(frozen=True)
class Node:
    """One machine. memory: bytes of the host. gpu: None where it has none, or of a kind that is not known."""

    name: str
    num_cpus: float
    num_gpus: int = 0
    memory: float = math.inf
    gpu: GpuKind | None = None
    pool: str | None = None


@dataclass(frozen=True)
class Cluster:
    """What a run would have. models: the config.json of models that are not on this machine, by their name."""

    nodes: tuple[Node, ...]
    what: str                                       # in words: a file, this machine, the Ray cluster at an address
    network: float = 12.5e9                         # bytes a second between two nodes
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass
class NodeConfig:
    """`count` equal nodes of a described cluster."""

    name: str = "node"                      # nodes are called <name>-0, <name>-1, ...
    count: int = 1                          # >= 1
    cpus: float = MISSING                   # of a node, > 0
    memory_gb: float = MISSING              # GiB of a node, > 0
    gpus: int = 0                           # of a node, >= 0
    gpu: str | None = None                  # a kind of rlaif.planning.cluster.GPU_KINDS; null: the three below say
    gpu_memory_gb: float | None = None      # GiB of a GPU, > 0
    gpu_tflops: float | None = None         # 10^12 bfloat16 products a second, dense, > 0
    gpu_bandwidth_gb_s: float | None = None     # 10^9 bytes a second to a GPU's memory, > 0
    pool: str | None = None                 # as placement.*.pool: the label `pool` of the node

    def __post_init__(self) -> None:
        positive(self, "count", "cpus", "memory_gb")
        not_negative(self, "gpus")
        own = (self.gpu_memory_gb, self.gpu_tflops, self.gpu_bandwidth_gb_s)
        if self.gpus == 0:
            return
        if self.gpu is None and None in own:
            raise UserError(f"gpu must be one of {', '.join(GPU_KINDS)}, or null with gpu_memory_gb, gpu_tflops and "
                            "gpu_bandwidth_gb_s given, got null")
        require(self.gpu is None or self.gpu in GPU_KINDS or None not in own, "gpu",
                f"one of {', '.join(GPU_KINDS)}, or described by gpu_memory_gb, gpu_tflops and gpu_bandwidth_gb_s",
                self.gpu)

    def kind(self) -> GpuKind | None:
        """The kind of the node's GPUs; what is given by numbers goes over the table."""
        if self.gpus == 0:
            return None
        known = GPU_KINDS.get(self.gpu or "")
        memory, flops, bandwidth = (
            number * unit if number is not None else getattr(known, name)
            for number, unit, name in ((self.gpu_memory_gb, GIB, "memory"), (self.gpu_tflops, 1e12, "flops"),
                                       (self.gpu_bandwidth_gb_s, 1e9, "bandwidth")))
        return GpuKind(self.gpu or "GPU", memory, flops, bandwidth)


@dataclass
class ModelDescription:
    """A model that is not on this machine: its name as the configuration has it, and the fields of its config.json."""

    name: str = MISSING
    config: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require("model_type" in self.config, "config", "the fields of config.json, model_type among them",
                sorted(map(str, self.config)))


@dataclass
class ClusterConfig:
    """`--plan cluster.yaml`: a cluster that is not here."""

    nodes: list[NodeConfig] = field(default_factory=list)
    network_gb_s: float = 12.5              # 10^9 bytes a second between two nodes, > 0
    models: list[ModelDescription] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(bool(self.nodes), "nodes", "a list of nodes", self.nodes)
        positive(self, "network_gb_s")


def read_cluster(path: str | Path) -> Cluster:
    """The cluster that a YAML file describes. Raises UserError, one line, naming the key."""
    try:
        config = load(ClusterConfig, path)
    except UserError as error:
        raise UserError(f"{error} (in {path})") from error
    nodes = [Node(f"{node.name}-{number}" if node.count > 1 else node.name, node.cpus, node.gpus,
                  node.memory_gb * GIB, node.kind(), node.pool)
             for node in config.nodes for number in range(node.count)]
    names = [node.name for node in nodes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"nodes must have names of their own, got {twice!r} twice (in {path}); name each kind")
    return Cluster(tuple(nodes), f"{path}, described", config.network_gb_s * 1e9,
                   {model.name: dict(model.config) for model in config.models})
