"""The ESFP reward model: a folder with an encoder, its tokenizer and `reward.yaml`, which scores texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlaif.esfp.encoding import Encoded, compile_template, encode
from rlaif.esfp.pairing import both_orders, from_other_side, round_robin, round_robin_means, tie_scores
from rlaif.esfp.reward_spec import RewardSpec, check_folder, read_spec, remove_spec, spec_content, write_spec
from rlaif.esfp.slot_scoring import check_model, class_logits, combine, entropies, scores_of, slot_probabilities
from rlaif.esfp.slots import FIELDS
from rlaif.modeling.bucketing import token_budget_batches

__all__ = ["AUTO_CLASSES", "RewardModel", "Scored", "Texts", "means_by_row"]

AUTO_CLASSES = {"slot": AutoModelForMaskedLM, "classes": AutoModelForSequenceClassification,
                "scalar": AutoModelForSequenceClassification}


@dataclass(frozen=True)
class Texts:
    """N rows to judge. A row has any number of explanations; with none it is read in the form without explanation."""

    prompts: Sequence[str]
    completions: Sequence[str]
    explanations: Sequence[Sequence[str]] | None = None  # None: no row has any
    others: Sequence[str] | None = None  # what a pairwise template compares the completions with
    other_explanations: Sequence[Sequence[str]] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def num_without_explanation(self) -> int:
        """Rows that lack an explanation; of pairs those that lack one of either side."""
        sides = [side or [()] * len(self) for side in (self.explanations, self.other_explanations)]
        if self.others is None:
            return sum(not mine for mine in sides[0])
        return sum(not mine or not theirs for mine, theirs in zip(*sides, strict=True))

    def readings(self) -> list[tuple[int, tuple[str | None, ...]]]:
        """(row, its values of slots.FIELDS) for each explanation of each row, at least one a row."""
        columns = {"completions": self.completions, "explanations": self.explanations, "others": self.others,
                   "other_explanations": self.other_explanations}
        for name, column in columns.items():
            if column is not None and len(column) != len(self):
                raise ValueError(f"{name} must be one a prompt ({len(self)}), got {len(column)}; give equal columns")
            is_text = "explanations" in name and any(isinstance(row, str) for row in column or ())
            assert not is_text, "a row has a list of explanations, not one text"
        found = []
        for row in range(len(self)):
            mine, theirs = ((list(side[row]) if side is not None else []) or [None]
                            for side in (self.explanations, self.other_explanations))
            other = None if self.others is None else self.others[row]
            for number in range(max(len(mine), len(theirs))):
                found.append((row, (self.prompts[row], self.completions[row], mine[min(number, len(mine) - 1)], other,
                                    theirs[min(number, len(theirs) - 1)])))
        return found

    def swapped(self) -> Texts:
        """The same pairs in the other order."""
        assert self.others is not None
        return Texts(self.prompts, self.others, self.other_explanations, self.completions, self.explanations)


@dataclass(frozen=True, eq=False)
class Scored:
    """What the model says of N rows, in the order they were given, on the CPU; means over a row's explanations."""

    probabilities: Tensor  # [N, S, K] float32, 0 for classes a slot does not have; [N, 1, 0] of a scalar head
    slot_scores: Tensor  # [N, S] float32, unit of the reward
    entropy: Tensor  # [N, S] float32, nats, of the probabilities; 0 of a scalar head
    reward: Tensor  # [N] float32
    num_truncated: int  # rows of which a text was cut
    num_without_explanation: int  # rows read in the form without explanation; 0 where the template reads none


