"""Scorers outside this process, with real programs and a real server: what goes wrong is unscored, with the reason."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import math
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, PrerequisiteError, TrainingError
from gcpo_bench.evaluators.scorers import deqa_worker
from gcpo_bench.evaluators.scorers.deqa import COMMAND_VARIABLE, Deqa, quality
from gcpo_bench.evaluators.scorers.line_process import MAX_LINE_BYTES, LineProcess, NoAnswer, numbers
from gcpo_bench.evaluators.scorers.rewards import ScorerReward
from gcpo_bench.evaluators.scorers.types import Score, Unscored
from gcpo_bench.evaluators.scorers.unified_reward import (
    KEY_VARIABLE,
    MODEL_VARIABLE,
    QUESTION,
    QUESTION_VARIABLE,
    URL_VARIABLE,
    UnifiedReward,
    read_score,
)
from gcpo_bench.registry import REWARDS, SCORERS

from .processes import LIMIT_S


def grey(level: int) -> npt.NDArray[np.uint8]:
    return np.full((4, 6, 3), level, dtype=np.uint8)


# ---------------------------------------------------------------- DeQA: a program

PROGRAM = """
import base64, io, json, os, sys, time
from PIL import Image

print(json.dumps({"protocol": 1, "model": "by brightness"}), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    level = Image.open(io.BytesIO(base64.b64decode(question["png"]))).getpixel((0, 0))[0]
    if level == 1:
        print("about to fall over", file=sys.stderr, flush=True)
        os._exit(3)
    while level == 2:
        time.sleep(60)
    answer = {"id": question["id"], "logits": [level, 0, 0, 0, 0]}
    if level == 3:
        print("Loading checkpoint shards: 100%", flush=True)
    elif level == 4:
        answer = {"id": question["id"], "error": "out of memory"}
    elif level == 5:
        answer["logits"] = [1, 2, 3]
    elif level == 6:
        answer["logits"] = [1, 2, 3, 4, float("nan")]
    elif level == 7:
        answer["id"] = 1000
    elif level == 8:
        sys.stdout.write("x" * 3_000_000)
    elif level == 9:
        os.kill(os.getpid(), 9)
    print(json.dumps(answer), flush=True)
"""


def program(folder: Path, source: str = PROGRAM) -> list[str]:
    path = folder / "program.py"
    path.write_text(source)
    return [sys.executable, str(path)]


@pytest.fixture
def deqa(tmp_path: Path) -> Iterator[Deqa]:
    with Deqa(program(tmp_path), timeout_s=LIMIT_S) as scorer:
        yield scorer


def score(scorer: Any, *levels: int) -> list[Score]:
    images = [grey(level) for level in levels]
    found: list[Score] = scorer.score(images, [""] * len(images))
    return found


def test_quality_is_the_expected_level() -> None:
    assert quality([0, 0, 0, 0, 0]) == 3
    assert quality([100, 0, 0, 0, 0]) == pytest.approx(5)
    assert quality([0, 0, 0, 0, 1000]) == 1
    assert quality([math.log(3), math.log(1), -1e9, -1e9, -1e9]) == pytest.approx((3 * 5 + 1 * 4) / 4)


@given(logits=st.lists(st.floats(-1e4, 1e4), min_size=5, max_size=5), shift=st.floats(-100, 100))
def test_quality_stays_between_its_levels_and_ignores_a_shift(logits: list[float], shift: float) -> None:
    assert 1 <= quality(logits) <= 5
    assert quality([logit + shift for logit in logits]) == pytest.approx(quality(logits), abs=1e-6)
    assert quality(logits[::-1]) == pytest.approx(6 - quality(logits), abs=1e-9)


def test_a_program_s_logits_become_scores(deqa: Deqa) -> None:
    scores = score(deqa, 0, 10, 200, 0)
    assert scores[0] == scores[3] == 3
    assert scores[1] == pytest.approx(quality([10, 0, 0, 0, 0]))
    assert scores[2] == pytest.approx(5)
    assert deqa.identity == {"scorer": "deqa", "observer": 1, "model": "by brightness"}
    assert score(deqa) == []


@pytest.mark.parametrize(
    ("level", "reason"),
    [
        (1, "it ended with exit code 3; its last words: about to fall over"),
        (3, "its answer is no line of JSON: 'Loading checkpoint shards: 100%'"),
        (4, "it says: out of memory"),
        (5, "its answer has no five finite logits"),
        (6, "its answer has no five finite logits"),
        (7, "it answered question 1000 instead of 2"),
        (8, "its answer is no line of JSON: 'xxxx"),
        (9, "it ended with signal 9"),
    ],
)
def test_what_goes_wrong_is_unscored_and_the_next_pictures_are_scored(deqa: Deqa, level: int, reason: str) -> None:
    before, broken, after = score(deqa, 20, level, 0)
    assert before == pytest.approx(5, abs=1e-6)
    assert isinstance(broken, Unscored)
    assert broken.reason.startswith(reason)
    assert after == 3


def test_pictures_that_it_refuses_do_not_end_it(deqa: Deqa) -> None:
    *refused, dead, again, last = score(deqa, 4, 4, 4, 4, 1, 4, 1)
    assert refused == [Unscored("it says: out of memory", may_pass=True)] * 4
    assert again == refused[0]
    assert isinstance(dead, Unscored)
    assert dead == last
    assert score(deqa, 4, 0, 1, 1, 1)[1] == 3
    (given_up,) = score(deqa, 0)
    assert isinstance(given_up, Unscored)
    assert given_up.reason.startswith("given up after 3 failures in a row, the last: it ended with exit code 3")


def test_silence_is_not_waited_for(tmp_path: Path) -> None:
    with Deqa(program(tmp_path), timeout_s=1) as scorer:
        assert score(scorer, 2) == [Unscored("no answer within 1 s", may_pass=True)]


def test_a_program_that_reads_nothing_does_not_block(tmp_path: Path) -> None:
    deaf = "import time\nprint('{\"protocol\": 1}', flush=True)\ntime.sleep(60)\n"
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)  # more than a pipe holds
    with Deqa(program(tmp_path, deaf), timeout_s=0.5) as scorer:
        assert scorer.score([noise], [""]) == [Unscored("no answer within 0.5 s", may_pass=True)]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import sys; sys.exit('no module named mplug')", "it ended with exit code 1; its last words: no module named"),
        ("print('hello')", "its answer is no line of JSON: 'hello'"),
        ("print('{\"protocol\": 2}')", "its first line does not say protocol 1"),
        ("print('[1]')", "its answer is no line of JSON: '[1]'"),
        ("import time; time.sleep(60)", "no answer within 0.5 s"),
        ("import os, time; os.close(1); time.sleep(60)", "it closed its output"),
    ],
)
def test_a_program_that_does_not_start_is_given_up_after_three_times(
    tmp_path: Path, source: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_silent = "time.sleep" in source
    monkeypatch.setattr("gcpo_bench.evaluators.scorers.line_process._ENDING_S", 0.2 if is_silent else LIMIT_S)
    counting = f"open({str(tmp_path / 'starts')!r}, 'a').write('x')\n{source}\n"
    with Deqa(
        program(tmp_path, counting), start_timeout_s=0.5 if reason.startswith("no answer") else LIMIT_S
    ) as scorer:
        scores = score(scorer, 0, 0, 0, 0, 0)
    assert all(isinstance(each, Unscored) for each in scores)
    first, last = scores[0], scores[-1]
    assert isinstance(first, Unscored)
    assert first.reason.startswith(reason)
    assert isinstance(last, Unscored)
    assert last.reason.startswith(f"given up after 3 failures in a row, the last: {reason}")
    if not reason.startswith("no answer"):
        assert (tmp_path / "starts").read_text() == "xxx"


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    scorer = Deqa([str(tmp_path / "nothing")])
    (found,) = score(scorer, 0)
    assert isinstance(found, Unscored)
    assert found.reason.endswith("cannot be started: No such file or directory")
    with pytest.raises(PrerequisiteError, match="does not start"):
        _ = scorer.identity


def test_nothing_is_left_running(tmp_path: Path) -> None:
    # a shell that starts the program and waits for it
    source = (
        "import json, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(json.dumps({'protocol': 1, 'model': child.pid}), flush=True)\n"
        "time.sleep(60)\n"
    )
    process = LineProcess(program(tmp_path, source), start_timeout_s=LIMIT_S, timeout_s=0.2)
    with pytest.raises(NoAnswer, match=r"no answer within 0\.2 s"):
        process.ask({})
    child = int(process.hello["model"])
    while _is_running(child):
        time.sleep(0.05)
    process.close()  # a second time is no matter


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_closing_lets_the_program_end_by_itself(tmp_path: Path) -> None:
    source = f"{PROGRAM}\nopen({str(tmp_path / 'ended')!r}, 'w').write('well')\n"
    with Deqa(program(tmp_path, source)) as scorer:
        score(scorer, 0)
    assert (tmp_path / "ended").read_text() == "well"


def test_only_finite_numbers_are_numbers() -> None:
    assert numbers([1, 2.5], 2) == [1, 2.5]
    for wrong in (None, [1], [1, "2"], [1, True], [1, math.inf], {"0": 1, "1": 2}):
        assert numbers(wrong, 2) is None
    assert MAX_LINE_BYTES < 3_000_000


def test_deqa_needs_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMMAND_VARIABLE, raising=False)
    with pytest.raises(PrerequisiteError, match=COMMAND_VARIABLE):
        SCORERS.load("deqa")()
    monkeypatch.setenv(COMMAND_VARIABLE, shlex.join(program(tmp_path)))
    reward = REWARDS.load("deqa")()
    prompts = [Prompt(id=str(row), text="a dog") for row in range(2)]
    output = reward(np.stack([grey(0), grey(200)]), prompts)
    assert list(output.values_B) == pytest.approx([3, 5])
    with pytest.raises(TrainingError, match="gave no score for prompt 'a dog': it says: out of memory"):
        reward(grey(4)[None], prompts[:1])
    reward.scorer.close()


# ---------------------------------------------------------------- DeQA's own side


def test_the_worker_answers_the_protocol_from_a_real_process(tmp_path: Path) -> None:
    """Its own loop, in a process of its own; only the network is replaced by the picture's brightness."""
    source = (
        f"import sys; sys.path.insert(0, {str(Path(deqa_worker.__file__).parent)!r})\n"
        "import deqa_worker, os\n"
        "def load(folder):\n"
        "    print('a library says something')\n"
        "    return lambda picture: [sum(picture.getpixel((0, 0))) / 3, 0, 0, 0, 0] if picture.width != 5 else 1 / 0\n"
        "deqa_worker.load = load\n"
        "deqa_worker.main()\n"
    )
    command = [*program(tmp_path, source), "/weights/DeQA-Score-Mix3/"]
    with Deqa(command) as scorer:
        assert scorer.identity["model"] == "DeQA-Score-Mix3"
        assert score(scorer, 0, 30) == pytest.approx([3, 5])
        assert scorer.score([np.zeros((4, 5, 3), dtype=np.uint8)], [""]) == [
            Unscored("it says: ZeroDivisionError: division by zero", may_pass=True)
        ]
        assert score(scorer, 0) == [3]


def test_the_worker_pads_to_a_square_of_the_mean_colour() -> None:
    found = np.asarray(deqa_worker.square(Image.new("RGB", (100, 50), "white")))
    assert found.shape == (448, 448, 3)
    assert found[0, 0].tolist() == [122, 116, 104]
    assert found[224, 224].tolist() == [255, 255, 255]
    assert (found[:, 224] == 255).all(axis=1).sum() == pytest.approx(224, abs=4)


class Words:
    """A tokenizer of the kind: begin, then a number a letter."""

    bos_token_id = 1

    def __call__(self, text: str) -> Any:
        return SimpleNamespace(input_ids=[1, *(ord(letter) for letter in text)])


def test_the_worker_puts_the_picture_between_the_halves_of_the_question() -> None:
    ids = deqa_worker.question_ids(Words())
    assert ids.count(deqa_worker.IMAGE_TOKEN) == ids.count(1) == 1
    before = ids[: ids.index(deqa_worker.IMAGE_TOKEN)]
    assert "".join(map(chr, before[1:])).endswith("this image?\n")
    assert chr(ids[-1]) == "s"
    assert deqa_worker.first_tokens(Words()) == [ord(word[0]) for word in deqa_worker.WORDS]


def test_the_worker_reads_on_old_pythons() -> None:
    ast.parse(Path(deqa_worker.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))


# ---------------------------------------------------------------- UnifiedReward: a server


class Server:
    """Answers each question as `reply` says: a status and a body, or None for no answer at all."""

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], tuple[int, bytes] | None] = lambda _: (200, completion("Final Score: 4"))
        self.models: Callable[[], tuple[int, bytes]] = lambda: (404, b"")
        self.questions: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.location = ""
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.questions.append(question)
                outer.headers.append(dict(self.headers))
                outer.paths.append(self.path)
                answer = outer.reply(question)
                if answer is None:
                    outer.released.wait()
                    return
                self._answer(answer)

            def do_GET(self) -> None:
                assert self.path == "/v1/models"
                self._answer(outer.models())

            def _answer(self, answer: tuple[int, bytes]) -> None:
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(answer[1])))
                if outer.location:
                    self.send_header("Location", outer.location)
                self.end_headers()
                self.wfile.write(answer[1])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()


