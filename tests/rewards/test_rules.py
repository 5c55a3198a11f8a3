import pytest
import torch
from transformers import BertConfig, BertModel

from rlaif.config.checks import UserError
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.metrics import Sum
from rlaif.modeling.models import word_tokenizer
from rlaif.rewards.rules import RULES, check_rules, make_rule

COLUMNS = {"prompts": ["p"] * 3, "completions": ["a b c", "c b a", "<a>x</a>"], "references": ["a b c", "a b", None],
           "sources": ["s"] * 3, "finish_reasons": ["stop"] * 3, "num_tokens": [3, 5, 1], "group_ids": [7, 7, 9],
           "samples": [0, 1, 0]}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = word_tokenizer(["a b c"], masked=True)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                         intermediate_size=8, max_position_embeddings=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def part(kind, **options):
    return RewardPartConfig(kind=kind, name="mine", options=options)


def judged(kind, **options):
    return make_rule(kind, part(kind, **options).options)(COLUMNS)


def test_every_rule_is_made_of_its_options_and_reads_its_own_columns():
    assert judged("exact_match") == ([1.0, 0.0, None], {})
    assert judged("regex", pattern="^a") == ([1.0, 0.0, 0.0], {})
    assert judged("format_tags", tags=["a"]) == ([0.0, 0.0, 1.0], {})
    assert judged("json_schema", schema={"type": "string"}) == ([0.0] * 3, {})
    assert judged("length_penalty", longest=3, buffer=4) == ([0.0, -0.5, 0.0], {})
    assert judged("repetition_penalty", size=1) == ([0.0] * 3, {})
    assert judged("bleu", max_order=1) == ([pytest.approx(1.0), pytest.approx(2 / 3), None], {})
    assert judged("rouge", variant="rouge1") == ([1.0, pytest.approx(0.8), None], {})


def test_rules_by_an_encoder_also_count_what_they_cut(encoder):
    options = {"encoder": encoder, "max_tokens": 4}
    values, metrics = judged("semantic_similarity", **options)
    assert values[0] == pytest.approx(1.0, abs=1e-6) and values[2] is None
    assert metrics == {"texts_cut": Sum(3)}       # both completions and the first reference have more than two words
    values, _ = judged("semantic_diversity", **options)
    assert values[0] == pytest.approx(values[1], abs=1e-6) and values[2] is None


def test_rules_that_follow_each_other_share_an_encoder(encoder):
    options = part("semantic_similarity", encoder=encoder).options
    first, second = (RULES[kind].make(**options) for kind in ("semantic_similarity", "semantic_diversity"))
    assert first.args[0] is second.args[0]


def test_rules_that_run_patterns_of_the_users_have_a_time_limit():
    assert {kind for kind, rule in RULES.items() if rule.may_hang} == {"exact_match", "regex", "json_schema"}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bleu", {}, "prompts.reference_column must be given with reward part mine of kind bleu, got null"),
        ("regex", {"pattern": "("}, r"options of reward part mine: pattern must be a regular expression, got '\('"),
        ("json_schema", {"schema": {"type": "text"}}, "options of reward part mine: schema must be a JSON Schema"),
        ("json_schema", {"schema_file": "absent.json"}, "options of reward part mine: schema_file must hold"),
        ("semantic_diversity", {"encoder": "./absent"}, "options.encoder of reward part mine must be a model folder"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_before_anything_starts(kind, options, message):
    with pytest.raises(UserError, match=message):
        check_rules([part(kind, **options)], has_references=False)


def test_an_encoder_must_reach_as_far_as_it_is_asked_to(encoder):
    check_rules([part("semantic_similarity", encoder=encoder, max_tokens=16)], has_references=True)
    with pytest.raises(UserError, match=r"options.max_tokens of reward part mine must be at most the 16 tokens that"):
        check_rules([part("semantic_diversity", encoder=encoder)], has_references=True)


def test_functions_and_judges_are_no_rules():
    check_rules([RewardPartConfig(), RewardPartConfig(kind="function", function="a:b")], has_references=False)