class RewardModel:
    """Texts in, rewards out."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: RewardSpec) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self.compiled = compile_template(spec.template, tokenizer)
        check_model(model, self.compiled)
        self._prior = None
        if spec.prior is not None:
            self._prior = torch.zeros(self.compiled.values.shape)
            for s, row in enumerate(spec.prior):
                self._prior[s, : len(row)] = torch.tensor([float(value) for value in row])

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> RewardModel:
        """The reward model in `folder`, in eval mode. No code of the folder is run and no pickle is read.

        A ValueError of one line, naming the folder, where a part is missing or does not fit the others.
        """
        folder = Path(folder)
        check_folder(folder)
        spec = read_spec(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, loading = AUTO_CLASSES[spec.template.head].from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            output_loading_info=True)
        if loading["missing_keys"] or loading["mismatched_keys"]:
            missing = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
            raise ValueError(
                f"weights in {folder} must hold every parameter of a model with head {spec.template.head}, got none "
                f"for {len(missing)} such as {missing[0]}; save the folder with RewardModel.save")
        try:
            return cls(model.to(device).eval(), tokenizer, spec)
        except ValueError as error:
            raise ValueError(f"{error} (in {folder})") from error

    def save(self, folder: str | Path) -> None:
        """Writes the folder. `reward.yaml` comes last: a folder whose writing was cut short does not load."""
        folder = Path(folder)
        spec_content(self.spec)     # refuses before anything is written
        folder.mkdir(parents=True, exist_ok=True)
        remove_spec(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_spec(folder, self.spec)

    def score(self, texts: Texts, *, max_tokens_per_batch: int) -> Scored:
        """Probabilities, slot scores and rewards of N rows, in eval mode and without a gradient.

        max_tokens_per_batch: tokens of one forward pass, >= 1. Inputs that are equal in what the template shows are
        scored once. Rows go through the model by length; the result depends neither on that nor on the company of a
        row, up to rounding. A pairwise template reads every pair in both orders and takes the mean.
        """
        if not self.spec.template.is_pairwise:
            return self.score_in_order(texts, max_tokens_per_batch)
        slots = self.spec.template.slots
        forward = self.score_in_order(texts, max_tokens_per_batch)
        backward = self.score_in_order(texts.swapped(), max_tokens_per_batch)
        probabilities = (forward.probabilities + from_other_side(backward.probabilities, slots)) / 2
        scores = both_orders(forward.slot_scores, backward.slot_scores, tie_scores(slots))
        num_without = texts.num_without_explanation if self.spec.template.reads_explanations else 0
        return self._scored(probabilities, scores, max(forward.num_truncated, backward.num_truncated), num_without)

    def score_groups(self, texts: Texts, group_ids: Sequence[int], *, max_tokens_per_batch: int) -> Scored:
        """As `score`; with a pairwise template each row against every other row of its group, in both orders: then
        num_truncated counts pairs.

        A row's probabilities and scores are the means over the others; a row alone in its group gets the tie.
        """
        if not self.spec.template.is_pairwise:
            return self.score(texts, max_tokens_per_batch=max_tokens_per_batch)
        slots = self.spec.template.slots
        first, second = round_robin(group_ids)
        explanations = texts.explanations or [()] * len(texts)
        pairs = Texts([texts.prompts[a] for a in first], [texts.completions[a] for a in first],
                      [explanations[a] for a in first], [texts.completions[b] for b in second],
                      [explanations[b] for b in second])
        found = self.score(pairs, max_tokens_per_batch=max_tokens_per_batch)
        tie = self.compiled.class_mask / self.compiled.class_mask.sum(-1, keepdim=True)
        probabilities = round_robin_means(found.probabilities, from_other_side(found.probabilities, slots), first,
                                          second, tie, len(texts))
        centres = tie_scores(slots)
        scores = round_robin_means(found.slot_scores, 2 * centres - found.slot_scores, first, second, centres,
                                   len(texts))
        num_without = sum(not row for row in explanations) if self.spec.template.reads_explanations else 0
        return self._scored(probabilities, scores, found.num_truncated, num_without)

    @torch.no_grad()
    def logits(self, encoded: Encoded, max_tokens_per_batch: int) -> Tensor:
        """Class logits `[N, S, K]` float32 on the CPU, in eval mode; equal inputs go through the model once."""
        number: dict[tuple[int, ...], int] = {}  # ids of a row -> number of the distinct row
        first: list[int] = []  # a row for each distinct row
        which: list[int] = []  # the distinct row of each row
        for row, ids in enumerate(encoded.input_ids):
            key = (*ids, *encoded.slot_positions[row])
            if key not in number:
                number[key] = len(first)
                first.append(row)
            which.append(number[key])
        lengths = [len(encoded.input_ids[row]) for row in first]
        logits = torch.empty(len(first), *self.compiled.values.shape)
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in token_budget_batches(lengths, max_tokens_per_batch):
                rows = [first[item] for item in batch]
                logits[batch] = class_logits(self.model, [encoded.input_ids[row] for row in rows],
                                             [encoded.slot_positions[row] for row in rows], self.compiled).cpu()
        finally:
            self.model.train(was_training)
        return logits[torch.tensor(which, dtype=torch.int64)]

    def version(self) -> str:
        """16 hex digits that follow what decides a reward: weights as loaded, template, prior, vocabulary."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        rest = [asdict(self.spec.template), self.spec.prior, sorted(self.tokenizer.get_vocab().items())]
        digest.update(json.dumps(rest).encode())
        return digest.hexdigest()[:16]

    def score_in_order(self, texts: Texts, max_tokens_per_batch: int) -> Scored:
        """Scores of the rows in the order their texts are given, a pair in one order only."""
        readings = texts.readings()
        rows = [row for row, _ in readings]
        prompts, completions, explanations, others, other_explanations = (
            [values[field] for _, values in readings] for field in range(len(FIELDS)))
        encoded = encode(self.compiled, prompts, completions, explanations, None if texts.others is None else others,
                         other_explanations)
        logits = self.logits(encoded, max_tokens_per_batch)
        template = self.spec.template
        scores = means_by_row(scores_of(logits, self.compiled, template.temperature, self._prior), rows, len(texts))
        probabilities = torch.zeros(len(texts), scores.shape[1], 0)
        if template.slots:
            probabilities = means_by_row(slot_probabilities(logits, template.temperature, self._prior), rows,
                                         len(texts))
        num_truncated = len({row for row, is_cut in zip(rows, encoded.is_truncated, strict=True) if is_cut})
        without = {row for row, explanation in zip(rows, explanations, strict=True) if explanation is None}
        num_without = len(without) if template.reads_explanations else 0
        return self._scored(probabilities, scores, num_truncated, num_without)

    def _scored(self, probabilities: Tensor, scores: Tensor, num_truncated: int, num_without: int) -> Scored:
        return Scored(probabilities, scores, entropies(probabilities), combine(scores, self.compiled.weights),
                      num_truncated, num_without)


def means_by_row(values: Tensor, rows: Sequence[int], num_rows: int) -> Tensor:
    """`[num_rows, ...]`, the mean of `values` `[M, ...]` over the entries of each row."""
    index = torch.tensor(rows, dtype=torch.int64)
    sums = torch.zeros(num_rows, *values.shape[1:]).index_add_(0, index, values)
    counts = torch.zeros(num_rows).index_add_(0, index, torch.ones(len(rows)))
    return sums / counts.view(-1, *[1] * (values.ndim - 1))