def completion(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def caption(question: dict[str, Any]) -> str:
    text: str = question["messages"][0]["content"][1]["text"]
    return text.split("Caption: [")[1].split("]\n")[0]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be asked for this machine
    made = Server()
    yield made
    made.close()


def test_the_server_is_asked_with_a_512_pixel_png_and_the_caption(server: Server) -> None:
    scorer = UnifiedReward(url=server.url, key="secret")
    assert scorer.score([grey(9)], ["a {dog} & 50 %"]) == [4]
    (question,) = server.questions
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert (question["model"], question["temperature"]) == ("CodeGoat24/UnifiedReward-7b-v1.5", 0)
    picture, text = question["messages"][0]["content"]
    head, _, encoded = picture["image_url"]["url"].partition(",")
    shown = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert (head, shown.size, shown.format) == ("data:image/png;base64", (512, 512), "PNG")
    assert "a {dog} & 50 %" in text["text"]
    assert "secret" not in repr(scorer) + json.dumps(scorer.identity)


def test_scores_come_in_the_order_of_the_pictures(server: Server) -> None:
    def slowly_backwards(question: dict[str, Any]) -> tuple[int, bytes]:
        number = int(caption(question))
        time.sleep(0.02 * (5 - number))
        return 200, completion(f"It is fine.\nFinal Score: {number}")

    server.reply = slowly_backwards
    scorer = UnifiedReward(url=f"{server.url}/")
    assert scorer.score([grey(0)] * 5, ["1", "2", "3", "4", "5"]) == [1, 2, 3, 4, 5]
    assert scorer.score([], []) == []


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Final Score: 4", 4.0),
        ("Final Score:3.5", 3.5),
        ("Final Score:\n 5", 5.0),
        ("... Final Score: 4.", 4.0),
        ("Final Score: 2/5", 2.0),
        ("Final Score: 1 or Final Score: 2", 1.0),
        ("Final Score: 10", None),
        ("Final Score: 5.5", None),
        ("Final Score: 0", None),
        ("Final Score: four", None),
        ("final score: 4", None),
        ("", None),
    ],
)
def test_only_a_final_score_from_1_to_5_counts(text: str, score: float | None) -> None:
    found = read_score(completion(text))
    if score is None:
        assert isinstance(found, Unscored)
        assert found.reason.startswith("the answer has no final score from 1 to 5")
    else:
        assert found == score


