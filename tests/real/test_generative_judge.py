"""The generative judge on the real engine: its probabilities against a Hugging Face forward of the same model."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import pytest
import ray
import torch

from actors.cluster.placement import Placement
from actors.judging.generative_judge import GenerativeJudgeActor
from rlaif.config.train import EngineConfig
from rlaif.esfp.generative_judge import ask, compile_question, judge, label_mass, with_reasoning
from rlaif.esfp.generative_spec import GenerativeSpec, JudgeQuestion
from rlaif.esfp.reward_model import Texts
from rlaif.esfp.slots import Slot
from rlaif.modeling.models import load_causal_lm, load_tokenizer
from tests.real.conftest import START, role

POLICY = str(START / "policy")
SLOT = Slot("verdict", [["true", "in"], ["on"], ["a"]], [1.0, 0.5, -1.0], weight=2.0)
SPEC = GenerativeSpec(JudgeQuestion("{prompt} : {completion} {explanation} Say that must be "), SLOT, POLICY,
                      max_tokens=48)
PAIR = GenerativeSpec(JudgeQuestion("{prompt} in: {completion} on: {other}", closing=" Say that must be "),
                      Slot("better", [["in"], ["on"]], [1.0, 0.0], kind="pairwise"), POLICY, max_tokens=64)
REASONED = dataclasses.replace(SPEC, question=JudgeQuestion("{prompt} : {completion}", closing=". Say that must be "),
                               max_reasoning_tokens=5)
ENGINE = EngineConfig(gpu_memory_utilization=0.2)

NOUNS = ["owl", "landscape", "fox", "rabbit", "shop", "doll", "valley", "boutique", "violin", "atlas", "guitar", "kite"]
TEXTS = Texts([f"Say something that must be true : a {noun}" for noun in NOUNS] * 2,
              [f"A pale {noun} eats a pear." for noun in reversed(NOUNS)] + ["", "<eos>", "true " * 60] * 4)


@pytest.fixture(scope="module")
def model():
    return load_causal_lm(POLICY, "float32").eval()


@contextlib.contextmanager
def placed(actor_class, name: str, *arguments) -> Iterator:
    placement = Placement({name: role("explainer")}, "PACK", 60)
    actor = actor_class.options(**placement.options(name, 0)).remote(*arguments)
    try:
        ray.get(actor.ready.remote(), timeout=120)
        yield actor
    finally:
        placement.remove()


def judge_actor(spec: GenerativeSpec, name: str):
    return placed(GenerativeJudgeActor, name, spec, ENGINE, role("explainer").num_gpus, 0)


@pytest.fixture(scope="module")
def judging(local_ray: None):
    with judge_actor(SPEC, "judge") as actor:
        yield actor


@torch.no_grad()
def next_logprobs(model, ids: Sequence[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([list(ids)])).logits[0, -1].float().log_softmax(-1)


def reference(model, compiled, asked: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.stack([next_logprobs(model, ids)[list(compiled.label_ids)] for ids in asked])


@ray.remote
class Door:
    """The engine itself, asked about different labels at once while it writes."""

    def __init__(self) -> None:
        from actors.engines.engine import Engine

        self._engine = Engine(POLICY, dataclasses.replace(ENGINE, max_model_len=64), seed=0,
                              num_gpus=role("explainer").num_gpus)

    async def ready(self) -> None:
        pass

    async def ask(self, rows: list[list[int]], label_ids: list[list[int]]) -> list[list[float]]:
        writing = [self._engine.generate(row, max_tokens=8, temperature=1.0, seed=3, with_logprobs=True)
                   for row in rows[:5]]
        found = await asyncio.gather(*map(self._engine.label_logprobs, rows, label_ids), *writing)
        return found[: len(rows)]


def test_label_logprobs_are_those_of_transformers_whatever_else_the_engine_does(local_ray: None, model) -> None:
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.config.vocab_size
    rows = [torch.randint(4, vocab_size, (1 + n % 40,), generator=generator).tolist() for n in range(48)]
    # Of different lengths, with id 0 and, in the last, the whole vocabulary in another order.
    labels = [torch.randperm(vocab_size, generator=generator)[: 1 + n % 7].tolist() + [0] * (n % 2) for n in range(47)]
    labels = [list(dict.fromkeys(ids)) for ids in labels] + [torch.randperm(vocab_size, generator=generator).tolist()]
    with placed(Door, "door") as door:
        found = ray.get(door.ask.remote(rows, labels))
    for row, ids, logprobs in zip(rows, labels, found, strict=True):
        torch.testing.assert_close(torch.tensor(logprobs), next_logprobs(model, row)[ids], rtol=0, atol=1e-4)
    assert abs(torch.tensor(found[-1]).exp().sum().item() - 1) < 1e-4


def test_scores_are_those_of_transformers_and_what_was_cut_is_counted(judging, model) -> None:
    scored, metrics = ray.get(judging.score_texts.remote(TEXTS))
    compiled = compile_question(SPEC, load_tokenizer(POLICY))
    questions = ask(compiled, TEXTS)
    logprobs = reference(model, compiled, questions.input_ids)
    expected = judge(compiled, questions, logprobs)
    torch.testing.assert_close(scored.probabilities, expected.probabilities, rtol=0, atol=1e-4)
    torch.testing.assert_close(scored.reward, expected.reward, rtol=0, atol=2e-4)
    torch.testing.assert_close(scored.reward, 2 * scored.slot_scores[:, 0])
    assert scored.reward.std() > 0.01, "the rows must be told apart"
    assert scored.num_truncated == metrics["judge_inputs_cut"].value == 4
    assert abs(metrics["judge_label_mass"].value - label_mass(logprobs).mean().item()) < 1e-4
    assert abs(metrics["judge_label_mass_min"].value - label_mass(logprobs).min().item()) < 1e-4


def test_a_score_depends_on_its_row_alone(judging) -> None:
    whole, _ = ray.get(judging.score_texts.remote(TEXTS))
    alone, _ = ray.get(judging.score_texts.remote(Texts(TEXTS.prompts[3:4], TEXTS.completions[3:4])))
    torch.testing.assert_close(alone.reward, whole.reward[3:4], rtol=0, atol=1e-5)
    twice, _ = ray.get(judging.score_texts.remote(Texts(TEXTS.prompts[3:4] * 2, TEXTS.completions[3:4] * 2)))
    assert twice.reward[0] == twice.reward[1]
    none, metrics = ray.get(judging.score_texts.remote(Texts([], [])))
    assert none.reward.shape == (0,) and metrics["judge_label_mass"].value is None


def test_explanations_are_read_and_averaged(judging) -> None:
    prompts, completions = TEXTS.prompts[:1] * 3, TEXTS.completions[:1] * 3
    reasons = ["a pear in a shop", "a red hat on a fox"]
    scored, _ = ray.get(judging.score_texts.remote(
        Texts(prompts, completions, [[reasons[0]], [reasons[1]], reasons])))
    assert abs(scored.reward[0] - scored.reward[1]) > 1e-3
    torch.testing.assert_close(scored.reward[2], (scored.reward[0] + scored.reward[1]) / 2, rtol=0, atol=1e-5)


def test_the_version_follows_the_specification_and_the_weights(judging, local_ray: None, model) -> None:
    version = ray.get(judging.version.remote())
    assert len(version) == 16 and int(version, 16) >= 0
    assert ray.get(judging.version.remote()) == version
    with judge_actor(PAIR, "pair") as pair:
        assert ray.get(pair.version.remote()) != version
        check_a_pair_in_both_orders(pair, model)


def check_a_pair_in_both_orders(actor, model) -> None:
    others = list(reversed(TEXTS.completions[:12]))
    texts = Texts(TEXTS.prompts[:12], TEXTS.completions[:12], others=others)
    there, _ = ray.get(actor.score_texts.remote(texts))
    back, _ = ray.get(actor.score_texts.remote(texts.swapped()))
    torch.testing.assert_close(there.reward + back.reward, torch.ones(12), rtol=0, atol=1e-5)
    compiled = compile_question(PAIR, load_tokenizer(POLICY))
    asked = ask(compiled, texts)
    expected = judge(compiled, asked, reference(model, compiled, asked.input_ids))
    torch.testing.assert_close(there.reward, expected.reward, rtol=0, atol=1e-4)


def test_a_verdict_after_reasoning_is_read_behind_what_the_judge_wrote(local_ray: None, model) -> None:
    texts = Texts(TEXTS.prompts[:12], TEXTS.completions[:12])
    with judge_actor(REASONED, "reasoned") as actor:
        scored, metrics = ray.get(actor.score_texts.remote(texts))
    compiled = compile_question(REASONED, load_tokenizer(POLICY))
    questions = ask(compiled, texts)
    asked, num_cut, num_tokens = [], 0, 0
    for question in questions.input_ids:
        reasoning: list[int] = []
        while len(reasoning) < 5 and model.config.eos_token_id not in reasoning:
            reasoning.append(int(next_logprobs(model, [*question, *reasoning]).argmax()))
        num_cut += model.config.eos_token_id not in reasoning
        num_tokens += len(reasoning)
        asked.append(with_reasoning(compiled, question, reasoning))
    expected = judge(compiled, questions, reference(model, compiled, asked))
    torch.testing.assert_close(scored.probabilities, expected.probabilities, rtol=0, atol=1e-4)
    assert metrics["judge_reasonings_cut"].value == num_cut > 0
    assert metrics["judge_reasoning_tokens"].total == num_tokens
    assert metrics["judge_reasonings_empty"].value == 0


def test_a_question_that_does_not_fit_the_model_is_refused_in_one_line(local_ray: None) -> None:
    wrong = dataclasses.replace(SPEC, slot=Slot("verdict", [["Zebra"], ["on"]], [1.0, 0.0]))
    message = "label word 'Zebra' of slot verdict must be one token"
    with pytest.raises(ray.exceptions.RayActorError, match=message), judge_actor(wrong, "wrong"):
        pass
