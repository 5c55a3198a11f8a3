import dataclasses
import math

import pytest

from rlaif.config.checks import UserError
from rlaif.config.files import load, resolved_yaml
from rlaif.config.reward_options import OPTIONS, complete_options
from rlaif.config.reward_parts import KINDS, TIMED, RewardPartConfig
from rlaif.config.train import RewardConfig, RoleConfig
from rlaif.rewards.plan import plan_rewards
from rlaif.rewards.rules import RULES

JUDGE = RewardConfig(model="folder")
NO_JUDGE = dataclasses.replace(JUDGE, model=None)
NEEDED = {"regex": {"pattern": "a"}, "semantic_similarity": {"encoder": "e"}, "semantic_diversity": {"encoder": "e"},
          "length_penalty": {"longest": 9}}


def part(kind="bleu", **fields):
    return RewardPartConfig(kind=kind, **{"options": NEEDED.get(kind, {})} | fields)


@dataclasses.dataclass
class Holder:
    rewards: list[RewardPartConfig] = dataclasses.field(default_factory=list)


def from_yaml(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load(Holder, path)


def test_every_kind_of_rule_has_options_and_a_rule():
    assert tuple(OPTIONS) == tuple(kind for kind in KINDS if kind not in ("judge", "function"))
    assert set(RULES) == set(OPTIONS)
    assert set(TIMED) == {"function"} | {kind for kind, rule in RULES.items() if rule.may_hang}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_part_is_called_by_its_kind_and_completed_with_the_options_defaults(kind):
    found = part(kind)
    assert found.name == kind
    assert found.options == dataclasses.asdict(OPTIONS[kind](**NEEDED.get(kind, {})))
    assert dataclasses.replace(found) == found      # complete options are options


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "bleus"}, r"kind must be one of judge, function, exact_match, .*, got 'bleus'"),
        ({"name": "My part"}, "name must be of a-z, 0-9 and _, a letter first, got 'My part'"),
        ({"weight": math.nan}, "weight must be finite, got nan"),
        ({"weight": math.inf}, "weight must be finite, got inf"),
        ({"timeout_s": 0.0}, "timeout_s must be > 0, got 0.0"),
        ({"timeout_s": 30.0}, "timeout_s must be left at 60 unless kind is function, exact_match, regex or json_schem"),
        ({"kind": "judge", "timeout_s": 30.0}, "timeout_s must be left at 60 unless kind is function, exact_match, "),
        ({"max_skipped": -1}, "max_skipped must be >= 0, got -1"),
        ({"kind": "judge", "max_skipped": 1}, "max_skipped must be 0 with kind judge, got 1"),
        ({"function": "mine:it"}, "function must be null unless kind is function, got 'mine:it'"),
        ({"kind": "function"}, 'function must be "package.module:function", got None'),
        ({"kind": "function", "function": "mine.it"}, 'function must be "package.module:function", got \'mine.it\''),
        ({"kind": "function", "function": "mine:it()"}, "function must be .*, got 'mine:it\\(\\)'"),
        ({"transform": "log"}, "transform must be one of none, log_sigmoid, rank, clip, got 'log'"),
        ({"transform": "rank", "over": "row"}, "over must be one of group, batch, got 'row'"),
        ({"over": "batch"}, "over must be group unless transform is rank, or log_sigmoid without a center, got"),
        ({"transform": "log_sigmoid", "center": 0.0, "over": "batch"}, "over must be group unless"),
        ({"transform": "rank", "center": 0.0}, "center must be null unless transform is log_sigmoid, got 0.0"),
        ({"transform": "clip"}, "lowest must be or highest given with transform clip, and only with it, got None"),
        ({"lowest": 0.0}, "lowest must be or highest given with transform clip, and only with it, got 0.0"),
        ({"transform": "clip", "lowest": 1.0, "highest": 0.5}, "highest must be >= lowest 1.0, got 0.5"),
        ({"gate": "and"}, "gate must be one of none, multiply, positive_only, minimum, got 'and'"),
        ({"gate": "minimum"}, "gated_by must be names of parts with a gate, and empty without, got \\[\\]"),
        ({"gated_by": ["right"]}, "gated_by must be names of parts with a gate, and empty without, got \\['right'\\]"),
        ({"options": {"tokeniser": "char"}}, "options.tokeniser must be a known option, got an unknown one; did you "
                                             "mean options.tokenizer\\?"),
        ({"options": {"tokenizer": "words"}}, "options.tokenizer must be one of 13a, intl, zh, char, none, got 'wor"),
        ({"options": {"max_order": "four"}}, "options.max_order must be of another type, got 'four'"),
        ({"options": {"tokenizer": True}}, "options.tokenizer must not be true or false, got True"),
        ({"kind": "regex", "options": {}}, "options.pattern must be a regular expression, got None"),
        ({"kind": "length_penalty", "options": {}}, "options.longest must be given where shortest is 0, got None"),
        ({"kind": "length_penalty", "options": {"shortest": 5, "longest": 4}},
         "options.longest must be null or >= shortest 5, got 4"),
        ({"kind": "length_penalty", "options": {"longest": 4, "buffer": 0}}, "options.buffer must be > 0, got 0"),
        ({"kind": "format_tags", "options": {"tags": []}}, r"options.tags must be names, each once, got \[\]"),
        ({"kind": "format_tags", "options": {"tags": ["a b"]}}, "options.tags must be of letters, digits, _ and -"),
        ({"kind": "json_schema", "options": {"schema": {"type": "object"}, "schema_file": "f"}},
         "options.schema_file must be null where schema is given, got 'f'"),
        ({"kind": "rouge", "options": {"words": "unicode", "stemmer": True}}, "options.stemmer must be false with"),
        ({"kind": "semantic_diversity", "options": {}}, "options.encoder must be a Hugging Face name or folder, got"),
    ],
)
def test_a_wrong_part_is_refused_by_field_rule_and_value(fields, message):
    with pytest.raises(UserError, match=message):
        part(**fields)


