"""Several ranks in one process, and an engine of plain torch, to test what a learner does without DeepSpeed."""

import contextlib
import math
import threading
from functools import partial

import torch


class Ranks:
    """Runs a function once a rank, each in a thread; torch.distributed's collectives meet at a barrier."""

    def __init__(self, world_size, monkeypatch):
        self.world_size = world_size
        self._barrier, self._slots, self._local = threading.Barrier(world_size), [None] * world_size, threading.local()
        monkeypatch.setattr(torch.distributed, "all_reduce", self._all_reduce)
        monkeypatch.setattr(torch.distributed, "all_gather_object", self._all_gather_object)

    def run(self, function):
        """What `function` returned, or the error it raised, by rank."""
        found = [None] * self.world_size

        def work(rank):
            self._local.rank = rank
            try:
                found[rank] = function(rank)
            except Exception as error:
                found[rank] = error
                if not isinstance(error, (ValueError, threading.BrokenBarrierError)):
                    self._barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return found

    def exchange(self, value):
        self._slots[self._local.rank] = value
        self._barrier.wait(30)
        found = list(self._slots)
        self._barrier.wait(30)
        return found

    def _all_reduce(self, tensor):
        tensor.copy_(sum(self.exchange(tensor.clone())))

    def _all_gather_object(self, target, value):
        target[:] = self.exchange(value)


class TorchEngine:
    """The learner's engine in plain torch: AdamW with clipping; ranks add their gradients up."""

    def __init__(self, module, rate=1e-2, ranks=None):
        self.module, self._ranks = module, ranks
        self._weights = [weight for weight in module.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(self._weights, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
        self._rate = rate

    def backward(self, loss, *, is_last):
        loss.backward()
        if is_last and self._ranks is not None:
            for weight in self._weights:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                torch.distributed.all_reduce(weight.grad)

    def step(self, rate_factor):
        norm = float(torch.nn.utils.clip_grad_norm_(self._weights, 1.0))
        self._optimizer.param_groups[0]["lr"] = self._rate * rate_factor
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        return norm if math.isfinite(norm) else None

    @contextlib.contextmanager
    def watch(self):
        seen = []

        def note(name, gradient):
            odd = gradient[~torch.isfinite(gradient)]
            if len(odd):
                seen.append((name, float(odd[0])))

        hooks = [weight.register_hook(partial(note, name)) for name, weight in self.module.named_parameters()
                 if weight.requires_grad]
        yield seen
        for hook in hooks:
            hook.remove()