@pytest.mark.parametrize(
    "reply",
    [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b"\xff\xfe"],
)
def test_a_reply_that_is_no_completion_is_unscored(reply: bytes) -> None:
    found = read_score(reply)
    assert isinstance(found, Unscored)
    assert found.reason.startswith("the reply is no chat completion")


def reason(scores: list[Score]) -> str:
    (found,) = scores
    assert isinstance(found, Unscored)
    return found.reason


def test_refusals_are_unscored_and_a_busy_server_is_asked_again(server: Server) -> None:
    scorer = UnifiedReward(url=server.url, attempts=2)
    server.reply = lambda _: (404, b"no such model")
    assert reason(scorer.score([grey(0)], ["a"])) == "the server answers 404 Not Found"
    assert len(server.questions) == 1
    replies = iter([(503, b""), (200, completion("Final Score: 2"))])
    server.reply = lambda _: next(replies)
    assert scorer.score([grey(0)], ["a"]) == [2]
    server.reply = lambda _: (500, b"")
    assert reason(scorer.score([grey(0)], ["a"])) == "the server answers 500 Internal Server Error"
    assert len(server.questions) == 5


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.reply = lambda _: (302, b"")
    server.location = server.url.replace("/v1", "/elsewhere")
    assert reason(UnifiedReward(url=server.url, key="secret").score([grey(0)], ["a"])) == "the server answers 302 Found"
    assert server.paths == ["/v1/chat/completions"]


