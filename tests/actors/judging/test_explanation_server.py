"""Explanations from a server: against a small real one on this machine that errs as it is told to."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import actors.judging.explanation_server as module
from actors.engines.generation import content_seed
from actors.judging.explanation_server import ServerWriter, wait_s
from rlaif.config.checks import UserError
from rlaif.config.train import ServerConfig
from rlaif.esfp.explanation_cache import Written

TOKEN = "sk-Very-Secret-0123456789"


@dataclasses.dataclass
class Reply:
    """What the server does with one request; `delay_s` before its headers, `drip_s` between bytes of its body."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    delay_s: float = 0.0
    drip_s: float = 0.0
    hang_up: bool = False


def answer(text: Any, num_tokens: int = 3, finish_reason: Any = "stop", *, chat: bool = False) -> Reply:
    choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return Reply(body={"choices": [choice | {"index": 0, "finish_reason": finish_reason}],
                       "usage": {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": 1 + num_tokens}})


def echo(request: dict[str, Any], nth: int) -> Reply:
    return answer("about " + request["prompt"])


class Server:
    """`reply(request, n)` answers the n-th request (from 0) of a question; `seen` holds (path, headers, body)."""

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any], int], Reply] = echo
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.num_open = self.most_open = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.serve(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        text = body.get("prompt") or body["messages"][-1]["content"]
        with self._lock:
            nth = sum(text == (b.get("prompt") or b["messages"][-1]["content"]) for _, _, b in self.seen)
            self.seen.append((handler.path, {k.lower(): v for k, v in handler.headers.items()}, body))
            self.num_open += 1
            self.most_open = max(self.most_open, self.num_open)
        reply = self.reply(body, nth)
        time.sleep(reply.delay_s)
        with contextlib.suppress(OSError):      # the client may be gone
            self.send(handler, reply)
        with self._lock:
            self.num_open -= 1

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.hang_up:
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        for name, value in ({"content-type": "application/json", "content-length": str(len(data))}
                            | reply.headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        for part in ([data] if not reply.drip_s else [data[i:i + 1] for i in range(len(data))]):
            handler.wfile.write(part)
            time.sleep(reply.drip_s)

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def questions(self) -> list[str]:
        return [body.get("prompt") or body["messages"][-1]["content"] for _, _, body in self.seen]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", TOKEN)     # meant for another server: must not be sent
    server = Server()
    yield server
    server.stop()


def config(server: Server, **changes: Any) -> ServerConfig:
    return ServerConfig(**{"url": server.url, "api": "completions", "max_retries": 2, "timeout_s": 20.0} | changes)


def write(server: Server, questions: list[str], num_samples: int = 1, temperature: float = 0.0, seed: int = 7,
          **changes: Any) -> tuple[list[list[Written]], dict[str, float]]:
    """The answers, and the counts by name."""
    async def go() -> tuple[list[list[Written]], dict[str, float]]:
        writer = ServerWriter(config(server, **changes), "tiny")
        try:
            answers = await writer.write(questions, num_samples, 16, temperature, seed)
            return answers, {name: metric.value for name, metric in writer.take_metrics().items()}
        finally:
            await writer.close()
    return asyncio.run(go())


def check(server: Server, **changes: Any) -> None:
    async def go() -> None:
        writer = ServerWriter(config(server, **changes), "tiny")
        try:
            await writer.check()
        finally:
            await writer.close()
    asyncio.run(go())


def refusal(call: Callable[..., Any], *args: Any, **changes: Any) -> str:
    """The one line that `call` is refused with."""
    with pytest.raises(UserError) as caught:
        call(*args, **changes)
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)
    return str(caught.value)


FAILED = Written("", 0, "failed")


def test_answers_come_back_in_the_order_of_the_questions_though_the_first_is_the_slowest(server: Server) -> None:
    def reply(request: dict[str, Any], nth: int) -> Reply:
        return dataclasses.replace(echo(request, nth), delay_s=0.2 if request["prompt"] == "a" else 0.0)

    server.reply = reply
    answers, counts = write(server, ["a", "b", "c"])
    assert answers == [[Written(f"about {name}", 3, "stop")] for name in "abc"]
    assert counts == {"explanation_requests": 3, "explanation_retries": 0, "explanations_failed": 0,
                      "explanation_wait_s": 0, "explanations_without_usage": 0}


def test_no_question_asks_nothing(server: Server) -> None:
    assert write(server, [])[0] == [] and server.seen == []


def test_completions_send_the_text_as_it_is_and_greedy_ones_no_seed(server: Server) -> None:
    text = "[MASK] {prompt} \0 \u2028 日本 \U0001f600 \r\n</s>"
    write(server, [text])
    (path, headers, body), = server.seen
    assert path == "/v1/completions"
    assert body == {"model": "tiny", "prompt": text, "max_tokens": 16, "temperature": 0.0}
    assert headers["authorization"] == "Bearer none"


def test_chat_sends_one_user_message_and_reads_its_answer(server: Server) -> None:
    server.reply = lambda request, nth: answer("because", 4, "length", chat=True)
    answers, _ = write(server, ["why?"], api="chat")
    assert answers == [[Written("because", 4, "length")]]
    path, _, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "why?"}]


