"""One update from equal weights and an equal batch, TRL's and ours: rewards to advantages, loss and gradients.

TRL's trainers prepare the batch themselves from given completions and rewards, so that their advantages, reference
logprobs and normalisers are their own. Ours go from the same numbers through `estimate`, `token_weights` and
`policy_loss`. The logprobs before the update are moved off the policy's in some cases, for ratios to be clipped.

Where the two differ by definition:
- TRL divides by std + 1e-4, here it is std + 1e-6: where that is done, rewards (and the weights of parts) are a
  thousand times as large, so that the difference is below the tolerance.
- TRL multiplies the KL by the ratio unless told otherwise, which is `kl_unbiased`.
- `scale_rewards` of TRL is chosen by the estimator here: "group" is grpo, "none" is dr_grpo.
- `epsilon_high` of TRL's cispo is the cap of the ratio itself, and there is no lower bound: clip_high is one less and
  clip_low 1.
- TRL's entropy bonus is a mean over tokens whatever the loss's own mean is: compared where that is one over tokens.
- TRL's rloo has one ratio a completion, the product of its tokens': ratio product.
- TRL weighs by proximal / rollout probability where vLLM writes; here its trainer is told that vLLM did. Of its
  proximal logprobs, which it computes itself, ours are put in the place. "truncated" is also bounded below by it if
  asked to, here never.
- TRL's parts that are normalised one by one are normalised again over the batch: `whiten: batch`.
"""

import importlib.util

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlaif.config.algorithm import AlgorithmConfig
from rlaif.metrics import values
from rlaif.modeling.logprobs import token_logprobs
from rlaif.policy.controllers import MovingBaseline
from rlaif.policy.estimation import AdvantageInputs, estimate
from rlaif.policy.policy_loss import PolicyBatch, policy_loss, policy_loss_options
from rlaif.policy.token_weights import token_weights

pytestmark = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed (extra dev)")

TOLERANCE = 1e-5
TEMPERATURE, MAX_TOKENS, GROUP_SIZE = 0.7, 6, 4
PROMPTS = [[5, 9, 33, 12], [17, 40]]
SIZES = [6, 3, 1, 5, 2, 6, 4, 4]        # tokens of the completions, four a prompt
REWARDS = {"first": [1.2, -0.4, 0.0, 3.1, 0.55, -0.9, 2.0, 0.1], "second": [0.0, 7.0, 3.0, 0.2, 9.0, 1.0, 0.0, 5.0]}
GROUPS = [0] * GROUP_SIZE + [1] * GROUP_SIZE

# TRL's options, ours
GRPO_CASES = {
    "grpo": ({"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
             {"mean": "sequence", "kl_coefficient": 0.04}),
    "dr_grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none"},
                {"advantage": "dr_grpo", "mean": "constant", "kl_coefficient": 0.0}),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.02},
             {"clip_high": 0.28, "kl_coefficient": 0.02, "kl_unbiased": True}),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.2}, {"loss": "cispo", "clip_low": 1.0, "clip_high": 0.2,
                                                            "kl_coefficient": 0.0}),
    "gspo": ({"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04},
             {"ratio": "sequence", "mean": "sequence", "clip_low": 0.03, "clip_high": 0.04, "kl_coefficient": 0.0}),
    "dual_clip": ({"loss_type": "dapo", "delta": 1.3}, {"dual_clip": 1.3, "kl_coefficient": 0.0}),
    "entropy": ({"loss_type": "dapo", "entropy_coef": 0.05}, {"entropy_coefficient": 0.05, "kl_coefficient": 0.0}),
    "truncated": ({"loss_type": "dapo", "vllm_importance_sampling_mode": "token_truncate",
                   "vllm_importance_sampling_clip_max": 1.2},
                  {"importance": "truncate", "importance_cap": 1.2, "kl_coefficient": 0.0}),
    "truncated_sequence": ({"loss_type": "grpo", "vllm_importance_sampling_mode": "sequence_truncate",
                            "vllm_importance_sampling_clip_max": 1.2},
                           {"importance": "truncate", "importance_level": "sequence", "importance_cap": 1.2,
                            "mean": "sequence", "kl_coefficient": 0.0}),
    "masked": ({"loss_type": "dapo", "vllm_importance_sampling_mode": "token_mask",
                "vllm_importance_sampling_clip_min": 0.8, "vllm_importance_sampling_clip_max": 1.2, "beta": 0.02,
                "use_bias_correction_kl": False},
               {"importance": "mask", "importance_floor": 0.8, "importance_cap": 1.2, "kl_coefficient": 0.02}),
    "parts": ({"loss_type": "grpo", "multi_objective_aggregation": "normalize_then_sum",
               "reward_weights": [1000.0, 500.0]},
              {"parts": "separate", "whiten": "batch", "mean": "sequence", "kl_coefficient": 0.0}),
}
RLOO_CASES = {
    "rloo": ({"beta": 0.0}, {"kl_coefficient": 0.0}),
    "rloo_kl": ({"beta": 0.1}, {"kl_coefficient": 0.1, "kl_in": "reward", "kl_estimator": "k1"}),
    "rloo_whitened": ({"beta": 0.0, "normalize_advantages": True}, {"kl_coefficient": 0.0, "whiten": "batch"}),
}


