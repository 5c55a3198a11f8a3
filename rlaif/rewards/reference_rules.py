"""Rewards that compare a completion with its reference word by word, by the packages that papers report."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["bleu_scorer", "rouge_scorer"]

Scorer = Callable[[Sequence[str], Sequence[str | None]], list[float | None]]


def bleu_scorer(*, tokenizer: str = "13a", max_order: int = 4, ignore_case: bool = False) -> Scorer:
    """A function of completions and references that gives each row's sentence BLEU, 0..1; None without a reference.

    Orders without a match are smoothed exponentially, and orders longer than the completion left out (effective order),
    as sacrebleu advises for sentences. Source: Papineni et al. 2002, BLEU; Post 2018, A Call for Clarity in Reporting
    BLEU Scores.
    """
    from sacrebleu.metrics import BLEU  # here: most runs need neither package

    metric = BLEU(tokenize=tokenizer, lowercase=ignore_case, max_ngram_order=max_order, effective_order=True)

    def score(completions: Sequence[str], references: Sequence[str | None]) -> list[float | None]:
        return [None if reference is None else metric.sentence_score(completion, [reference]).score / 100
                for completion, reference in zip(completions, references, strict=True)]

    return score


class _UnicodeWords:
    """What rouge-score takes for a tokenizer: runs of letters and digits of any script, in lower case."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


def rouge_scorer(*, variant: str = "rougeL", measure: str = "fmeasure", words: str = "package", stemmer: bool = False
                 ) -> Scorer:
    """A function of completions and references that gives the ROUGE of each row, 0..1.

    None without a reference, and for one in which there is no word: the package's own words are of a-z and 0-9 only, so
    that other scripts want `words="unicode"`. Source: Lin 2004, ROUGE.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer: Any = _UnicodeWords() if words == "unicode" else DefaultTokenizer(stemmer)
    scorer = RougeScorer([variant], tokenizer=tokenizer)

    def score(completions: Sequence[str], references: Sequence[str | None]) -> list[float | None]:
        return [None if reference is None or not tokenizer.tokenize(reference) else
                float(getattr(scorer.score(reference, completion)[variant], measure))
                for completion, reference in zip(completions, references, strict=True)]

    return score
