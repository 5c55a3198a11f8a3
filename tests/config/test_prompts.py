import pytest

from rlaif.config.checks import UserError
from rlaif.config.files import load, resolved_yaml
from rlaif.config.prompts import (
    ChatConfig,
    CurriculumConfig,
    PromptsConfig,
    PromptSourceConfig,
)
from rlaif.config.train import TrainConfig

REST = "output_dir: out\nreward: {model: folder}\nprompts: {%s}\n"
NAN = float("nan")


@pytest.fixture
def loaded(tmp_path):
    def load_prompts(prompts, *overrides):
        (tmp_path / "config.yaml").write_text(REST % prompts)
        config = load(TrainConfig, tmp_path / "config.yaml", overrides)
        (tmp_path / "whole.yaml").write_text(resolved_yaml(config))
        assert load(TrainConfig, tmp_path / "whole.yaml") == config
        return config.prompts
    return load_prompts


def test_the_simple_form_is_one_set_with_the_columns_that_are_named(loaded):
    config = loaded("train: a.jsonl, test: b.jsonl, num_test: 3, prompt_column: q")
    assert config.sets("train") == {"prompts.train": PromptSourceConfig("a.jsonl", columns={"prompt": "q"})}
    assert config.sets("test") == {"prompts.test": PromptSourceConfig("b.jsonl", columns={"prompt": "q"}, num_rows=3)}
    assert not config.has_references
    config = loaded("train: a, test: b, messages_column: m, reference_column: r")
    assert config.sets("train")["prompts.train"].columns == {"messages": "m", "reference": "r"}
    assert config.has_references


def test_sets_have_keys_columns_and_weights_of_their_own(loaded):
    config = loaded("sources: [{path: a, weight: 2, columns: {prompt: q, id: i}}, {path: hub:x/y, subset: main, "
                    "revision: abc, split: train, columns: {messages: m, reference: r}}], test: b")
    sets = config.sets("train")
    assert list(sets) == ["prompts.sources[0]", "prompts.sources[1]"]
    assert [source.columns for source in sets.values()] == [{"prompt": "q", "id": "i"},
                                                            {"messages": "m", "reference": "r"}]
    assert [source.weight for source in sets.values()] == [2.0, 1.0]
    assert (sets["prompts.sources[1]"].subset, sets["prompts.sources[1]"].revision) == ("main", "abc")
    assert not config.has_references
    assert loaded("sources: [{path: a}], test: b, reference_column: r, messages_column: m").sets("train")[
        "prompts.sources[0]"].columns == {"reference": "r", "messages": "m"}


def test_options_of_a_template_keep_their_types(loaded):
    config = loaded("train: a, test: b, messages_column: m, chat: {system: so, template_options: {think: false, n: 3}}")
    assert config.chat == ChatConfig(system="so", template_options={"think": False, "n": 3})


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("train: a", "prompts.test must be given, got nothing; name a file, or sets under prompts.test_sources"),
        ("test: a", "prompts.train must be given, got nothing; name a file, or sets under prompts.sources"),
        ("train: a, sources: [{path: b}], test: c", "prompts.train must be null beside sources, got 'a'"),
        ("num_train: 5, sources: [{path: b}], test: c", "prompts.num_train must be null beside sources, which have "
                                                        "num_rows, got 5"),
        ("sources: [{weight: 2}], test: c", "prompts.sources[0].path must be given, got nothing; set it in "),
        ("sources: [{path: a, weight: 0}], test: c", "prompts.sources[0].weight must be > 0, got 0.0"),
        ("sources: [{path: a, weigth: 1}], test: c", "prompts.sources[0].weigth must be a known key, got an unknown "
                                                     "one; did you mean prompts.sources[0].weight?"),
        ("sources: [{path: a, num_rows: 0}], test: c", "prompts.sources[0].num_rows must be > 0 or null, got 0"),
        ("sources: [{path: a, columns: {question: q}}], test: c",
         "prompts.sources[0].columns must be a mapping of prompt, messages, reference, source, id, sample_weight "
         "only, got 'question'"),
        ("sources: [{path: a, columns: {prompt: q, messages: m}}], test: c",
         "prompts.sources[0].columns must be of prompt or messages, not both, got"),
        ("sources: [{path: a, revision: main}], test: c",
         "prompts.sources[0].revision must be null unless path is hub:<owner>/<name>, got 'main'"),
        ("train: a, test_sources: [{path: a, weight: 2}]",
         "prompts.test_sources[0].weight must be 1, every test prompt is asked once, got 2.0"),
        ("train: a, test: b, chat: {system: so}", "prompts.chat.system must be null without a column of messages and "
                                                  "without chat.wrap_prompts, got 'so'"),
        ("train: a, test: b, chat: {judge_reads: all}", "prompts.chat.judge_reads must be one of conversation, "
                                                        "last_user, got 'all'"),
        ("train: a, test: b, chat: {template_options: {tokenize: true}}",
         "prompts.chat.template_options must be a mapping of names other than conversation, "),
        ("train: a, test: b, curriculum: {prefer: hard}", "prompts.curriculum.prefer must be one of none, bounds, "
                                                          "middle, got 'hard'"),
    ],
)
def test_what_does_not_go_together_is_refused_with_its_whole_path(loaded, prompts, message):
    with pytest.raises(UserError) as caught:
        loaded(prompts)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        (CurriculumConfig, "high", [0.0, -1.0, NAN]),
        (CurriculumConfig, "outside", [-0.1, 1.1, NAN]),
        (CurriculumConfig, "decay", [-0.1, 1.0, NAN]),
        (ChatConfig, "system", ["", " "]),
        (PromptsConfig, "too_long", ["cut"]),
        (PromptsConfig, "max_bad_rows", [-1]),
        (PromptSourceConfig, "weight", [-1.0, NAN, float("inf")]),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_field(kind, field, values):
    for value in values:
        with pytest.raises(UserError, match=f"^{field} must be "):
            kind(**{field: value})