def causal_lm(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, intermediate_size=48, max_position_embeddings=32,
                         initializer_range=0.3, attn_implementation="eager")
    return LlamaForCausalLM(config)


def completions():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(4, 64, (size,), generator=generator).tolist() for size in SIZES]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<eos>", "<unk>"] + [f"w{number}" for number in range(61)]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def reference_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    causal_lm(seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def trainer(tokenizer, reference_folder, tmp_path, monkeypatch):
    """Makes a TRL trainer of `kind`, grpo or rloo, that scores the completions above."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import trl
    from datasets import Dataset
    from trl.trainer.base_trainer import _BaseTrainer

    monkeypatch.setattr(_BaseTrainer, "_send_telemetry", lambda self: None)

    def make(kind, options, scale):
        config_type, trainer_type = {"grpo": (trl.GRPOConfig, trl.GRPOTrainer),
                                     "rloo": (trl.RLOOConfig, trl.RLOOTrainer)}[kind]
        model = causal_lm(seed=0)
        model.config._name_or_path = str(reference_folder)      # where TRL reads its reference model
        config = config_type(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            per_device_train_batch_size=len(SIZES), num_generations=GROUP_SIZE, max_completion_length=MAX_TOKENS,
            temperature=TEMPERATURE, **options)
        rewards = [lambda part=part, **_: part for part in rewards_at(scale).values()]
        made = trainer_type(model=model, reward_funcs=rewards[: len(options.get("reward_weights", "1"))],
                            args=config, processing_class=tokenizer,
                            train_dataset=Dataset.from_dict({"prompt": ["w1", "w2"]}))
        found = prompt_ids(), completions(), [""] * len(SIZES)
        sampled = None
        if "vllm_importance_sampling_mode" in options:
            made.use_vllm, sampled = True, rows_of(moved(seed=11))
        made._generate = lambda prompts: found if kind == "rloo" else (
            *found[:2], None, found[2], sampled, {}, None, [])
        made.current_gradient_accumulation_steps = 1        # what Trainer.train would set
        made.model.train()
        return made

    return make


def rewards_at(scale):
    return {name: [scale * reward for reward in part] for name, part in REWARDS.items()}


def prompt_ids():
    return [PROMPTS[group] for group in GROUPS]


def logprobs_and_entropy(model):
    """`[B, T]` each, zero behind a completion; every row alone, so without any padding."""
    logprobs, entropy = [], []
    for prompt, completion in zip(prompt_ids(), completions(), strict=True):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[:, len(prompt) - 1 : -1]
        logprobs.append(token_logprobs(logits, torch.tensor([completion]), temperature=TEMPERATURE)[0])
        log_p = torch.log_softmax(logits[0] / TEMPERATURE, dim=-1)
        entropy.append(-(log_p.exp() * log_p).sum(-1))
    pad = lambda rows: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # noqa: E731
    return pad(logprobs), pad(entropy)


def loss_mask():
    return torch.arange(MAX_TOKENS) < torch.tensor(SIZES).unsqueeze(1)


def rows_of(table):
    return [row[:size] for row, size in zip(table.tolist(), SIZES, strict=True)]


def our_update(options, proximal, reference_folder, scale):
    """Our advantages `[B, T]`, the loss, the gradient of every parameter by name, and what was measured."""
    model, mask, sizes, groups = causal_lm(seed=0), loss_mask(), torch.tensor(SIZES), torch.tensor(GROUPS)
    algorithm = AlgorithmConfig(**({"importance": "none"} | options))
    coefficient = algorithm.kl_coefficient
    reference = None
    if coefficient > 0:
        with torch.no_grad():
            reference = logprobs_and_entropy(LlamaForCausalLM.from_pretrained(reference_folder))[0]
    policy, entropy = logprobs_and_entropy(model)
    rewards = rewards_at(scale)
    estimated = estimate(AdvantageInputs(
        rewards=rewards["first"], group_index=GROUPS, num_tokens=SIZES, is_cut=[False] * 8, max_tokens=MAX_TOKENS,
        kl_coefficient=coefficient, proximal_logprobs=rows_of(policy.detach()),
        reference_logprobs=None if reference is None else rows_of(reference),
        reward_terms=[dict(zip(rewards, row, strict=True)) for row in zip(*rewards.values(), strict=True)],
        term_weights={"first": 1000.0, "second": 500.0}), algorithm, MovingBaseline())
    flat = torch.tensor([advantage for row in estimated.advantages for advantage in row])
    advantages = torch.zeros(mask.shape).masked_scatter(mask, flat)
    batch = PolicyBatch(
        policy_logprobs=policy, proximal_logprobs=proximal,
        rollout_logprobs=policy.detach() if algorithm.importance == "none" else moved(seed=11),
        reference_logprobs=reference, advantages=advantages, loss_mask=mask,
        token_weights=token_weights(algorithm.mean, sizes, groups, MAX_TOKENS), entropy=entropy)
    loss, metrics = policy_loss(batch, policy_loss_options(algorithm, coefficient))
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    return advantages, loss.item(), gradients, values(metrics)


def trl_update(made, proximal):
    """TRL's advantages `[B]`, the loss, and the gradient of every parameter by name."""
    with pytest.MonkeyPatch.context() as patch:
        if proximal is not None and getattr(made, "use_vllm", False):
            compute = made._get_per_token_logps_and_entropies
            patch.setattr(made, "_get_per_token_logps_and_entropies", lambda model, *inputs, **options: (
                (proximal, None, None) if model is made.model else compute(model, *inputs, **options)))
        inputs = made._generate_and_score_completions([{"prompt": ""}] * len(SIZES))
    if proximal is not None:
        inputs |= {"old_per_token_logps": proximal, "old_logps": proximal.sum(1)}
    made.model.zero_grad()
    loss = made.compute_loss(made.model, inputs)
    loss.backward()
    return inputs["advantages"], loss.item(), {name: weight.grad for name, weight in made.model.named_parameters()}


