"""Published prompt sets: where they come from, under which licence, and how to know that a copy is right.

None is shipped. `gcpo-bench data fetch` puts them into the data folder, from their source or from a folder that was
carried to a machine without network; a set whose SHA-256 is not the published one is refused, never used. Where none is
known, form and number of the prompts are checked; every evaluation records the digest of its prompts.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gcpo_bench.datasets import Prompt, prompts_of
from gcpo_bench.errors import ConfigError, CorruptDataError, GcpoBenchError, PrerequisiteError, did_you_mean
from gcpo_bench.files import read_bytes, storage, write_bytes
from gcpo_bench.prompt_files import Rows, read_csv, read_geneval, read_lines, read_own, read_t2i_r1, read_texts
from gcpo_bench.registry import BENCHMARK_GROUPS, PROMPT_SETS

TIMEOUT_S = 30
MAX_BYTES = 20_000_000


# ---------------------------------------------------------------- what there is


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    name: str
    summary: str
    file: str
    """Its place in the data folder: folder and file name; of a set of several files the folder they lie in."""
    files: tuple[str, ...] = ()
    """Several files: each is a task, named as the file is, with as many prompts as the others. Empty: a single file."""
    sha256: str = ""
    """Of a single file; empty where it is not known."""
    count: int
    source: str
    """Repository and path in it."""
    url: str = ""
    """Where it can be fetched, of several files up to their names; empty where only a copy from the source will do."""
    licence: str
    read: Callable[[str], Rows] = read_lines
    is_for_training: bool = False
    part_of: str = ""
    """The set that it belongs to, where it is no benchmark of its own."""
    tag: str = ""
    """Task of every prompt, where the file says none."""
    others: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of other published versions, as they are and with LF, and what they are."""

    @property
    def sha256_with_lf(self) -> str:
        """Of the file where every line, the last too, ends with LF: how a copy is known whose ends were converted."""
        return _WITH_LF.get(Path(self.file).stem, self.sha256)

    @property
    def path(self) -> Path:
        return storage("data") / self.file

    @property
    def paths(self) -> tuple[Path, ...]:
        """Of all its files."""
        return tuple(self.path / name for name in self.files) or (self.path,)

    @property
    def is_there(self) -> bool:
        """Whether its files are on this machine, whatever they hold."""
        return all(path.is_file() for path in self.paths)

    @property
    def mend(self) -> str:
        """The command that gets it here."""
        return f"gcpo-bench data fetch {self.name}{'' if self.url else ' --from FOLDER'}"


_RAW = "https://raw.githubusercontent.com"
UNSTATED = "none stated: not redistributed"
_COMPBENCH = {
    "color": ("color_val", "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d"),
    "shape": ("shape_val", "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae"),
    "texture": ("texture_val", "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f"),
    "spatial": ("spatial_val", "8707a1d7e42ce3002d95363cf55f74bd043c843ae27108f5125aaaa7840ca988"),
    "3d-spatial": ("3d_spatial_val", "c9953597315f36a5fcb41291bb19bdc6ab5f64a0fa760d691b4854a73f5d1fe9"),
    "numeracy": ("numeracy_val", "dad8df141604b70ba7554bec724e3db0a80023680769b5c514854ea2d2527bbe"),
    "non-spatial": ("non_spatial_val", "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d"),
    "complex": ("complex_val", "1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4"),
}
_COMPBENCH_PARTS = (
    (
        "complex-spatial",
        "complex",
        "complex_val_spatial",
        58,
        "6c7ac0ab75c7c9080cfc7b421fb059b9b0febb98471707aeedf58771088abc02",
        "T2I-CompBench: which complex prompts are about places",
    ),
    (
        "complex-action",
        "complex",
        "complex_val_action",
        212,
        "d49ee4c7f99e3f3379fb8704a54ff5288b83bb412971edf616a4721c2473308e",
        "T2I-CompBench: which complex prompts are about actions",
    ),
    (
        "objects",
        "numeracy",
        "new_objects",
        101,
        "f39a3d2ff6067d7738673cbf465dc659ccc750776162989a5d9916f1d5f3e231",
        "T2I-CompBench: names of objects in singular and plural, for numeracy",
    ),
)
_WITH_LF = {
    "color_val": "fa43681d76e9bb029cc23b17823200715a065acd6871db3afbaf489b2a22a295",
    "shape_val": "dc98faeea2781da992f036c3afcbe965e844bafa8fafc0c4a66f54a06f0cb5e0",
    "texture_val": "41bf181329f266bb26d4979d65b066d383ce7806cc375c0b02a72c38e9029789",
    "spatial_val": "bb76dd9862c1f7b11945551fc716b58d592cffab81e3a97e8eef46e5dc878b12",
    "3d_spatial_val": "88402bc47250dc18476a43f0b8ad35cd03424f5e5278adee295dfd550cae53fc",
    "numeracy_val": "27e59b67ce78abb59bd09c93b5e82f18cc953a0d33c1feb1a526afdc60f2cd28",
    "non_spatial_val": "68ba50936349eb6c2b49ca69136260a895cbea447f8e5a3452f80ddae22c9056",
    "complex_val": "fe781aa5c04c7bf2b0fd8eaa2e43c3b033ef6d38e25e56b4ab273695b108a6cd",
    "complex_val_spatial": "e12ba54f0ac7db11d52726c2a0b18e90528072f9a99bf710e187b06aad88bbab",
    "complex_val_action": "66ad4932fbe774d7d985dad8fe04709346dae4a22921e0d000aee9ebfb508c22",
    "new_objects": "b428e9cda0d88adf8839ae0e791c17133921bee4c926c12970f79adf0a23dbca",
    "drawbench": "2901559247f40d9b1c1a156861746712c39cfe885c0c4774709129b65066746d",
    "t2i_r1_prompts": "9c3d343082f36e632f6012e9609b8fa9067c8b989f45c0db98e116f2cfbb18f7",
}
"""File -> SHA-256 where every line ends with LF, of those that are published otherwise."""
_OLD_COLORS = dict.fromkeys(
    (
        "1e37a12c1861bf6b11623eaffb0bf6d6eeea9702caf45b95d040f1721bba7f4f",
        "4d002b408b21134f4c9c10b6c91db406a78ee19a87afa62584e0c4db2c58b5f9",  # with LF
    ),
    "the version before 2025-09-03, five prompts of which are others; papers until then used it",
)

