"""What LlamaGen knows of a prompt: the last states of flan-t5-xl's encoder, at most 120 of them.

The encoder stands outside the policy: it is in no checkpoint, is not trained, and policy and reference share it. Each
text is read by itself and once, so its states do not depend on what else is in a batch.

Captions are cleaned by the rules that LlamaGen's training captions were cleaned by. Two departures: mojibake is not
repaired (the released code calls ftfy), and a caption of more than 120 tokens is refused (it is cut off there).

Source: FoundationVision/LlamaGen, `language/t5.py` and `language/extract_t5_feature.py`.
"""

from __future__ import annotations

import html
import re
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from html.entities import html5
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from gcpo_bench.catalogue import CATALOGUE
from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.weights import locate

MAX_TOKENS = 120
"""The end-of-text token is one of them."""
CACHED_TEXTS = 1024
"""Texts whose states are kept; about 80 kB each for 20 tokens."""
PROBE = "a photo of a dog"
"""Words that any tokenizer of English knows."""
FLAN_T5 = CATALOGUE["flan-t5-xl"]
WIDTH = 2048
"""Of its states."""
NUM_BYTES = 2 * 1_223_527_424
"""Of its encoder, in bfloat16."""

Encoder = tuple[PreTrainedTokenizerBase, T5EncoderModel]


class TextEncoder:
    """`load` is called when the first text is read. Safe to use from several threads."""

    def __init__(self, load: Callable[[], Encoder]) -> None:
        self._load = load
        self._encoder: Encoder | None = None
        self._states: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> TextEncoder:
        return self  # nothing in it changes by training, and it is larger than the policy

    def __call__(self, text: str, device: torch.device) -> Tensor:
        """States (N, C) of the N tokens of `text`. Raises ConfigError where N is above `MAX_TOKENS`."""
        with self._lock:
            if text not in self._states:
                self._states[text] = self._read(text, device)
                if len(self._states) > CACHED_TEXTS:
                    self._states.popitem(last=False)
            self._states.move_to_end(text)
            return self._states[text].to(device)

    def length(self, text: str) -> int:
        """Tokens of `text`, which is not read; at most `MAX_TOKENS`."""
        with self._lock:
            return min(len(self._ids(text)), MAX_TOKENS)

    def _ids(self, text: str) -> list[int]:
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder[0](clean(clean(text))).input_ids  # type: ignore[no-any-return]

    def _read(self, text: str, device: torch.device) -> Tensor:
        ids = self._ids(text)
        if len(ids) > MAX_TOKENS:
            raise ConfigError(
                f"a prompt of {len(ids)} text tokens, and LlamaGen reads {MAX_TOKENS}: {text[:60]!r}...",
                hint="shorten the prompt, or leave it out of the prompt set",
            )
        assert self._encoder is not None
        model = self._encoder[1]
        # normal tensors also where the caller is in inference mode: a later update may need them
        with torch.inference_mode(False), torch.no_grad():
            model.to(device)  # type: ignore[arg-type]
            return model(input_ids=torch.tensor([ids], device=device)).last_hidden_state[0]  # type: ignore[no-any-return]


def flan_t5() -> TextEncoder:
    """What `gcpo-bench models fetch flan-t5-xl` brought."""
    return TextEncoder(lambda: load_encoder(locate(FLAN_T5)))


def load_encoder(folder: Path) -> Encoder:
    """In bfloat16, in which LlamaGen's training captions were read.

    Raises CorruptDataError where it cannot be, where weights are missing (transformers would go on with random ones) or
    the tokenizer knows no words (it makes an empty one of a folder without its file).
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded: Any = T5EncoderModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.bfloat16, output_loading_info=True
        )
        model, loading = loaded
        if absent := sorted(loading["missing_keys"]):
            raise ValueError(f"{len(absent)} of its weights are missing, the first is {absent[0]!r}")
        ids = tokenizer(PROBE).input_ids
        if tokenizer.unk_token_id in ids or ids[-1] != tokenizer.eos_token_id:
            raise ValueError(
                "its tokenizer does not know English words, or the end of a text; is tokenizer.json there?"
            )
        if max(ids) >= model.config.vocab_size:
            raise ValueError("its tokenizer is that of another model")
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CorruptDataError(
            f"LlamaGen's text encoder {folder} cannot be loaded: {reason}",
            hint=f"fetch it again: gcpo-bench models fetch {FLAN_T5.name}",
        ) from error
    return tokenizer, model.train(mode=False)


def random(width: int) -> TextEncoder:
    """Two layers of the same class and a token a byte; always the same weights."""
    config = T5Config(
        vocab_size=384,
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )

    def load() -> Encoder:
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):  # the constructor draws weights too
            model = T5EncoderModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        return ByT5Tokenizer(), model.train(mode=False)

    return TextEncoder(load)


# ---------------------------------------------------------------- captions

DOMAIN = r"[a-z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/\-]*\b/?(?!@)"
FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
DASHES = (
    r"\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    r"\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)


def _rules(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


LINKS = _rules(
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{DOMAIN})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{DOMAIN})", ""),
)
SIGNS = _rules(
    (r"@\w+\b", ""),  # nicknames
    (r"[\u31c0-\u9fff]+", ""),  # Chinese, Japanese and Korean blocks without kana
    (rf"[{DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # network addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{FILES})", ""),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\][}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
NOISE = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # names of articles: letters and digits mixed
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FILES})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # dimensions; the second sign is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"""^["']([\w\W]+)["']$""", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean(caption: str) -> str:
    """One pass over a caption: lower case, and no links, markup, file names, article numbers or advertisement."""
    caption = _apply(LINKS, unquote_plus(caption).strip().lower())
    caption = _apply(SIGNS, _without_markup(caption))
    if len(re.findall(r"[-_]", caption)) > 3:  # a file name made of words
        caption = re.sub(r"[-_]", " ", caption)
    return _apply(NOISE, html.unescape(html.unescape(_plain_letters(caption))).strip()).strip()


def _plain_letters(text: str) -> str:
    """Composed letters, no ligatures, wide forms or control characters: what ftfy does beside mojibake."""
    text = re.sub(r"[\x00-\x08\x0b\x0e-\x1f\x7f]", "", text)
    text = re.sub(r"[\ufb00-\ufb06\uff01-\uffef]", lambda letter: unicodedata.normalize("NFKC", letter[0]), text)
    return unicodedata.normalize("NFC", text)


def _apply(rules: tuple[tuple[re.Pattern[str], str], ...], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


class _Text(HTMLParser):
    """The text of a page, without its tags, scripts and styles; as BeautifulSoup gives it over this same parser."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.parts.append(data)

    def handle_entityref(self, name: str) -> None:
        self.parts.append(html.unescape(f"&{name};") if f"{name};" in html5 else f"&{name}")

    def handle_charref(self, name: str) -> None:
        self.parts.append(html.unescape(f"&#{name};"))


def _without_markup(text: str) -> str:
    parser = _Text()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)
