"""Memory that another process of this machine reads."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from actors.carriers.shared_memory import SharedMemory, attach, is_here

READ = """
import sys
from actors.carriers.shared_memory import Offer, attach
memory = attach(Offer(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
print(int(memory.sum()), flush=True)
sys.stdin.readline()
print(int(memory.sum()), flush=True)
"""


def test_another_process_sees_what_is_written_now_and_later():
    memory = SharedMemory(100_000)
    memory.tensor.fill_(1)
    offer = memory.offer
    reader = subprocess.Popen([sys.executable, "-c", READ, offer.path, str(offer.num_bytes), offer.token],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert reader.stdout.readline() == "100000\n"
    memory.tensor[:7] = 0
    assert reader.communicate("go on\n")[0] == "99993\n"


def test_nothing_is_left_in_a_file_system_and_who_has_it_keeps_it():
    before = set(os.listdir("/dev/shm"))
    memory = SharedMemory(4096)
    memory.tensor[5] = 9
    kept = attach(memory.offer)
    assert set(os.listdir("/dev/shm")) <= before
    memory.close()
    assert not is_here(memory.offer)
    assert kept[5] == 9


@pytest.mark.parametrize("changed", [{"token": "00" * 16}, {"num_bytes": 4000}, {"path": "/proc/1/fd/999999"}])
def test_another_memory_under_the_same_path_is_not_taken_for_it(changed):
    memory = SharedMemory(4096)
    assert is_here(memory.offer)
    assert not is_here(dataclasses.replace(memory.offer, **changed))
    assert torch.equal(attach(memory.offer), memory.tensor)