_SETS = (
    PromptSet(
        name="geneval",
        summary="GenEval: 553 prompts in six tasks, with what must be in the picture",
        file="geneval/evaluation_metadata.jsonl",
        sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
        count=553,
        source="djghosh13/geneval, prompts/evaluation_metadata.jsonl",
        url=f"{_RAW}/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl",
        licence="MIT",
        read=read_geneval,
    ),
    *(
        PromptSet(
            name=f"t2i-compbench-{category}",
            summary=f"T2I-CompBench: the {category} prompts of the val set",
            file=f"t2i-compbench/{stem}.txt",
            sha256=sha256,
            count=300,
            source=f"Karine-Huang/T2I-CompBench, examples/dataset/{stem}.txt",
            url=f"{_RAW}/Karine-Huang/T2I-CompBench/main/examples/dataset/{stem}.txt",
            licence="MIT",
            tag=category,
            others=_OLD_COLORS if category == "color" else {},
        )
        for category, (stem, sha256) in _COMPBENCH.items()
    ),
    *(
        PromptSet(
            name=f"t2i-compbench-{name}",
            summary=summary,
            file=f"t2i-compbench/{stem}.txt",
            sha256=sha256,
            count=count,
            source=f"Karine-Huang/T2I-CompBench, examples/dataset/{stem}.txt",
            url=f"{_RAW}/Karine-Huang/T2I-CompBench/main/examples/dataset/{stem}.txt",
            licence="MIT",
            part_of=f"t2i-compbench-{whole}",
        )
        for name, whole, stem, count, sha256, summary in _COMPBENCH_PARTS
    ),
    PromptSet(
        name="drawbench",
        summary="DrawBench: 200 prompts in eleven categories",
        file="drawbench/drawbench.csv",
        sha256="e120fd4d8aa8f6c44b0b3ee92d9dfb7463c67f5b2d427d23a2bf388f80a0c0c1",
        count=200,
        source="Imagen's DrawBench, as copied in krennic999/STAGE, data/",
        licence=UNSTATED,
        read=read_csv,
    ),
    PromptSet(
        name="hps-benchmark",
        summary="HPSv2's benchmark: 800 prompts of each of four styles",
        file="hps/benchmark",
        files=("anime.json", "concept-art.json", "paintings.json", "photo.json"),
        count=3200,
        source="zhwang/HPDv2 (a data set on the Hugging Face hub), benchmark/",
        url="https://huggingface.co/datasets/zhwang/HPDv2/resolve/main/benchmark/",
        licence="Apache-2.0?",  # not checked at its source
        read=read_texts,
    ),
    PromptSet(
        name="hps-gcpo400",
        summary="the 400 prompts that GCPO and MaskFocus score with HPS v2.1",
        file="hps/hps2_1_prompts_400.txt",
        sha256="6eb1c5561a58da305155ba00755822de4f8b0bc239175e20334e431e978f4a82",
        count=400,
        source="zghhui/GCPO, llamaGen/hpsv2/hps2_1_prompts.txt",
        url=f"{_RAW}/zghhui/GCPO/main/llamaGen/hpsv2/hps2_1_prompts.txt",
        licence=UNSTATED,
    ),
    PromptSet(
        name="t2i-r1",
        summary="T2I-R1: 7,223 training prompts with nouns, attributes and relations",
        file="train/t2i_r1_prompts.jsonl",
        sha256="96b956b5c92477ea2ff13cdd0c805f762a9d9fd5af43141ada6850ab3f6a0171",
        count=7223,
        source="CaraJ7/T2I-R1, data/",
        licence="Apache-2.0",
        read=read_t2i_r1,
        is_for_training=True,
    ),
)
SETS: Mapping[str, PromptSet] = {each.name: each for each in _SETS}


