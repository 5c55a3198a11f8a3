"""What a run is made of, so that a checkpoint of another run is not taken up by mistake."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlaif.config.checks import UserError
from rlaif.config.files import resolved_yaml
from rlaif.config.train import TrainConfig
from rlaif.esfp.explanation_cache import model_identity
from rlaif.running.run_folder import difference
from rlaif.running.versions import versions


def identity(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Configuration, tokenizer and start weights of a run, as JSON holds them. The prompts tell themselves apart: see
    rlaif.data.prompt_stream."""
    assert config.policy.model is not None
    return {"config": resolved_yaml(config), "tokenizer": tokenizer_hash(tokenizer),
            "policy": model_identity(config.policy.model), "versions": versions()}


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits that follow the vocabulary, the special tokens and the chat template."""
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map, tokenizer.chat_template,
               getattr(getattr(tokenizer, "backend_tokenizer", None), "to_str", str)()]
    return hashlib.sha256(json.dumps(content, default=str, sort_keys=True).encode()).hexdigest()[:16]


def refuse_other(there: Mapping[str, Any], here: Mapping[str, Any], where: str) -> list[str]:
    """Raises UserError where the checkpoint at `where` is of another run than `here`; returns what the user should know
    of other versions."""
    found = difference(there["config"], here["config"])
    if found is not None:
        raise UserError(f"checkpoint must be of the same run, got {where!r} of another one ({found}); choose another "
                        "output_dir, or begin anew with checkpoint.resume=never")
    for name, cure in (("tokenizer", "policy.model's tokenizer"), ("policy", "policy.model, which is the reference")):
        if there[name] != here[name]:
            raise UserError(f"{name} must be that of the run that is resumed ({there[name]}), got another "
                            f"({here[name]}); put {cure} back, or begin anew with checkpoint.resume=never")
    changed = [f"{name} {here['versions'].get(name, 'absent')} in place of {there['versions'].get(name, 'absent')}"
               for name in {**there["versions"], **here["versions"]}
               if there["versions"].get(name) != here["versions"].get(name)]
    return [f"goes on with {', '.join(changed)}: numbers may differ"] if changed else []
