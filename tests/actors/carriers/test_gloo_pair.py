"""Two processes that send each other tensors over the network, beside whatever other groups they are in."""

import subprocess
import sys

import pytest
import torch

from actors.carriers.gloo_pair import meeting_place, pair

HOST = "127.0.0.1"
TAKE = """
import sys
import torch
from actors.carriers.gloo_pair import pair

host, port, name, how = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
group = pair(host, port, name, 1, 120.0)
print("met", flush=True)
memories = [torch.zeros(1000, dtype=torch.uint8) for _ in range(2)]
coming = [group.recv([memory], 0, 0) for memory in memories]
for number in range(4):
    coming[number % 2].wait()
    print(int(memories[number % 2].sum()), flush=True)
    if how == "dies":
        import os
        os._exit(1)
    if number < 2:
        coming[number % 2] = group.recv([memories[number % 2]], 0, 0)
"""


def taker(port, name, how="stays"):
    return subprocess.Popen([sys.executable, "-c", TAKE, HOST, str(port), name, how], stdout=subprocess.PIPE, text=True)


def test_tensors_arrive_in_order_at_two_receivers_that_met_under_names_of_their_own():
    store, port = meeting_place(HOST, 120.0)
    takers = [taker(port, name) for name in ("one", "two")]
    groups = [pair(HOST, port, name, 0, 120.0, store) for name in ("one", "two")]
    for number in range(4):
        memory = torch.full((1000,), number + 1, dtype=torch.uint8)
        for sending in [group.send([memory], 1, 0) for group in groups]:
            sending.wait()
    for each in takers:
        assert each.communicate(timeout=60)[0].split() == ["met", "1000", "2000", "3000", "4000"]


def test_a_receiver_that_dies_is_an_error_here_and_not_a_wait_without_end():
    store, port = meeting_place(HOST, 120.0)
    each = taker(port, "mortal", "dies")
    group = pair(HOST, port, "mortal", 0, 120.0, store)
    memory = torch.ones(1000, dtype=torch.uint8)
    group.send([memory], 1, 0).wait()
    each.wait(60)
    with pytest.raises(RuntimeError):
        for _ in range(4):
            group.send([memory], 1, 0).wait()


def test_one_that_nobody_meets_gives_up():
    store, port = meeting_place(HOST, 1.0)
    with pytest.raises(RuntimeError):
        pair(HOST, port, "alone", 0, 1.0, store)