def assert_equal_updates(ours, theirs, is_off_policy):
    assert 0 < ours[3]["clip_share"] < 1 if is_off_policy else ours[3]["clip_share"] == 0
    for name in ("importance_truncated_share", "importance_masked_share"):
        assert 0 < ours[3].get(name, 0.5) < 1
    torch.testing.assert_close(ours[0][:, 0], theirs[0], rtol=TOLERANCE, atol=TOLERANCE)
    assert ours[1] == pytest.approx(theirs[1], rel=TOLERANCE, abs=TOLERANCE)
    assert ours[2].keys() == theirs[2].keys()
    largest = max(float(grad.abs().max()) for grad in theirs[2].values())
    assert largest > 1e-3       # there is something to compare
    for name, grad in ours[2].items():
        torch.testing.assert_close(grad, theirs[2][name], rtol=TOLERANCE, atol=TOLERANCE * largest, msg=name)


def drifted(is_off_policy):
    """Logprobs of an earlier policy, near enough for some ratios to be clipped and others not; None for the same."""
    return moved(seed=7) if is_off_policy else None


def moved(seed):
    """The policy's own logprobs `[B, T]`, each moved a little."""
    with torch.no_grad():
        now, _ = logprobs_and_entropy(causal_lm(seed=0))
    noise = 0.25 * torch.randn(now.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(loss_mask(), now + noise, 0.0)


@pytest.mark.parametrize("is_off_policy", [False, True], ids=["on_policy", "off_policy"])
@pytest.mark.parametrize("name", GRPO_CASES)
def test_an_update_is_that_of_trls_grpo_trainer(trainer, reference_folder, name, is_off_policy):
    theirs, ours = GRPO_CASES[name]
    proximal, scale = drifted(is_off_policy), 1.0 if name == "dr_grpo" else 1000.0
    assert_equal_updates(our_update(ours, proximal, reference_folder, scale),
                         trl_update(trainer("grpo", {"beta": 0.0} | theirs, scale), proximal), is_off_policy)


@pytest.mark.parametrize("is_off_policy", [False, True], ids=["on_policy", "off_policy"])
@pytest.mark.parametrize("name", RLOO_CASES)
def test_an_update_is_that_of_trls_rloo_trainer(trainer, reference_folder, name, is_off_policy):
    theirs, ours = RLOO_CASES[name]
    proximal, scale = drifted(is_off_policy), 1000.0 if name == "rloo_whitened" else 1.0
    options = {"advantage": "rloo", "ratio": "product", "mean": "sequence"} | ours
    assert_equal_updates(our_update(options, proximal, reference_folder, scale),
                         trl_update(trainer("rloo", theirs, scale), proximal), is_off_policy)