def get(name: str) -> PromptSet:
    """Raises ConfigError for a name that is none."""
    if name not in SETS:
        raise ConfigError(f"unknown published prompt set {name!r}", hint=did_you_mean(name, SETS))
    return SETS[name]


def with_parts(name: str) -> tuple[str, ...]:
    """The set, or those of a group of benchmarks, and what belongs to them. Raises as `get`."""
    whole = tuple(each for each in BENCHMARK_GROUPS.get(name, ()) if each in SETS) or (get(name).name,)
    return (*whole, *(each.name for each in SETS.values() if each.part_of in whole))


# ---------------------------------------------------------------- on this machine


def load(name: str) -> tuple[Prompt, ...]:
    """The prompts of a published set, in order, after a check of the file's digest, where that is known.

    Raises PrerequisiteError where it is not on this machine, CorruptDataError where its content is not the published.
    """
    return parse(get(name), *_checked(get(name)))


def geneval() -> Sequence[Prompt]:
    """GenEval's 553 prompts."""
    return load("geneval")


def t2i_r1() -> Sequence[Prompt]:
    """T2I-R1's training prompts."""
    return load("t2i-r1")


def parse(prompt_set: PromptSet, *contents: bytes) -> tuple[Prompt, ...]:
    """Prompts of a set's files, with ids `00000`, `00001`, ...; of several files `<file>-00000`, ..., each from 0.

    Raises CorruptDataError for a file or line that cannot be read, and where several files are not equally long.
    """
    return tuple(
        Prompt(id=f"{prefix}{index:05d}", text=text, metadata={"tag": tag, **metadata})
        for path, content in zip(prompt_set.paths, contents, strict=True)
        for prefix, tag in [(f"{path.stem}-", path.stem) if prompt_set.files else ("", prompt_set.tag)]
        for index, (text, metadata) in enumerate(_rows(prompt_set, path, content))
    )


def _rows(prompt_set: PromptSet, path: Path, content: bytes) -> Rows:
    """Of one file of a set."""
    try:
        rows = prompt_set.read(content.decode("utf-8-sig"))
    except (ValueError, KeyError) as error:
        raise CorruptDataError(f"{path} is damaged: {error}", hint=prompt_set.mend) from error
    if prompt_set.files and len(rows) * len(prompt_set.files) != prompt_set.count:
        expected = prompt_set.count // len(prompt_set.files)
        raise CorruptDataError(f"{path} has {len(rows)} prompts, published are {expected}", hint=prompt_set.mend)
    return rows


def verify(name: str) -> None:
    """Raises as `load` does."""
    prompt_set = get(name)
    found = len(parse(prompt_set, *_checked(prompt_set)))
    if found != prompt_set.count:
        raise CorruptDataError(f"{prompt_set.path} has {found} prompts, not {prompt_set.count}", hint="fetch it again")


def _checked(prompt_set: PromptSet) -> list[bytes]:
    contents = []
    for path in prompt_set.paths:
        if not path.is_file():
            more = ", or with --from FOLDER where there is no network" if prompt_set.url else f": {prompt_set.source}"
            raise PrerequisiteError(
                f"the prompts of {prompt_set.name} are not on this machine ({path})", hint=f"{prompt_set.mend}{more}"
            )
        contents.append(read_bytes(path))
        check_content(prompt_set, path, contents[-1], path)
    return contents


def check_content(prompt_set: PromptSet, path: Path, content: bytes, where: Path | str) -> None:
    """Of the file that belongs at `path`. Raises CorruptDataError where this is not the published content."""
    if prompt_set.sha256:
        check_digest(prompt_set, content, where)
    else:
        _rows(prompt_set, path, content)


