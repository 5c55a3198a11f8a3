"""Chat messages: checked, put through the tokenizer's chat template for the policy, and as plain text for a judge.

A conversation is a list of {role, content}: a system message at most, at the front, then user, assistant and tool
messages, of which the last is not the assistant's: the policy writes that one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlaif.config.checks import UserError
from rlaif.config.prompts import ChatConfig

ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, Any]
MARK = "\u2e28answer\u2e29"     # stands for an answer: no template and no text has it


class BadConversation(ValueError):
    """What is wrong with a conversation, as "must ..., got ..."; who knows file, row and column puts them before it."""


def shown(value: Any, limit: int = 80) -> str:
    """A value of the data in an error: one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def text_fault(value: Any) -> str | None:
    """What is wrong with a text that must say something, as "must ..., got ..."; None if nothing is."""
    if not isinstance(value, str) or not value.strip():
        return f"must hold text, got {shown(value)}"
    try:
        value.encode()
    except UnicodeEncodeError:      # half of a pair of surrogates, which JSON can spell
        return f"must hold text that UTF-8 can write, got {shown(value)}"
    return None


def conversation(value: Any) -> list[Message]:
    """The messages in a value of the data: a list of {role, content}, or that as JSON text. Keys without a value are
    left out, further ones (such as a name) are kept for the template.

    Raises BadConversation: no list, empty, a message without role or text, an unknown role, a system message that is
    not the first, no user message, or the assistant's at the end.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise BadConversation(f"must hold messages or JSON of them, got {shown(value)}") from None
    if not isinstance(value, list) or not value:
        raise BadConversation(f"must hold a list of messages, one at least, got {shown(value)}")
    messages = [_message(number, message) for number, message in enumerate(value)]
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise BadConversation(f"must have a system message at the front only, got one as message "
                              f"{roles.index('system', 1)}")
    if "user" not in roles:
        raise BadConversation(f"must have a message of the user, got the roles {', '.join(roles)}")
    if roles[-1] == "assistant":
        raise BadConversation("must end before the assistant's turn, which the policy writes, got an assistant message "
                              f"at the end: {shown(messages[-1]['content'])}")
    return messages


def _message(number: int, message: Any) -> Message:
    if not isinstance(message, dict):
        raise BadConversation(f"must hold messages of role and content, got {shown(message)} as message {number}")
    if message.get("role") not in ROLES:
        raise BadConversation(f"must have roles of {', '.join(ROLES)}, got {shown(message.get('role'))} in message "
                              f"{number}")
    fault = text_fault(message.get("content"))
    if fault:
        raise BadConversation(f"{fault} as content of message {number}")
    return {name: value for name, value in message.items() if value is not None}


def judged_text(messages: Sequence[Message], reads: str) -> str:
    """What a judge reads as the prompt: the last message of the user (`reads` = "last_user"), or all messages with a
    line "Role: content" each; one user message alone is its content."""
    if reads == "last_user":
        return next(message["content"] for message in reversed(messages) if message["role"] == "user")
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def refuse_without_template(tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    """Raises UserError if `tokenizer` has no chat template."""
    if not tokenizer.chat_template:
        raise UserError(f"tokenizer must have a chat template for the messages of {key}, got none in "
                        f"{tokenizer.name_or_path!r}; take a chat model, or plain prompts without prompts.chat")


def templated(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, config: ChatConfig) -> str:
    """The text that the policy goes on from: `messages`, the system message of `config` before them unless they have
    their own, through the chat template, up to where the assistant's turn begins.

    Special tokens are in it: it is tokenized without further ones. Raises BadConversation with the template's own
    words where it refuses the messages, and where it leaves out what the user says (one for images does so).
    """
    text = _rendered(messages, tokenizer, config, add_generation_prompt=True)
    said = judged_text(messages, "last_user").strip()
    if said not in text:
        raise BadConversation(f"must be written out by the tokenizer's chat template, got no {shown(said)} in "
                              f"{shown(text)}")
    return text


@dataclass(frozen=True)
class Turn:
    """What a chat template writes around the assistant's answer, behind the text that the policy goes on from."""

    before: str     # such as an empty space for thoughts
    end: str        # the special token that ends the turn; "" where the template has none


def assistants_turn(messages: Sequence[Message], prompt: str, tokenizer: PreTrainedTokenizerBase, config: ChatConfig
                    ) -> Turn:
    """The turn that answers `messages`, whose text up to there is `prompt`, as `templated` gave it.

    The template is shown a mark for an answer. What it puts behind counts up to the first special token, and not at all
    where there is text too: that opens another turn. Raises BadConversation as `templated`.
    """
    text = _rendered([*messages, {"role": "assistant", "content": MARK}], tokenizer, config,
                     add_generation_prompt=False)
    before, mark, behind = text.partition(MARK)
    if not mark:
        raise BadConversation("must be written out by the tokenizer's chat template, got no answer of the assistant in "
                              f"{shown(text)}")
    special = "|".join(re.escape(str(token)) for token in tokenizer.added_tokens_decoder.values() if token.special)
    ends = re.fullmatch(rf"(\s*(?:{special}))(?:\s|{special})*", behind) if special else None
    # A template that opens the turn with more than it leaves in the end (thoughts) puts nothing between.
    return Turn(before.removeprefix(prompt) if before.startswith(prompt) else "", ends[1] if ends else "")


def _rendered(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, config: ChatConfig, *,
              add_generation_prompt: bool) -> str:
    if config.system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": config.system}, *messages]
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False,
                                             add_generation_prompt=add_generation_prompt, **config.template_options)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadConversation(f"must suit the tokenizer's chat template, got: {reason}") from error