def test_a_silent_server_is_not_waited_for_and_the_other_pictures_are_scored(server: Server) -> None:
    server.reply = lambda question: None if caption(question) == "b" else (200, completion("Final Score: 3"))
    scores = UnifiedReward(url=server.url, timeout_s=3).score([grey(0)] * 3, ["a", "b", "c"])
    assert scores == [3, Unscored("no answer within 3 s", may_pass=True), 3]


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_server_that_drips_does_not_outlast_the_timeout(part: str) -> None:
    """Each byte comes within the socket's own limit, and there is no last one until the client has gone."""
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                head = b"HTTP/1.1 200 OK\r\nX-A: "
                connection.sendall(head if part == "headers" else head + b"b\r\n\r\n")
                while not gone.wait(0.05):
                    connection.sendall(b"a")
            gone.set()

        threading.Thread(target=drip, daemon=True).start()
        scorer = UnifiedReward(url=f"http://127.0.0.1:{listening.getsockname()[1]}/v1", timeout_s=1.0, attempts=1)
        asking = threading.Thread(target=lambda: answers.extend(scorer.score([grey(0)], ["a"])), daemon=True)
        answers: list[Any] = []
        asking.start()
        asking.join(120)  # a drip would go on for ever
        gone.set()
    assert answers == [Unscored("no answer within 1 s", may_pass=True)]