def test_parts_are_read_from_yaml_with_every_kind_of_value(tmp_path):
    found = from_yaml(tmp_path, """
rewards:
- {kind: function, name: mine, function: "rewards.mine:count", options: {words: [a, b], deep: {hot: true}}, weight: 0.5}
- {kind: json_schema, options: {schema: {type: object, additionalProperties: false}}}
""").rewards
    assert found[0].options == {"words": ["a", "b"], "deep": {"hot": True}}
    assert found[1].options == {"schema": {"type": "object", "additionalProperties": False}, "schema_file": None,
                                "parsed_value": 0.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rewards: [{kind: bleu}, {kind: bleu, weigth: 1}]",
         r"rewards\[1\].weigth must be a known key, .* rewards\[1\].weight"),
        ("rewards: [{kind: bleu, options: {max_ordr: 1}}]", r"rewards\[0\].options.max_ordr must be a known option"),
        ("rewards: [{kind: bleu, weight: heavy}]", r"rewards\[0\].weight must be a number, got 'heavy'"),
    ],
)
def test_what_is_wrong_in_yaml_is_named_with_its_path(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        from_yaml(tmp_path, text)


def test_what_a_run_writes_down_is_read_back_equal(tmp_path):
    found = from_yaml(tmp_path, "rewards: [{kind: rouge}, {kind: regex, options: {pattern: 'x'}, weight: 2}]")
    assert from_yaml(tmp_path, resolved_yaml(found)) == found


def test_the_judge_of_reward_alone_is_the_plain_reward():
    plan = plan_rewards(JUDGE, [])
    assert [(found.name, found.kind, found.weight) for found in plan.parts] == [("esfp", "judge", 1.0)]
    assert (plan.judges[0].name, plan.judges[0].reward, plan.judges[0].placement) == ("esfp", JUDGE, None)
    assert plan.is_plain and plan.is_by_group and plan.functions == () and plan.weights == {"esfp": 1.0}


def test_parts_stand_beside_the_judge_of_reward():
    plan = plan_rewards(JUDGE, [part(weight=0.5), part("rouge", weight=0.0)], name="generative")
    assert [found.name for found in plan.parts] == ["generative", "bleu", "rouge"]
    assert [found.name for found in plan.functions] == ["bleu", "rouge"]
    assert plan.weights == {"generative": 1.0, "bleu": 0.5}
    assert not plan.is_plain


def test_an_entry_without_a_model_stands_for_the_judge_of_reward():
    plan = plan_rewards(JUDGE, [part(), part("judge", name="quality", weight=0.25, transform="rank")])
    assert [found.name for found in plan.parts] == ["bleu", "quality"]
    assert [(judge.name, judge.reward, judge.placement) for judge in plan.judges] == [("quality", JUDGE, None)]


def test_several_judges_have_models_and_places_of_their_own():
    own = {"model": "other", "compare": "reference", "engine": {"max_model_len": 99}, "placement": {"num_gpus": 0.5}}
    plan = plan_rewards(JUDGE, [part("judge", name="second", options=own)])
    assert [judge.name for judge in plan.judges] == ["esfp", "second"]
    second = plan.judges[1].reward
    assert type(second) is RewardConfig
    assert (second.model, second.compare, second.engine.max_model_len) == ("other", "reference", 99)
    assert plan.judges[1].placement == RoleConfig(num_gpus=0.5)


def test_parts_replace_the_judge_where_reward_names_none():
    plan = plan_rewards(NO_JUDGE, [part()])
    assert [found.name for found in plan.parts] == ["bleu"] and plan.judges == ()
    assert not plan.is_plain


@pytest.mark.parametrize(
    ("reward", "parts", "message"),
    [
        (NO_JUDGE, [], "reward.model must name a judge where rewards is empty, got null; give either"),
        (NO_JUDGE, [part("judge")], r"rewards\[0\].options.model must be given where reward.model is null, got noth"),
        (JUDGE, [part(), part()], r"rewards\[1\].name must be one of its own, got 'bleu'"),
        (JUDGE, [part(name="esfp")], r"rewards\[0\].name must be one of its own, got 'esfp'"),
        (JUDGE, [part("judge"), part("judge", name="two")], "rewards must hold one judge without options.model"),
        (JUDGE, [part("judge", options={"dtype": "bfloat16"})], r"rewards\[0\].options must be empty without"),
        (JUDGE, [part("judge", options={"model": "m", "compare": "all"})],
         r"rewards\[0\].options.compare must be one of group, reference, got 'all'"),
        (JUDGE, [part("judge", weight=0.0)], "rewards must hold a part whose weight is not 0, got none"),
        (JUDGE, [part(gate="minimum", gated_by=["right"])],
         r"rewards\[0\].gated_by must name other parts \(esfp\), got 'right'"),
        (JUDGE, [part(gate="minimum", gated_by=["bleu"])], r"rewards\[0\].gated_by must name other parts \(esfp\)"),
        (NO_JUDGE, [part(gate="minimum", gated_by=["a"])], r"gated_by must name other parts \(of which there are no"),
        (JUDGE, [part(gate="multiply", gated_by=["esfp"], transform="log_sigmoid")],
         r"rewards\[0\].gate must be minimum or positive_only between parts with log_sigmoid, whose values are"),
        (NO_JUDGE, [part(gate="multiply", gated_by=["rouge"]), part("rouge", transform="log_sigmoid")],
         r"rewards\[0\].gate must be minimum or positive_only"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(reward, parts, message):
    with pytest.raises(UserError, match=message):
        plan_rewards(reward, parts)


def test_a_batch_can_be_combined_by_itself_unless_a_part_looks_at_the_whole_step():
    assert plan_rewards(JUDGE, [part(transform="rank")]).is_by_group
    assert not plan_rewards(JUDGE, [part(transform="rank", over="batch")]).is_by_group


def test_without_a_group_transforms_that_compare_are_left_out():
    plan = plan_rewards(NO_JUDGE, [part(transform="rank", over="batch"), part("rouge", transform="log_sigmoid"),
                                   part(name="c", transform="log_sigmoid", center=0.5),
                                   part(name="d", transform="clip", lowest=0.0)])
    assert [found.transform for found in plan.without_comparison().parts] == ["none", "none", "log_sigmoid", "clip"]
    assert plan.without_comparison().is_by_group


def test_the_fingerprint_follows_what_decides_a_reward_only():
    first = plan_rewards(JUDGE, [part()]).fingerprint()
    assert first == plan_rewards(JUDGE, [part(max_skipped=3)]).fingerprint()
    assert (plan_rewards(JUDGE, [part("regex")]).fingerprint()
            == plan_rewards(JUDGE, [part("regex", timeout_s=1.0)]).fingerprint())
    others = [plan_rewards(JUDGE, [part(**change)]).fingerprint() for change in (
        {"weight": 2.0}, {"options": {"max_order": 2}}, {"transform": "rank"}, {"name": "b"})]
    assert len({first, *others}) == 5


def test_options_of_any_dataclass_are_completed():
    assert complete_options(RoleConfig, {"num_actors": 2}) == RoleConfig(num_actors=2)
    with pytest.raises(UserError, match=r"options.num_cpus must be > 0, got 0"):
        complete_options(RoleConfig, {"num_cpus": 0})