def check_digest(prompt_set: PromptSet, content: bytes, where: Path | str) -> None:
    """Raises CorruptDataError where this is not the published content."""
    digest = hashlib.sha256(content).hexdigest()
    plain = content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").removesuffix(b"\n")
    with_lf = hashlib.sha256(plain + b"\n").hexdigest()
    if digest == prompt_set.sha256 or with_lf == prompt_set.sha256_with_lf:
        return
    if other := prompt_set.others.get(digest, prompt_set.others.get(with_lf)):
        raise CorruptDataError(
            f"{where} is {other}",
            hint=f"scores on it are not comparable; get the current file from {prompt_set.source}",
        )
    raise CorruptDataError(
        f"{where} is not the published {prompt_set.name}: SHA-256 is {digest}, should be {prompt_set.sha256}",
        hint=f"a line was changed; get it again from {prompt_set.source}",
    )


def fetch(name: str, source: Path | None = None) -> Path:
    """Put a set into the data folder: from `source`, a folder that holds it somewhere, or from where it is published.

    Raises PrerequisiteError where it cannot be had, CorruptDataError where it is not the published content.
    """
    prompt_set = get(name)
    contents = [
        _download(prompt_set, path) if source is None else _import(prompt_set, path, source)
        for path in prompt_set.paths
    ]
    for path, content in zip(prompt_set.paths, contents, strict=True):
        write_bytes(path, content)
    return prompt_set.path


def _import(prompt_set: PromptSet, place: Path, source: Path) -> bytes:
    """What belongs at `place`."""
    names = {place.name} if prompt_set.files else {place.name, prompt_set.source.rpartition("/")[2]}
    candidates = sorted(path for path in source.rglob("*") if path.name in names and path.is_file())
    own = place.relative_to(storage("data")).as_posix()
    candidates.sort(key=lambda path: not path.as_posix().endswith(own))
    wrong: list[GcpoBenchError] = []
    for path in candidates:
        content = read_bytes(path)
        try:
            check_content(prompt_set, path, content, path)
        except CorruptDataError as error:
            wrong.append(error)
        else:
            return content
    if wrong:
        raise wrong[0]
    raise PrerequisiteError(
        f"{source} holds no {place.name} of {prompt_set.name}",
        hint=f"get it from {prompt_set.source} and name the folder it lies in",
    )


def _download(prompt_set: PromptSet, place: Path) -> bytes:
    """What belongs at `place`."""
    import http.client
    import urllib.request

    mend = f"get it from {prompt_set.source}, then: gcpo-bench data fetch {prompt_set.name} --from FOLDER"
    if not prompt_set.url:
        raise PrerequisiteError(f"no address is known that {prompt_set.name} can be fetched from", hint=mend)
    url = prompt_set.url + (place.name if prompt_set.files else "")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            content: bytes = response.read(MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise PrerequisiteError(f"{url} cannot be fetched: {reason}", hint=mend) from error
    check_content(prompt_set, place, content, url)
    return content


# ---------------------------------------------------------------- leakage


@dataclass(frozen=True, slots=True)
class Overlap:
    """Evaluation prompts that are training prompts too."""

    exact: tuple[str, ...]
    normalized: tuple[str, ...]
    """Those of other case, punctuation or spacing; without the exact ones."""
    total: int
    """Different evaluation prompts."""


def normalized(text: str) -> str:
    """Lower case, composed Unicode, words only, one space between."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words)


def overlap(train: Iterable[str], evaluation: Iterable[str]) -> Overlap:
    """Which evaluation prompts a training set gives away, in their order, each once."""
    seen = set(train)
    seen_normalized = {normalized(text) for text in seen}
    wanted = list(dict.fromkeys(evaluation))
    return Overlap(
        exact=tuple(text for text in wanted if text in seen),
        normalized=tuple(text for text in wanted if text not in seen and normalized(text) in seen_normalized),
        total=len(wanted),
    )


def leaks(train: Iterable[str]) -> dict[str, Overlap]:
    """The evaluation sets on this machine that these training prompts give something of away."""
    train = list(train)
    there = [each.name for each in SETS.values() if not (each.is_for_training or each.part_of) and each.is_there]
    found = {name: overlap(train, texts(name)) for name in there}
    return {name: each for name, each in found.items() if each.exact or each.normalized}


def texts(name_or_file: str) -> list[str]:
    """The prompts of a published set, a registered one, a function of one's own (`module:function`), or a file.

    Raises ConfigError for a name that is none of these, and as `read_own` does.
    """
    if name_or_file in SETS:
        return [prompt.text for prompt in load(name_or_file)]
    path = Path(name_or_file)
    if name_or_file not in PROMPT_SETS.entries and path.is_file():
        return read_own(path)
    if name_or_file in PROMPT_SETS:
        return [prompt.text for prompt in prompts_of(name_or_file)]
    raise ConfigError(
        f"{name_or_file!r} is neither a prompt set nor a file",
        hint=did_you_mean(name_or_file, {*SETS, *PROMPT_SETS.entries}),
    )