def test_an_endless_reply_is_cut_off(server: Server) -> None:
    server.reply = lambda _: (200, b" " * 3_000_000)
    assert "more than 1,048,576 bytes" in reason(UnifiedReward(url=server.url, attempts=1).score([grey(0)], ["a"]))


def test_no_server(server: Server) -> None:
    server.close()
    scorer = UnifiedReward(url=server.url, attempts=1, timeout_s=2)
    assert reason(scorer.score([grey(0)], ["a"])).startswith("the server cannot be asked: ")


def test_the_question_is_part_of_the_identity(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    with pytest.raises(PrerequisiteError, match=URL_VARIABLE):
        SCORERS.load("unified-reward")()
    monkeypatch.setenv(URL_VARIABLE, server.url)
    monkeypatch.setenv(KEY_VARIABLE, "k")
    monkeypatch.setenv(MODEL_VARIABLE, "")  # set and empty is not set
    plain = SCORERS.load("unified-reward")()
    assert plain.key == "k"
    (tmp_path / "question.txt").write_text("Rate [{prompt}] as published.")
    monkeypatch.setenv(QUESTION_VARIABLE, str(tmp_path / "question.txt"))
    other = SCORERS.load("unified-reward")()
    assert other.question == "Rate [{prompt}] as published."
    assert plain.question == QUESTION
    assert plain.identity["question"] != other.identity["question"]
    assert plain.identity == {**other.identity, "question": plain.identity["question"], "served": "not said"}
    with pytest.raises(ConfigError, match="no http address"):
        UnifiedReward(url="127.0.0.1:1")
    with pytest.raises(ConfigError, match="parallel is 0"):
        UnifiedReward(url="http://a/v1", parallel=0)
    with pytest.raises(ConfigError, match="does not hold"):
        UnifiedReward(url="http://a/v1", question="Rate it.")


def test_what_is_behind_the_model_s_name_is_part_of_the_identity(server: Server) -> None:
    def models(*entries: dict[str, Any]) -> tuple[int, bytes]:
        return 200, json.dumps({"data": entries}).encode()

    server.models = lambda: models({"id": "judge", "root": "/models/UnifiedReward-7b-v1.5"}, {"id": "other"})
    assert UnifiedReward(url=server.url, model="judge").identity["served"] == "/models/UnifiedReward-7b-v1.5"
    assert UnifiedReward(url=server.url, model="other").identity["served"] == "other"
    with pytest.raises(PrerequisiteError, match="serves judge, other, not CodeGoat24/UnifiedReward-7b"):
        _ = UnifiedReward(url=server.url).identity
    server.models = lambda: (200, b"<html>")
    assert UnifiedReward(url=server.url).identity["served"] == "not said"
    server.models = lambda: (401, b"")
    with pytest.raises(PrerequisiteError, match="answers 401 Unauthorized"):
        _ = UnifiedReward(url=server.url).identity
    server.close()
    with pytest.raises(PrerequisiteError, match="cannot be asked: "):
        _ = UnifiedReward(url=server.url, timeout_s=2).identity


def test_failures_may_pass_and_answers_do_not(server: Server) -> None:
    scorer = UnifiedReward(url=server.url, attempts=1)
    for reply, may_pass in (
        ((503, b""), True),
        ((404, b""), True),
        ((200, b"<html>"), True),
        ((200, completion("I cannot see the picture.")), False),
    ):
        server.reply = lambda _, reply=reply: reply  # type: ignore[misc]
        (found,) = scorer.score([grey(0)], ["a"])
        assert isinstance(found, Unscored)
        assert found.may_pass == may_pass


def test_a_reward_needs_every_picture_scored(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, server.url)
    reward = REWARDS.load("unified-reward")()
    assert reward(grey(0)[None], [Prompt(id="0", text="a dog")]).values_B == (4.0,)
    server.reply = lambda _: (200, completion("I cannot see the picture."))
    with pytest.raises(TrainingError, match="no final score"):
        ScorerReward(reward.scorer)(grey(0)[None], [Prompt(id="0", text="a dog")])
    assert os.environ[URL_VARIABLE] == server.url
