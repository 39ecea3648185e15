"""UnifiedReward (arXiv 2503.05236) behind any server that speaks OpenAI's chat API, such as vLLM or SGLang: 1 to 5.

The picture goes as a 512 x 512 PNG, the answer is read after "Final Score:". An answer without a score from 1 to 5, a
timeout or a refusal leaves the picture unscored, with the reason; published code counts such pictures as 0, and reads
"10" as 1. Papers print the score as it is; Flow-GRPO divides by 5.

The wording of the question is part of the score and of its identity. The one here is our own; for published numbers
give the published wording as a file with `{prompt}` in it.

Sources: CodeGoat24/UnifiedReward, yifan123/flow_grpo `unifiedreward_scorer.py`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from PIL import Image as Pictures

from gcpo_bench.errors import ConfigError, PrerequisiteError
from gcpo_bench.files import read_bytes, reading

from .types import Image, Images, Score, Unscored, check_images

OBSERVER = 1
"""Raised when a score can change; pictures that were scored before are then scored again."""
MODEL = "CodeGoat24/UnifiedReward-7b-v1.5"
URL_VARIABLE = "GCPO_BENCH_UNIFIED_REWARD"
MODEL_VARIABLE = "GCPO_BENCH_UNIFIED_REWARD_MODEL"
KEY_VARIABLE = "GCPO_BENCH_UNIFIED_REWARD_KEY"
QUESTION_VARIABLE = "GCPO_BENCH_UNIFIED_REWARD_QUESTION"
QUESTION = (
    "Judge how well this generated image follows its caption and how good it looks.\n"
    "Consider whether every object, attribute and relation of the caption is there, and whether the image is clear, "
    "detailed and pleasing.\n"
    "Caption: [{prompt}]\n"
    "End with a score from 1 (worst) to 5 (best), written as 'Final Score: ' and the number."
)
SIDE = 512
MAX_REPLY_BYTES = 1 << 20
MAX_TOKENS = 1024
_SCORE = re.compile(r"Final Score:\s*([1-5](?:\.\d+)?)(?![\d.]*\d)")
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_NO_SUCH_QUESTION = frozenset({404, 405, 501})
_SHOWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class UnifiedReward:
    url: str
    """Up to and with the version: http://127.0.0.1:8000/v1."""
    model: str = MODEL
    question: str = QUESTION
    """With `{prompt}` where the caption goes."""
    key: str = field(default="", repr=False)
    """Sent as a bearer token where given; never recorded."""
    timeout_s: float = 120.0
    """For one whole answer."""
    attempts: int = 2
    """A server that is busy or does not answer is asked again."""
    parallel: int = 8
    """Questions under way at once, so that the server can batch them."""
    name: str = "unified-reward"
    unit: str = "points"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise ConfigError(f"{self.url!r} is no http address", hint="write it as http://127.0.0.1:8000/v1")
        for name in ("attempts", "parallel"):
            if getattr(self, name) < 1:
                raise ConfigError(f"UnifiedReward's {name} is {getattr(self, name)}", hint="use 1 or more")
        if "{prompt}" not in self.question:
            raise ConfigError("UnifiedReward's question does not hold {prompt}", hint="mark where the caption goes")

    @property
    def identity(self) -> Mapping[str, Any]:
        """With what the server says is behind the model's name. Raises PrerequisiteError where it cannot be asked."""
        digest = hashlib.sha256(self.question.encode()).hexdigest()
        asked = {"model": self.model, "served": self._served(), "question": f"sha256:{digest}", "side": SIDE}
        return {"scorer": self.name, "observer": OBSERVER, **asked}

    def check(self) -> None:
        """Raises PrerequisiteError where the server cannot be asked, or serves other models."""
        self._served()

    def _served(self) -> str:
        try:
            served = read_models(self._send("models"))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _NO_SUCH_QUESTION:
                return "not said"
            raise self._unavailable(f"answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(f"cannot be asked: {_reason(error)}") from error
        if served and self.model not in served:
            raise self._unavailable(f"serves {', '.join(served)}, not {self.model}")
        return served.get(self.model, "not said")

    def _unavailable(self, problem: str) -> PrerequisiteError:
        return PrerequisiteError(
            f"UnifiedReward's server at {self.url} {problem}",
            hint=f"start it, or mend {URL_VARIABLE}, {MODEL_VARIABLE} or {KEY_VARIABLE}",
        )

    def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
        pictures = check_images(images, prompts)
        with ThreadPoolExecutor(max_workers=self.parallel) as pool:
            return list(pool.map(self._score, pictures, prompts))

    def _score(self, image: Image, prompt: str) -> Score:
        body = json.dumps(self._question(image, prompt)).encode()
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(min(1.0, self.timeout_s))
            try:
                return read_score(self._send("chat/completions", body))
            except urllib.error.HTTPError as error:
                failure = f"the server answers {error.code} {error.reason}"
                error.close()
                if error.code not in _BUSY:
                    break
            except TimeoutError:
                failure = f"no answer within {self.timeout_s:g} s"
                break
            except (OSError, http.client.HTTPException) as error:
                if isinstance(getattr(error, "reason", None), TimeoutError):
                    failure = f"no answer within {self.timeout_s:g} s"
                    break
                failure = f"the server cannot be asked: {_reason(error)}"
        return Unscored(failure, may_pass=True)

    def _question(self, image: Image, prompt: str) -> dict[str, Any]:
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png(image)}"}}
        # not str.format: captions and questions may hold other braces
        text = {"type": "text", "text": self.question.replace("{prompt}", prompt)}
        return {
            "model": self.model,
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "messages": [{"role": "user", "content": [picture, text]}],
        }

    def _send(self, path: str, body: bytes | None = None) -> bytes:
        """The reply. Raises OSError (which HTTPError and TimeoutError are) and HTTPException."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{path}", data=body, headers=headers)
        # a proxy for the outside world must not be asked for this machine
        here = urlsplit(self.url).hostname in {"127.0.0.1", "localhost", "::1"}
        proxies: list[Any] = [urllib.request.ProxyHandler({})] if here else []
        with _Deadline(self.timeout_s) as deadline:
            handlers: list[Any] = [_Http(deadline), _Https(deadline), _NoRedirect, *proxies]
            with urllib.request.build_opener(*handlers).open(request, timeout=self.timeout_s) as response:
                reply: bytes = response.read(MAX_REPLY_BYTES + 1)
        if len(reply) > MAX_REPLY_BYTES:
            raise http.client.HTTPException(f"a reply of more than {MAX_REPLY_BYTES:,} bytes")
        return reply


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__


class _Deadline:
    """Ends a connection when the whole time is over; a socket's own limit is for each piece, and a server can drip.

    Raises TimeoutError in place of what that breaks.
    """

    def __init__(self, timeout_s: float) -> None:
        self._end = time.monotonic() + timeout_s
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(timeout_s, self._close)
        self._timer.daemon = True

    def connect(self, *args: Any, **kwargs: Any) -> socket.socket:
        """`socket.create_connection`; a second handle on the connection stays here, as TLS takes the first one over."""
        made = socket.create_connection(*args, **kwargs)
        with self._lock:
            self._sockets.append(made.dup())
        if self.is_over:
            made.close()
            raise TimeoutError
        return made

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def _close(self) -> None:
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        with self._lock:
            while self._sockets:
                self._sockets.pop().close()
        if self.is_over and (error is None or isinstance(error, OSError | http.client.HTTPException)):
            raise TimeoutError from error


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_connecting(http.client.HTTPConnection, self._deadline), request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_connecting(http.client.HTTPSConnection, self._deadline), request)


def _connecting(kind: type[http.client.HTTPConnection], deadline: _Deadline) -> Any:
    def make(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
        connection: Any = kind(*args, **kwargs)
        connection._create_connection = deadline.connect  # http.client's own hook, which it has no public name for
        return connection  # type: ignore[no-any-return]

    return make


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to somebody else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def read_score(reply: bytes) -> Score:
    """The score in a chat completion."""
    try:
        text = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, LookupError, TypeError):
        text = None
    if not isinstance(text, str):
        shown = reply[:_SHOWN].decode(errors="replace")
        return Unscored(f"the reply is no chat completion: {shown!r}", may_pass=True)
    found = _SCORE.search(text)
    value = float(found[1]) if found else 0.0
    if not 1 <= value <= 5:
        return Unscored(f"the answer has no final score from 1 to 5: {text[-_SHOWN:]!r}")
    return value


def read_models(reply: bytes) -> dict[str, str]:
    """Names a server knows -> the model behind each, where it says that; empty where the reply is something else."""
    try:
        return {str(each["id"]): str(each.get("root") or each["id"]) for each in json.loads(reply)["data"]}
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}


def _png(image: Image) -> str:
    file = io.BytesIO()
    picture = Pictures.fromarray(image).resize((SIDE, SIDE), Pictures.Resampling.BICUBIC)
    picture.save(file, format="PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode("ascii")


def unified_reward() -> UnifiedReward:
    """At `$GCPO_BENCH_UNIFIED_REWARD`; raises PrerequisiteError where no address is given."""
    url = os.environ.get(URL_VARIABLE, "")
    if not url:
        raise PrerequisiteError(
            f"UnifiedReward runs behind a server, and {URL_VARIABLE} names none",
            hint=f"serve {MODEL} with vLLM or SGLang, then {URL_VARIABLE}=http://127.0.0.1:8000/v1",
        )
    question = QUESTION
    if file := os.environ.get(QUESTION_VARIABLE):
        data = read_bytes(Path(file))
        with reading(Path(file)):
            question = data.decode("utf-8")
    return UnifiedReward(
        url=url,
        model=os.environ.get(MODEL_VARIABLE) or MODEL,
        key=os.environ.get(KEY_VARIABLE, ""),
        question=question,
    )