def test_a_chat_answer_that_was_all_thinking_is_empty(server: Server) -> None:
    server.reply = lambda request, nth: answer(None, 16, "length", chat=True)
    assert write(server, ["why?"], api="chat")[0] == [[Written("", 16, "length")]]


def test_every_sample_has_its_own_seed_that_follows_from_run_question_and_sample(server: Server) -> None:
    server.reply = lambda request, nth: answer(str(request["seed"]))
    answers, _ = write(server, ["a", "b"], num_samples=3, temperature=0.7, seed=7)
    assert [[int(written.text) for written in row] for row in answers] == [
        [content_seed(7, question, sample) for sample in range(3)] for question in "ab"]
    assert len({written.text for row in answers for written in row}) == 6
    assert {body["temperature"] for _, _, body in server.seen} == {0.7}
    again, _ = write(server, ["b"], num_samples=3, temperature=0.7, seed=7)
    assert again == answers[1:], "whatever else is asked in the call"


def test_white_space_around_an_answer_is_dropped(server: Server) -> None:
    server.reply = lambda request, nth: answer("\n  two  words \t\n")
    assert write(server, ["a"])[0] == [[Written("two  words", 3, "stop")]]


def test_half_a_character_in_an_answer_becomes_one_that_can_be_kept(server: Server) -> None:
    server.reply = lambda request, nth: answer("broken \ud83d end")
    assert write(server, ["a"])[0] == [[Written("broken ? end", 3, "stop")]]


@pytest.mark.parametrize("usage", [None, {}, {"completion_tokens": None}])
def test_an_answer_without_counted_tokens_is_taken_and_counted(server: Server, usage: dict | None) -> None:
    reply = answer("fine")
    reply.body["usage"] = usage
    server.reply = lambda request, nth: reply
    answers, counts = write(server, ["a", "b"])
    assert answers == [[Written("fine", 0, "stop")]] * 2 and counts["explanations_without_usage"] == 2


