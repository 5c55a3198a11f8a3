import math
from functools import lru_cache

import pytest

from rlaif.rewards.reference_rules import bleu_scorer, rouge_scorer

PAIRS = [("the cat sat on the mat", "the cat is on the mat"), ("a dog", "a cat sat"), ("on the mat", "the mat on"),
         ("the the the", "the cat"), ("nothing alike", "other words here")]


def test_bleu_by_hand():
    score = bleu_scorer()
    # All n-grams of "a b c" are in "a b c d", none is longer than 3: only the brevity penalty, exp(1 - 4/3), is left.
    assert score(["a b c"], ["a b c d"]) == pytest.approx([math.exp(-1 / 3)])
    # 2/3 of the words, 1/2 of the pairs, no triple: that order counts 1/2 of one.
    assert score(["a b d"], ["a b c"]) == pytest.approx([(2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)])
    assert score(["a b c d", "", "x"], ["a b c d", "a b", None]) == pytest.approx([1.0, 0.0, None])


def plain_bleu(completion, reference, max_order=4):
    """Sentence BLEU with effective order and exponential smoothing, by counting."""
    mine, theirs = completion.split(), reference.split()
    logs, missed = [], 0
    for order in range(1, max_order + 1):
        grams = [tuple(mine[start : start + order]) for start in range(len(mine) - order + 1)]
        others = [tuple(theirs[start : start + order]) for start in range(len(theirs) - order + 1)]
        if not grams:
            break
        right = sum(min(grams.count(gram), others.count(gram)) for gram in set(grams))
        if order == 1 and not right:
            return 0.0
        missed += not right
        logs.append(math.log((right or 0.5**missed) / len(grams)))
    return math.exp(sum(logs) / len(logs) + min(0.0, 1 - len(theirs) / len(mine)))


@pytest.mark.parametrize(("completion", "reference"), PAIRS)
def test_bleu_agrees_with_a_count_of_n_grams(completion, reference):
    assert bleu_scorer()([completion], [reference]) == pytest.approx([plain_bleu(completion, reference)], abs=1e-9)
    assert bleu_scorer(max_order=2)([completion], [reference]) == pytest.approx(
        [plain_bleu(completion, reference, 2)], abs=1e-9)


def test_bleu_reads_what_its_options_say():
    assert bleu_scorer()(["The Cat"], ["the cat"]) == [0.0]
    assert bleu_scorer(ignore_case=True)(["The Cat"], ["the cat"]) == pytest.approx([1.0])
    assert bleu_scorer()(["我是猫"], ["我是狗"]) == [0.0]
    assert bleu_scorer(tokenizer="zh")(["我是猫"], ["我是狗"])[0] > 0.5
    assert bleu_scorer(tokenizer="intl")(["a-b"], ["a - b"]) == pytest.approx([1.0])


def test_rouge_by_hand():
    completion, reference = ["a b x c"], ["a b c d"]        # in order: a b c; pairs in common: a-b
    assert rouge_scorer(variant="rougeL")(completion, reference) == pytest.approx([0.75])
    assert rouge_scorer(variant="rouge1")(completion, reference) == pytest.approx([0.75])
    assert rouge_scorer(variant="rouge2")(completion, reference) == pytest.approx([1 / 3])
    assert rouge_scorer(variant="rouge1", measure="recall")(["a b"], ["a b c d"]) == pytest.approx([0.5])
    assert rouge_scorer(variant="rouge1", measure="precision")(["a b"], ["a b c d"]) == pytest.approx([1.0])


def plain_rouge_l(completion, reference):
    mine, theirs = completion.split(), reference.split()

    @lru_cache(None)
    def common(i, j):
        if i == len(mine) or j == len(theirs):
            return 0
        return 1 + common(i + 1, j + 1) if mine[i] == theirs[j] else max(common(i + 1, j), common(i, j + 1))

    found = common(0, 0)
    return 2 * found / (len(mine) + len(theirs))


@pytest.mark.parametrize(("completion", "reference"), PAIRS)
def test_rouge_agrees_with_the_longest_common_words_in_order(completion, reference):
    assert rouge_scorer()([completion], [reference]) == pytest.approx([plain_rouge_l(completion, reference)])


def test_a_reference_without_a_word_that_counts_is_not_judged():
    assert rouge_scorer()(["so", "我", ""], [None, "我是猫", "..."]) == [None, None, None]
    assert rouge_scorer(words="unicode")(["я кот", ""], ["я Кот", "cat"]) == pytest.approx([1.0, 0.0])


def test_english_endings_are_cut_off_where_asked_for():
    assert rouge_scorer()(["running cats"], ["runs cat"]) == [0.0]
    assert rouge_scorer(stemmer=True)(["running cats"], ["runs cat"]) == pytest.approx([1.0])
