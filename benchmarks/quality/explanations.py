"""What an explanation gives away of the label: read by a bag of words, which knows neither premise nor hypothesis.

Where the words of an explanation name the label no better than the judge does without them, they cannot help it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["label_accuracy"]

NUM_FEATURES = 1 << 16
NUM_PASSES, BATCH_SIZE, LEARNING_RATE = 2, 200, 0.1


def label_accuracy(train: Sequence[tuple[str, int]], test: Sequence[tuple[str, int]], num_classes: int) -> list[bool]:
    """Whether the label of each of `test` is the one that a linear classifier on the `train` pairs reads from the text.

    Pairs are (text, label in 0..num_classes - 1). Features: which one, two and three words in a row there are, hashed.
    Deterministic: starts at zero, takes the rows in their order.
    """
    weight = torch.zeros(NUM_FEATURES, num_classes, requires_grad=True)
    optimizer = torch.optim.Adagrad([weight], lr=LEARNING_RATE)
    rows = [(_features(text), label) for text, label in train]
    for _ in range(NUM_PASSES):
        for start in range(0, len(rows), BATCH_SIZE):
            batch = rows[start : start + BATCH_SIZE]
            loss = functional.cross_entropy(_scores(weight, [row for row, _ in batch]),
                                            torch.tensor([label for _, label in batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        read = _scores(weight, [_features(text) for text, _ in test]).argmax(dim=1).tolist()
    return [found == label for found, (_, label) in zip(read, test, strict=True)]


def _features(text: str) -> Tensor:
    words = re.findall(r"[a-z']+", text.lower())
    found = {" ".join(words[place : place + size]) for size in (1, 2, 3) for place in range(len(words) - size + 1)}
    return torch.tensor(sorted({zlib.crc32(feature.encode()) % NUM_FEATURES for feature in found}), dtype=torch.int64)


def _scores(weight: Tensor, rows: Sequence[Tensor]) -> Tensor:
    starts = torch.tensor([0, *(len(row) for row in rows[:-1])]).cumsum(0)
    return functional.embedding_bag(torch.cat(list(rows)), weight, starts, mode="sum")
