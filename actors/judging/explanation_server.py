"""Stage 1 of the reward from a server that speaks OpenAI's protocol: a vLLM server of its own, a hosted model.

For a vLLM server to write what an engine of ours writes, start it with `--generation-config vllm`: otherwise it adds
what generation_config.json in the model's folder says of sampling.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from actors.engines.generation import content_seed
from rlaif.config.checks import Unavailable, UserError
from rlaif.config.train import ServerConfig
from rlaif.esfp.explanation_cache import Written
from rlaif.metrics import Metric, Sum

KEY = "explainer.server"        # where ServerConfig stands in a configuration
CONNECT_S = 5.0                 # a server that is there takes a connection within this many seconds
CHECK_S = 30.0                  # and answers a question of one token within this many
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0    # between two attempts: doubles from the one to the other
LONGEST_RETRY_AFTER_S = 120.0   # a server that asks for more patience than this has failed
RETRIED = (408, 409, 425, 429)  # and every status from 500 on; any other is the user's mistake


class ServerWriter:
    """Writes explanations through the server of `config`. One event loop, any number of calls at once.

    model: the name it is served under. Raises UserError, one line, if the url is none or api_key_env names no variable
    that holds a token.
    """

    def __init__(self, config: ServerConfig, model: str) -> None:
        self._config, self._model, self._token = config, model, ""
        if config.api_key_env is not None:
            self._token = os.environ.get(config.api_key_env, "").strip()
            if not self._token or not self._token.isascii() or not self._token.isprintable():
                state = "holds characters no token has" if self._token else "is not set"
                raise UserError(f"{KEY}.api_key_env must name an environment variable that holds the token, got "
                                f"{config.api_key_env!r}, which {state} where the explainer runs; export it there")
        # The package would send these along, which are meant for another server and may hold a token.
        for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"):
            os.environ.pop(name, None)
        # Not None: the package would send OPENAI_API_KEY, which is meant for another server. Its own retries are off:
        # they count nothing of a request that fails, and give up at once on an answer that is no JSON.
        self._client = openai.AsyncOpenAI(
            base_url=config.url, api_key=self._token or "none", max_retries=0,
            timeout=openai.Timeout(None, connect=CONNECT_S))    # _attempt limits the whole
        self._slots = asyncio.Semaphore(config.concurrency)
        self._failures_in_a_row = 0
        self._counts = _Counts()

    async def pulse(self) -> None:
        """Requests to the server have time limits of their own."""

    async def check(self) -> None:
        """Returns once the server has answered a question of one token; raises UserError, one line, if it does not.

        One attempt: a server that is not there is told within CONNECT_S.
        """
        try:
            await self._attempt("Hello", 1, 0.0, None, min(CHECK_S, self._config.timeout_s))
        except _Fault as fault:
            raise Unavailable(f"{KEY}.url must be of a server that answers, got {self._config.url!r}: {fault}; start "
                              "it, or correct the url") from fault

    async def write(self, questions: Sequence[str], num_samples: int, max_tokens: int, temperature: float,
                    seed: int) -> list[list[Written]]:
        """`num_samples` explanations of each question, in order; equal questions are asked as often as they are given.

        max_tokens: of an explanation. temperature: 0 is greedy. seed: the run's; every sample of a question has its
        own from it. White space around a text is dropped: some servers leave it there, some not. A question whose
        retries are used up comes back as "failed" and stops no other. Raises UserError, one line, for what no retry
        can mend, and after max_consecutive_failures.
        """
        tasks = [asyncio.ensure_future(self._ask(
            question, max_tokens, temperature, content_seed(seed, question, sample) if temperature > 0 else None))
            for question in questions for sample in range(num_samples)]
        try:
            answers = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)    # no request outlives the call
            raise
        return [answers[start:start + num_samples] for start in range(0, len(answers), num_samples)]

    def take_metrics(self) -> dict[str, Metric]:
        """What was counted since this was last called. Of calls that overlap each is counted once, with either."""
        counts, self._counts = self._counts, _Counts()
        return {"explanation_requests": Sum(counts.requests), "explanation_retries": Sum(counts.retries),
                "explanations_failed": Sum(counts.failures), "explanation_wait_s": Sum(counts.waited_s),
                "explanations_without_usage": Sum(counts.without_usage)}

    async def close(self) -> None:
        await self._client.close()

    async def _ask(self, question: str, max_tokens: int, temperature: float, seed: int | None) -> Written:
        """One sample, after as many attempts as it takes. A question that waits for its next attempt keeps its slot:
        a server in trouble gets fewer requests."""
        async with self._slots:
            for attempt in range(self._config.max_retries + 1):
                try:
                    written = await self._attempt(question, max_tokens, temperature, seed, self._config.timeout_s)
                except _Fault as fault:
                    last = fault
                else:
                    self._failures_in_a_row = 0
                    return written
                wait = wait_s(attempt, last.retry_after_s, random.random())
                if attempt == self._config.max_retries or not last.may_pass or wait is None:
                    return self._failed(last)
                self._counts.retries += 1
                self._counts.waited_s += wait
                await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _failed(self, last: _Fault) -> Written:
        self._counts.failures += 1
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self._config.max_consecutive_failures:
            raise Unavailable(f"{KEY}.url must be of a server that answers, got {self._config.url!r}, where "
                            f"{self._failures_in_a_row} questions in a row failed (max_consecutive_failures), the last "
                            f"with: {last}; see the server's log, then run the same command again") from last
        return Written("", 0, "failed")

    async def _attempt(self, question: str, max_tokens: int, temperature: float, seed: int | None,
                       timeout_s: float) -> Written:
        """One request. Raises _Fault for what may be otherwise next time, UserError for what may not."""
        self._counts.requests += 1
        try:
            # Not the client's own limit, which begins anew with every byte that arrives.
            async with asyncio.timeout(timeout_s):
                answer = await self._send(question, max_tokens, temperature, seed)
            written, has_usage = _read(answer, self._config.api)
        except openai.APIStatusError as error:
            self._refuse_mistake(error)
            raise _Fault(self._told(error), _retry_after_s(error)) from None
        except openai.APITimeoutError:
            raise _Fault(f"no connection within {CONNECT_S:g} s") from None
        except openai.APIConnectionError as error:
            raise _Fault(self._told(error)) from None
        except TimeoutError:
            raise _Fault(f"no answer within {timeout_s:g} s") from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise _Fault(f"an answer that is not of the {self._config.api} API ({type(error).__name__})") from None
        if written.finish_reason not in ("stop", "length"):
            raise _Fault(f"finish_reason {written.finish_reason!r:.40}",
                         may_pass=written.finish_reason != "content_filter")
        self._counts.without_usage += not has_usage
        return written

    async def _send(self, question: str, max_tokens: int, temperature: float, seed: int | None) -> Any:
        options: dict[str, Any] = {"model": self._model, "max_tokens": max_tokens, "temperature": temperature}
        if seed is not None:
            options["seed"] = seed
        if self._config.api == "completions":
            return await self._client.completions.create(prompt=question, **options)
        return await self._client.chat.completions.create(
            messages=[{"role": "user", "content": question}], **options)

    def _refuse_mistake(self, error: openai.APIStatusError) -> None:
        """Raises UserError for a status that another attempt would get again."""
        status, config = error.status_code, self._config
        if status in RETRIED or status >= 500:
            return
        start = f"explanation server at {config.url!r} refuses: {self._told(error)}; "
        if status in (401, 403):
            key = f"{config.api_key_env} holds a token it takes" if config.api_key_env else "api_key_env names a token"
            raise Unavailable(f"{start}see that {key}") from None
        if status in (404, 405):
            raise Unavailable(f"{start}url must be the root of its API (it mostly ends in /v1), api one it has, got "
                            f"{config.api!r}, and model a name it serves, got {self._model!r}") from None
        raise UserError(f"{start}max_tokens and the longest question must fit its context, and api must be one the "
                        f"model is served with, got {config.api!r}") from None

    def _told(self, error: openai.APIError) -> str:
        """What an error says, in one line without the token, however the server quotes it."""
        status = f"status {error.status_code}: " if isinstance(error, openai.APIStatusError) else ""
        body = error.body
        inner = body.get("error", body) if isinstance(body, dict) else body
        told = inner.get("message") if isinstance(inner, dict) else inner
        text = str(told or "") or str(error.__cause__ or "") or str(error)
        text = text.replace(self._token, "***") if self._token else text
        return status + " ".join(text.split())[:300]


@dataclass
class _Counts:
    requests: int = 0
    retries: int = 0
    failures: int = 0           # questions without an answer after all retries
    waited_s: float = 0.0       # seconds slept before retries, summed over questions that sleep at once
    without_usage: int = 0      # answers whose server counts no tokens


class _Fault(Exception):
    """An attempt without an answer. `may_pass`: another one may do better."""

    def __init__(self, reason: str, retry_after_s: float | None = None, *, may_pass: bool = True) -> None:
        super().__init__(reason)
        self.retry_after_s, self.may_pass = retry_after_s, may_pass


def wait_s(attempt: int, retry_after_s: float | None, jitter: float) -> float | None:
    """Seconds to wait after failed attempt number `attempt` (from 0); None where the server asks for too much.

    What the server asks for (Retry-After), but no less than min(LONGEST, FIRST * 2^attempt) * (1 - jitter / 2) with
    jitter in [0, 1): clients that failed together do not come back together.
    """
    if retry_after_s is not None and retry_after_s > LONGEST_RETRY_AFTER_S:
        return None
    doubled = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempt, 60))
    return max(retry_after_s or 0.0, doubled * (1 - jitter / 2))


def _retry_after_s(error: openai.APIStatusError) -> float | None:
    """The Retry-After header in seconds: a number or a date; None where there is none that can be read."""
    value = error.response.headers.get("retry-after", "")
    try:
        return None if math.isnan(float(value)) else float(value)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None


def _read(answer: Any, api: str) -> tuple[Written, bool]:
    """The first choice of an answer, and whether the answer counts tokens (0 where it does not).

    The package builds its objects without checking them: a field of another type raises here.
    """
    choice = answer.choices[0]
    text = choice.text if api == "completions" else choice.message.content
    if text is None and api == "chat":
        text = ""       # a model that spent all its tokens on thinking
    if not isinstance(text, str):
        raise TypeError("text must be a string")
    num_tokens = getattr(getattr(answer, "usage", None), "completion_tokens", None)
    has_usage = isinstance(num_tokens, int)
    # JSON can spell half a character, which no column can hold.
    return Written(text.strip().encode(errors="replace").decode(), num_tokens if has_usage else 0,
                   choice.finish_reason), has_usage
