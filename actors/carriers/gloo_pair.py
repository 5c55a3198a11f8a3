"""Two processes, on one machine or two, that send each other CPU tensors over the network: a gloo group of their own,
beside the default groups that DeepSpeed and vLLM have in the same processes."""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore


def meeting_place(host: str, timeout_s: float) -> tuple[TCPStore, int]:
    """The store at which pairs meet, kept by this process, which `host` reaches; and its port."""
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
    return store, store.port


def pair(host: str, port: int, name: str, rank: int, timeout_s: float, store: TCPStore | None = None
         ) -> ProcessGroupGloo:
    """A gloo group of two that meets under `name` at the store of rank 0, the learner; None elsewhere joins it."""
    limit = timedelta(seconds=timeout_s)
    store = store or TCPStore(host, port, is_master=False, timeout=limit)
    options = ProcessGroupGloo._Options()
    options._timeout = limit
    # The address by which the other is reached: a host's own name often stands for loopback.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        options._devices = [ProcessGroupGloo.create_device(hostname=probe.getsockname()[0])]
    return ProcessGroupGloo(PrefixStore(name, store), rank, 2, options)
