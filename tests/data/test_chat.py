import json

import pytest

from rlaif.config.checks import UserError
from rlaif.config.prompts import ChatConfig
from rlaif.data.chat import (
    BadConversation,
    Turn,
    assistants_turn,
    conversation,
    judged_text,
    refuse_without_template,
    templated,
    text_fault,
)
from rlaif.modeling.models import word_tokenizer

CHATML = ("{% for message in messages %}"
          "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
          "<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
          "{% if add_generation_prompt %}<|assistant|>{% if quick is defined and quick %}!{% endif %}{% endif %}")
ASK = {"role": "user", "content": "red cat?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "so"}
AGAIN = {"role": "user", "content": "why"}


@pytest.fixture(scope="module")
def tokenizer():
    found = word_tokenizer(["red cat"], masked=False)
    found.chat_template = CHATML
    return found


def test_a_template_gets_the_messages_and_opens_the_assistants_turn(tokenizer):
    assert templated([ASK], tokenizer, ChatConfig()) == "<|user|>red cat?<|end|><|assistant|>"
    assert templated([ASK, ANSWER, AGAIN], tokenizer, ChatConfig()) == (
        "<|user|>red cat?<|end|><|assistant|>so<|end|><|user|>why<|end|><|assistant|>")


def test_the_configured_system_message_stands_before_messages_that_have_none(tokenizer):
    config = ChatConfig(system="Rhyme.")
    assert templated([ASK], tokenizer, config).startswith("<|system|>Rhyme.<|end|><|user|>red")
    assert templated([SYSTEM, ASK], tokenizer, config).startswith("<|system|>Be brief.<|end|><|user|>red")


def test_further_variables_reach_the_template(tokenizer):
    assert templated([ASK], tokenizer, ChatConfig(template_options={"quick": True})).endswith("<|assistant|>!")
    assert templated([ASK], tokenizer, ChatConfig(template_options={"quick": False})).endswith("<|assistant|>")


def test_what_a_template_refuses_is_said_in_its_own_words(tokenizer):
    with pytest.raises(BadConversation, match=r"^must suit the tokenizer's chat template, got: no tools here$"):
        templated([ASK, {"role": "tool", "content": "42"}], tokenizer, ChatConfig())


def test_a_template_that_leaves_out_what_the_user_says_is_refused():
    deaf = word_tokenizer(["red cat"], masked=False)
    deaf.chat_template = "{% for message in messages %}{{ message.role }}:{{ message.content[0].text }};{% endfor %}"
    with pytest.raises(BadConversation) as caught:
        templated([ASK], deaf, ChatConfig())
    assert str(caught.value) == "must be written out by the tokenizer's chat template, got no 'red cat?' in 'user:;'"
    deaf.chat_template = "{{ messages[-1].content | trim }}:"
    assert templated([{"role": "user", "content": " red cat\n"}], deaf, ChatConfig()) == "red cat:"


@pytest.mark.parametrize(("opened", "written", "turn"), [
    ("<bos>", "<bos>{a}<eos>", Turn("", "<eos>")),
    ("<bos>", "<bos> {a} <eos>\n", Turn(" ", " <eos>")),
    ("<bos>", "<bos>{a}<eos>\n<pad>", Turn("", "<eos>")),                          # as Phi-3 does
    ("<bos>", "<bos>[thoughts][]{a}<eos>", Turn("[thoughts][]", "<eos>")),          # as Qwen3 does
    ("<bos>[thoughts]", "<bos>{a}<eos>", Turn("", "<eos>")),                        # as R1 does
    ("<bos>", "<bos>{a}\n", Turn("", "")),
    ("<bos>", "<bos>{a}<bos>user:", Turn("", "")),                                  # the turn after it
])
def test_what_a_template_writes_around_an_answer(opened, written, turn):
    made = word_tokenizer(["red cat"], masked=False)
    before, after = written.split("{a}")
    made.chat_template = ("{% for m in messages %}{% if m.role == 'assistant' %}" + before + "{{ m.content }}" + after
                          + "{% else %}{{ m.content }};{% endif %}{% endfor %}"
                          + "{% if add_generation_prompt %}" + opened + "{% endif %}")
    prompt = templated([ASK], made, ChatConfig())
    assert prompt == "red cat?;" + opened
    assert assistants_turn([ASK], prompt, made, ChatConfig()) == turn


def test_a_template_that_leaves_out_the_answer_is_refused(tokenizer):
    deaf = word_tokenizer(["red cat"], masked=False)
    deaf.chat_template = "{{ messages[0].content }}:"
    with pytest.raises(BadConversation, match=r"chat template, got no answer of the assistant in 'red cat\?:'$"):
        assistants_turn([ASK], "red cat?:", deaf, ChatConfig())


@pytest.mark.parametrize(
    ("messages", "reads", "expected"),
    [
        ([ASK], "conversation", "red cat?"),
        ([ASK], "last_user", "red cat?"),
        ([SYSTEM, ASK, ANSWER, AGAIN], "last_user", "why"),
        ([SYSTEM, ASK, ANSWER, AGAIN], "conversation", "System: Be brief.\nUser: red cat?\nAssistant: so\nUser: why"),
        ([AGAIN, {"role": "tool", "content": "42"}], "last_user", "why"),
    ],
)
def test_a_judge_reads_the_conversation_or_its_last_question(messages, reads, expected):
    assert judged_text(messages, reads) == expected


def test_messages_are_taken_as_they_are_or_as_json_and_lose_only_what_is_null():
    given = [SYSTEM, {**ASK, "name": None}, ANSWER, {**AGAIN, "name": "Ann"}]
    expected = [SYSTEM, ASK, ANSWER, {**AGAIN, "name": "Ann"}]
    assert conversation(given) == conversation(json.dumps(given)) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "must hold a list of messages, one at least, got None"),
        ([], "must hold a list of messages, one at least, got []"),
        ("[]", "must hold a list of messages, one at least, got []"),
        ({"role": "user"}, "must hold a list of messages, one at least, got {'role': 'user'}"),
        ("hello", "must hold messages or JSON of them, got 'hello'"),
        (["hello"], "must hold messages of role and content, got 'hello' as message 0"),
        ([ASK, None], "must hold messages of role and content, got None as message 1"),
        ([{"from": "human", "value": "x"}], "must have roles of system, user, assistant, tool, got None in message 0"),
        ([ASK, {"role": "bot", "content": "x"}], "must have roles of system, user, assistant, tool, got 'bot' in "
                                                 "message 1"),
        ([{"role": "user", "content": None}], "must hold text, got None as content of message 0"),
        ([{"role": "user", "content": " \n"}], "must hold text, got ' \\n' as content of message 0"),
        ([{"role": "user", "content": [{"type": "image"}]}], "must hold text, got [{'type': 'image'}] as content of "
                                                             "message 0"),
        ([ASK, SYSTEM], "must have a system message at the front only, got one as message 1"),
        ([SYSTEM], "must have a message of the user, got the roles system"),
        ([ASK, ANSWER], "must end before the assistant's turn, which the policy writes, got an assistant message at "
                        "the end: 'so'"),
    ],
)
def test_messages_that_cannot_be_answered_are_refused_by_message(value, message):
    with pytest.raises(BadConversation) as caught:
        conversation(value)
    assert str(caught.value) == message


def test_a_text_must_say_something_that_can_be_written():
    assert text_fault("so") is None
    assert text_fault("\t") == "must hold text, got '\\t'"
    assert text_fault(7) == "must hold text, got 7"
    assert text_fault("x\ud800") == "must hold text that UTF-8 can write, got 'x\\ud800'"
    assert text_fault(["word"] * 99) == "must hold text, got " + repr(["word"] * 99)[:77] + "..."


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer):
    refuse_without_template(tokenizer, "prompts.train")
    with pytest.raises(UserError, match=r"^tokenizer must have a chat template for the messages of prompts.train, got "
                                        r"none in ''; take a chat model, or plain prompts"):
        refuse_without_template(word_tokenizer(["a"], masked=False), "prompts.train")
