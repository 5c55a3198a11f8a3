"""Memory that other processes of this machine can read, and that is gone when the last process lets go of it."""

from __future__ import annotations

import mmap
import os
import secrets
import warnings
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

_TOKEN_BYTES = 16


@dataclass(frozen=True)
class Offer:
    """Where another process finds the memory: its path, its size, and a token that lies behind it."""

    path: str
    num_bytes: int
    token: str


class SharedMemory:
    """`num_bytes` bytes, as the uint8 `tensor` here and through `offer` elsewhere.

    It has no name in a file system: nothing is left behind by a process that is killed, and /dev/shm, which is small
    in containers, is not used.
    """

    def __init__(self, num_bytes: int) -> None:
        token = secrets.token_bytes(_TOKEN_BYTES)
        file = os.memfd_create("rlaif-weights")
        self.close = weakref.finalize(self, os.close, file)     # nobody else finds it then; who has it keeps it
        os.ftruncate(file, num_bytes + _TOKEN_BYTES)
        mapped = mmap.mmap(file, num_bytes + _TOKEN_BYTES)
        mapped[num_bytes:] = token
        self.tensor: Tensor = torch.frombuffer(mapped, dtype=torch.uint8, count=num_bytes)
        self.offer = Offer(f"/proc/{os.getpid()}/fd/{file}", num_bytes, token.hex())


def attach(offer: Offer) -> Tensor:
    """The offered memory, uint8, to be read only. Raises OSError where it is not to be found on this machine."""
    file = os.open(offer.path, os.O_RDONLY)
    try:
        size = offer.num_bytes + _TOKEN_BYTES
        if os.fstat(file).st_size != size:
            raise OSError(f"{offer.path} must have {size} bytes, got another file")
        mapped = mmap.mmap(file, size, prot=mmap.PROT_READ)
    finally:
        os.close(file)
    if mapped[offer.num_bytes:].hex() != offer.token:
        raise OSError(f"{offer.path} must end with the token that was offered, got another memory")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # that it is not writable
        return torch.frombuffer(mapped, dtype=torch.uint8, count=offer.num_bytes)


def is_here(offer: Offer) -> bool:
    """Whether this process can attach to the memory."""
    try:
        attach(offer)
    except OSError:
        return False
    return True