FAULTS = {
    "500": Reply(500, {"error": {"message": "worker died"}}),
    "503 in plain text": Reply(503, b"overloaded", {"content-type": "text/plain"}),
    "502 of a proxy": Reply(502, b"<html>\n<body>Bad Gateway</body></html>", {"content-type": "text/html"}),
    "408": Reply(408, {"error": "slow"}),
    "429": Reply(429, {"error": {"message": "too many"}}),
    "hang up": Reply(hang_up=True),
    "no answer": Reply(delay_s=9.0, body={}),
    "a byte now and then": dataclasses.replace(answer("x" * 100), drip_s=0.1),
    "cut short": Reply(body=b'{"choices": [', headers={"content-length": "100", "connection": "close"}),
    "no JSON": Reply(body=b"{not json"),
    "no UTF-8": Reply(body=b'{"choices": [{"text": "\xff\xfe", "finish_reason": "stop"}]}'),
    "no JSON by its type": Reply(body=b"hello", headers={"content-type": "text/plain"}),
    "null": Reply(body=b"null"),
    "a list": Reply(body=[1, 2]),
    "no choices": Reply(body={"object": "text_completion"}),
    "empty choices": Reply(body={"choices": []}),
    "null choice": Reply(body={"choices": [None]}),
    "text is a number": Reply(body={"choices": [{"text": 5, "finish_reason": "stop"}]}),
    "text is null": Reply(body={"choices": [{"text": None, "finish_reason": "stop"}]}),
    "aborted": answer("half", finish_reason="abort"),
    "unfinished": answer("half", finish_reason=None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_retried_and_counted(server: Server, fault: str) -> None:
    server.reply = lambda request, nth: echo(request, nth) if nth else FAULTS[fault]
    answers, counts = write(server, ["a"], timeout_s=0.8 if fault in ("no answer", "a byte now and then") else 20.0)
    assert answers == [[Written("about a", 3, "stop")]]
    assert (counts["explanation_requests"], counts["explanation_retries"], counts["explanations_failed"]) == (2, 1, 0)
    assert 0.005 <= counts["explanation_wait_s"] <= 0.01


@pytest.mark.parametrize("fault", ["500", "hang up", "no JSON", "empty choices"])
def test_a_question_whose_retries_are_used_up_fails_alone(server: Server, fault: str) -> None:
    server.reply = lambda request, nth: FAULTS[fault] if request["prompt"] == "bad" else echo(request, nth)
    answers, counts = write(server, ["a", "bad", "b"])
    assert answers == [[Written("about a", 3, "stop")], [FAILED], [Written("about b", 3, "stop")]]
    assert server.questions.count("bad") == 3 and len(server.seen) == 5
    assert (counts["explanation_requests"], counts["explanation_retries"], counts["explanations_failed"]) == (5, 2, 1)


def test_without_retries_the_first_fault_is_the_last(server: Server) -> None:
    server.reply = lambda request, nth: FAULTS["500"]
    answers, counts = write(server, ["a"], max_retries=0)
    assert answers == [[FAILED]] and counts["explanation_retries"] == 0 and len(server.seen) == 1


def test_an_answer_that_the_servers_filter_withholds_is_asked_once(server: Server) -> None:
    server.reply = lambda request, nth: answer("", finish_reason="content_filter")
    answers, counts = write(server, ["a"])
    assert answers == [[FAILED]] and len(server.seen) == 1 and counts["explanations_failed"] == 1


@pytest.mark.parametrize("value", ["0.3", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_a_server_that_says_when_to_come_back_is_not_asked_before(server: Server, value: Any) -> None:
    header = value() if callable(value) else value
    server.reply = lambda request, nth: echo(request, nth) if nth else Reply(429, {}, {"retry-after": header})
    start = time.monotonic()
    answers, counts = write(server, ["a"])
    assert answers == [[Written("about a", 3, "stop")]]
    assert time.monotonic() - start >= 0.3 and counts["explanation_wait_s"] >= 0.3


def test_a_server_that_asks_for_hours_has_failed(server: Server) -> None:
    server.reply = lambda request, nth: Reply(429, {}, {"retry-after": "7200"})
    assert write(server, ["a"])[0] == [[FAILED]] and len(server.seen) == 1


@pytest.mark.parametrize("value", ["soon", "nan", "-5", "", "0", "Thu, 99 Foo 2026"])
def test_a_retry_after_that_says_nothing_leaves_the_own_wait(server: Server, value: str) -> None:
    server.reply = lambda request, nth: echo(request, nth) if nth else Reply(429, {}, {"retry-after": value})
    _, counts = write(server, ["a"])
    assert 0.005 <= counts["explanation_wait_s"] <= 0.01


def test_waits_double_up_to_a_limit_and_jitter_takes_half_at_most() -> None:
    assert [wait_s(attempt, None, 0.0) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert wait_s(3, None, 0.5) == 3.0 and wait_s(10_000, None, 0.0) == 30
    assert wait_s(0, 10.0, 0.0) == 10 and wait_s(5, 1.0, 0.0) == 16 and wait_s(0, -3.0, 0.0) == 0.5
    assert wait_s(0, 120.0, 0.0) == 120 and wait_s(0, 121.0, 0.0) is None and wait_s(0, float("inf"), 0.0) is None


def test_no_more_requests_are_open_than_concurrency_allows(server: Server) -> None:
    server.reply = lambda request, nth: dataclasses.replace(echo(request, nth), delay_s=0.03)
    answers, _ = write(server, [str(number) for number in range(20)], concurrency=4)
    assert [row[0].text for row in answers] == [f"about {number}" for number in range(20)]
    assert server.most_open == 4


def test_calls_that_overlap_share_the_limit_and_mix_no_answers(server: Server) -> None:
    server.reply = lambda request, nth: dataclasses.replace(echo(request, nth), delay_s=0.03)

    async def go() -> list[list[list[Written]]]:
        writer = ServerWriter(config(server, concurrency=3), "tiny")
        done = await asyncio.gather(*(writer.write([f"{call} {n}" for n in range(4)], 1, 16, 0.0, 0)
                                      for call in range(3)))
        assert writer.take_metrics()["explanation_requests"].value == 12
        assert writer.take_metrics()["explanation_requests"].value == 0, "what was taken is not taken again"
        await writer.close()
        return done

    assert [[row[0].text for row in part] for part in asyncio.run(go())] == [
        [f"about {call} {n}" for n in range(4)] for call in range(3)]
    assert server.most_open == 3


@pytest.mark.parametrize(("status", "parts"), [
    (400, ["status 400: no such thing", "max_tokens", "context"]),
    (401, ["status 401: no such thing", "api_key_env names a token"]),
    (403, ["status 403: no such thing", "api_key_env"]),
    (404, ["status 404: no such thing", "/v1", "'completions'", "'tiny'"]),
    (413, ["status 413: no such thing", "context"]),
    (422, ["status 422: no such thing", "'completions'"]),
])
def test_a_mistake_of_the_users_ends_the_call_at_once(server: Server, status: int, parts: list[str]) -> None:
    def reply(request: dict[str, Any], nth: int) -> Reply:
        if request["prompt"] == "bad":
            return Reply(status, {"error": {"message": "no\nsuch thing", "type": "x"}})
        return dataclasses.replace(echo(request, nth), delay_s=9.0)

    server.reply = reply
    start = time.monotonic()
    line = refusal(write, server, ["bad", *map(str, range(40))], concurrency=4)
    assert time.monotonic() - start < 4, "the others are not waited for"
    assert server.questions.count("bad") == 1 and len(server.seen) <= 5
    for part in (server.url, *parts):
        assert part in line


def test_a_server_that_dies_ends_the_run_and_not_in_silence(server: Server) -> None:
    server.reply = lambda request, nth: FAULTS["500"]
    line = refusal(write, server, [str(number) for number in range(100)], concurrency=2, max_consecutive_failures=5)
    for part in (server.url, "5 questions in a row failed (max_consecutive_failures)", "status 500: worker died"):
        assert part in line
    assert len(set(server.questions)) <= 7


def test_failures_between_answers_are_no_row(server: Server) -> None:
    server.reply = lambda request, nth: FAULTS["500"] if int(request["prompt"]) % 4 else echo(request, nth)
    answers, counts = write(server, [str(number) for number in range(40)], concurrency=1, max_retries=0,
                            max_consecutive_failures=4)
    assert counts["explanations_failed"] == 30 and [row == [FAILED] for row in answers].count(True) == 30


def test_the_row_of_failures_goes_on_over_calls(server: Server) -> None:
    server.reply = lambda request, nth: FAULTS["500"]

    async def go() -> None:
        writer = ServerWriter(config(server, max_retries=0, max_consecutive_failures=3), "tiny")
        assert await writer.write(["a", "b"], 1, 16, 0.0, 0) == [[FAILED], [FAILED]]
        with pytest.raises(UserError, match="3 questions in a row"):
            await writer.write(["c"], 1, 16, 0.0, 0)
        server.reply = echo
        assert await writer.write(["d"], 1, 16, 0.0, 0) == [[Written("about d", 3, "stop")]], "it lives on"
        await writer.close()

    asyncio.run(go())


@pytest.mark.parametrize("ending", ["cancelled", "refused"])
def test_a_call_that_breaks_off_leaves_no_request_behind(server: Server, ending: str) -> None:
    def reply(request: dict[str, Any], nth: int) -> Reply:
        if request["prompt"] == "0" and ending == "refused":
            return Reply(400, {}, delay_s=0.3)
        return dataclasses.replace(echo(request, nth), delay_s=9.0)

    server.reply = reply

    async def go() -> None:
        writer = ServerWriter(config(server, concurrency=2, timeout_s=20.0), "tiny")
        call = asyncio.create_task(writer.write([str(number) for number in range(20)], 1, 16, 0.0, 0))
        while len(server.seen) < 2:
            await asyncio.sleep(0.01)
        if ending == "cancelled":
            call.cancel()
        with pytest.raises(asyncio.CancelledError if ending == "cancelled" else UserError):
            await call
        assert len(asyncio.all_tasks()) == 1
        await asyncio.sleep(0.1)
        assert len(server.seen) <= 3
        server.reply = echo
        assert await writer.write(["x"], 1, 16, 0.0, 0) == [[Written("about x", 3, "stop")]], "its slots are free"
        await writer.close()

    asyncio.run(go())


def test_check_passes_where_one_token_is_answered(server: Server) -> None:
    server.reply = lambda request, nth: answer("Hi", 1, "length")
    check(server)
    assert [body["max_tokens"] for _, _, body in server.seen] == [1]


def test_check_tells_a_server_that_is_not_there_within_seconds(server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    start = time.monotonic()
    line = refusal(check, server, url=url, max_retries=9, timeout_s=600.0)
    assert time.monotonic() - start < 3
    for part in ("explainer.server.url must be of a server that answers", url, "start it"):
        assert part in line
    assert "http://nowhere.invalid/v1" in refusal(check, server, url="http://nowhere.invalid/v1")


@pytest.mark.parametrize(("reply", "part"), [
    (Reply(404, {"error": {"message": "The model `tiny` does not exist."}}), "The model `tiny` does not exist."),
    (Reply(401, {"error": "Unauthorized"}), "Unauthorized"),
    (Reply(503, b"loading", {"content-type": "text/plain"}), "status 503: loading"),
    (Reply(body=b"<html>welcome</html>", headers={"content-type": "text/html"}), "not of the completions API"),
    (Reply(body={}, delay_s=9.0), "no answer within 2.5 s"),
])
def test_check_tells_what_is_wrong_in_one_attempt(server: Server, reply: Reply, part: str) -> None:
    server.reply = lambda request, nth: reply
    line = refusal(check, server, timeout_s=2.5 if reply.delay_s else 20.0)
    assert part in line and server.url in line and len(server.seen) == 1


def test_the_token_of_the_named_variable_is_sent_and_shown_nowhere(
        server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("EXPLAINER_TOKEN", f" {TOKEN}\n")
    server.reply = lambda request, nth: Reply(401, {"error": {"message": f"Bearer {TOKEN} is not known"}})
    with caplog.at_level(logging.DEBUG):
        line = refusal(write, server, ["a"], api_key_env="EXPLAINER_TOKEN")
    assert server.seen[0][1]["authorization"] == f"Bearer {TOKEN}"
    assert "Bearer *** is not known" in line and "EXPLAINER_TOKEN" in line
    assert TOKEN not in caplog.text and TOKEN not in repr(config(server, api_key_env="EXPLAINER_TOKEN"))


@pytest.mark.parametrize(("value", "state"), [
    (None, "is not set"), (" ", "is not set"), ("tök", "holds characters"), ("a\nb", "holds characters")])
def test_a_variable_that_holds_no_token_is_named_and_not_shown(
        server: Server, monkeypatch: pytest.MonkeyPatch, value: str | None, state: str) -> None:
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_SUCH_TOKEN", value)
    line = refusal(ServerWriter, config(server, api_key_env="NO_SUCH_TOKEN"), "tiny")
    assert f"'NO_SUCH_TOKEN', which {state}" in line and "tök" not in line


@pytest.mark.parametrize(("changes", "message"), [
    ({"url": "127.0.0.1:8000/v1"}, "url must be http://host:port/... or https://..., got '127.0.0.1:8000/v1'"),
    ({"url": "http://a:port/v1"}, "url must be http"),
    ({"url": "http://a:70000/v1"}, "url must be http"),
    ({"url": "http://[1:2/v1"}, "url must be http"),
    ({"url": "ftp://a/v1"}, "url must be http"),
    ({"url": "http://"}, "url must be http"),
    ({"api": "responses"}, "api must be one of chat, completions, got 'responses'"),
    ({"timeout_s": 0.0}, "timeout_s must be > 0, got 0.0"),
    ({"timeout_s": float("inf")}, "timeout_s must be > 0, got inf"),
    ({"max_retries": -1}, "max_retries must be >= 0, got -1"),
    ({"concurrency": 0}, "concurrency must be > 0, got 0"),
    ({"max_consecutive_failures": 0}, "max_consecutive_failures must be > 0, got 0"),
])
def test_what_is_out_of_range_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    assert message in refusal(lambda: ServerWriter(ServerConfig(**{"url": "http://a/v1"} | changes), "tiny"))


@pytest.mark.parametrize("changes", [
    {"url": "http://user:hunter2@a/v1"}, {"url": "http://a/v1?key=hunter2"}, {"url": "http://a/v1#hunter2"},
    {"api_key_env": "sk-hunter2"}, {"api_key_env": "hf_hunter2"}, {"api_key_env": ""}])
def test_a_secret_given_in_the_wrong_place_is_refused_and_not_shown(changes: dict[str, Any]) -> None:
    line = refusal(lambda: ServerWriter(ServerConfig(**{"url": "http://a/v1"} | changes), "tiny"))
    assert next(iter(changes)) in line and "hunter2" not in line
