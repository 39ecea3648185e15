"""Every option acts, or is refused or named where it cannot: each key of the configuration is changed in real steps.

A key that is new is found here by itself. A number, truth value or choice that nothing reads fails at once; a text
needs another value in `OTHERS`, and then fails too.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gcpo_bench import runs
from gcpo_bench.cli.evaluate_runs import evaluate_run
from gcpo_bench.config import PolicyConfig, RunConfig, SelectorConfig, WeightingConfig
from gcpo_bench.errors import ConfigError, GcpoBenchError
from gcpo_bench.files import checksum, inline_yaml
from gcpo_bench.idle import idle
from gcpo_bench.registry import POLICIES, SELECTORS, WEIGHTINGS
from gcpo_bench.resolve import flatten, resolve
from gcpo_bench.training import memory, starts
from gcpo_bench.training.learner import Learner, build_learner
from gcpo_bench.training.loop import train
from gcpo_bench.training.metrics import Stopwatch, describe
from gcpo_bench.training.observation import draw_prompts, observe
from gcpo_bench.training.selectors import build_selectors, select
from gcpo_bench.training.update import update
from gcpo_bench.training.weighting import build_weighting

from .reference.inputs import make_signals

SMALL = (
    "sampling.prompts_per_step=3", "sampling.group_size=4", "sampling.batch_rows=12", "optimizer.micro_batch_rows=3",
    "optimizer.learning_rate=0.003", "loss.beta=0.1", "num_threads=1", "num_steps=4", "seed=3",
    "logging.tracked_prompts=1", "logging.checkpoint_every=1", "evaluation.prompts_per_task=1",
    "evaluation.images_per_prompt=1",
)  # fmt: skip
CONTEXTS: dict[str, tuple[str, ...]] = {
    "plain": ("policy.name=scenes-8", "method=grpo", "logging.token_maps_every=0"),
    "busy": (
        "policy.name=scenes-8", "method=gcpo-official", "sampling.guidance_scale=2", "sampling.temperature=1.25",
        "optimizer.schedule=cosine", "optimizer.min_rate=0.1", "optimizer.epochs=2", "optimizer.minibatches=2",
        "logging.token_maps_every=2",
        "rewards=[{name: geneval}, {name: scene-strict, weight: 0.5}]",
    ),
    "adapters": (
        "policy.name=llamagen-tiny", "method=gcpo-paper", "policy.random_init=true", "policy.lora={rank: 2}",
        "rewards=[{name: redness}]", "logging.token_maps_every=2",
    ),
}  # fmt: skip
"""Settings in which nearly nothing, nearly everything, and what a large family has can act."""
OTHERS: dict[str, tuple[Any, ...]] = {
    "policy.name": ("scenes-12",),
    "policy.weights": ("elsewhere",),
    "policy.template": ("gcpo",),
    "policy.trained": ("layers",),
    "policy.device": ("cuda",),
    "policy.lora": ({"rank": 2},),
    "policy.lora.targets": (["wqkv"],),
    "policy.recompute": ("always",),  # `auto` is one of the other two
    "data.prompts": ("scenes-heldout",),
    "rewards.name": ("geneval-dense",),
    "selection.selectors.name": ("low-confidence",),
    "selection.selectors.options": ({"unknown": 1},),
    "selection.selectors.options.window": ([0.5, 1],),
    "weighting.name": ("confidence", "uniform"),
    "sampling.batch_rows": (2,),  # at most so many: more would change nothing
    "optimizer.micro_batch_rows": (2,),
    "optimizer.max_grad_norm": (0.001,),
    "optimizer.betas": ([0.5, 0.999], [0.9, 0.5]),
    "evaluation.benchmark": ("geneval",),
    "logging.tracked_prompt_set": ("scenes-train",),
    "num_steps": (3,),
}
"""Key without places in lists -> other values, where the kind of the value says none."""
LABELS = {"method", "logging.variant"}
"""Names of settings, which reports show; `tests/test_resolve.py` shows what a method brings."""
ELSEWHERE = {("plain", "logging.tracked_prompt_set"): "`analyze perturb` reads it"}
BY_CHANCE = {("adapters", "advantages.zero_variance"): "no group of this reward has equal rewards"}


def context(name: str) -> RunConfig:
    return resolve(None, shared=[*SMALL, *CONTEXTS[name]]).config


def place(key: str) -> str:
    """The key without items of lists: `selection.selectors.initial.ratio` is `selection.selectors.ratio`."""
    return re.sub(r"^(selection\.selectors|rewards)\.[^.]+", r"\1", key)


def other_values(config: RunConfig, key: str, value: Any) -> Iterator[Any]:
    """Values of the same kind that the configuration takes; a choice gives all of its others."""
    if place(key) in OTHERS:
        yield from (other for other in OTHERS[place(key)] if other != value)
        return
    if value is None or isinstance(value, bool):
        yield 0.5 if value is None else not value
        return
    choices = choices_of(key)
    found = [choice for choice in choices if choice != value]
    if not choices:
        assert isinstance(value, (int, float)), f"{key}: name another value in OTHERS"
        tried = (value * 2, value + 1, value / 2)
        # of a number one other is enough: the first that is allowed
        found = [other for other in tried if other != value and allowed(config, key, other)][:1]
    assert found, f"{key}: no other value than {value}"
    yield from found


def choices_of(key: str) -> list[Any]:
    node: Any = RunConfig.model_json_schema()
    schema = node
    for part in key.split("."):
        node = node.get("properties", {}).get(part, {})
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node
    return list(node.get("enum", ()))


def allowed(config: RunConfig, key: str, value: Any) -> bool:
    try:
        changed(config, key, value)
    except ConfigError:
        return False
    return True


def changed(config: RunConfig, key: str, value: Any) -> RunConfig:
    """Also where it cannot act."""
    return resolve(base=config, shared=[f"{key}={inline_yaml(value)}"]).config


def told(config: RunConfig, key: str, value: Any) -> bool:
    """Whether `-o key=value` is refused or named because it cannot act."""
    try:
        notes = resolve(base=config, overrides=[f"{key}={inline_yaml(value)}"]).notes
    except ConfigError as error:
        return f"-o {key} does nothing" in str(error) or f"-o {key}.unknown does nothing" in str(error)
    return any(note.startswith(f"-o {key} changes nothing") for note in notes)


# ---------------------------------------------------------------- what a configuration leads to


def stages(config: RunConfig, folder: Path, key: str) -> Iterator[Any]:
    """What can be seen of a configuration, the cheapest first; an error that names the reason counts."""
    try:
        if key.startswith(("logging.", "num_steps")):
            yield from files(config, folder)
        elif key.startswith("evaluation."):
            yield evaluated(config, folder)
        else:
            yield planned(config)
            yield from steps(config)
    except GcpoBenchError as error:
        yield str(error)


def planned(config: RunConfig) -> Any:
    found = memory.needed(config, starts.without_memory(config.policy), free_bytes=10**12)
    return dict(found.held), {name: dict(phase) for name, phase in found.in_turn.items()}


def steps(config: RunConfig) -> Iterator[Any]:
    learner = build_learner(config)
    for step in (1, 2):
        seen: Any = observe(learner, draw_prompts(config, step), f"rollout/{step}", Stopwatch())
        yield describe(seen), seen.rollout.tokens_BT.tolist(), seen.selection.selected_BT.tolist()
        yield update(learner, seen, step), numbers(learner)


def numbers(learner: Learner) -> list[str]:
    return [str(parameter.detach().double().sum().item()) for parameter in learner.parameters]


def files(config: RunConfig, folder: Path) -> Iterator[Any]:
    run = runs.create(folder, "run", config)
    train(config, run)
    listed = sorted(path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file())
    yield listed, len(run.metrics())
    yield [checksum(path) for path in sorted(run.path.glob("tokens/*"))]


def evaluated(config: RunConfig, folder: Path) -> Any:
    run = runs.create(folder, "run", config.model_copy(update={"num_steps": 0}))
    train(run.config, run)
    evaluate_run(run)
    scores = [path.read_text() for path in sorted(run.path.glob("evaluations/*/samples.jsonl"))]
    return scores, [checksum(path) for path in sorted(run.path.glob("images/*/*.png"))]


class Remembered:
    """The stages of a context as it is, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[tuple[str, str], tuple[Iterator[Any], list[Any]]] = {}

    def stages(self, name: str, key: str) -> Iterator[Any]:
        kind = key.partition(".")[0] if key.startswith(("logging.", "evaluation.", "num_steps")) else "steps"
        if (name, kind) not in self.known:
            folder = self.folder / f"{name}-{kind}"
            self.known[name, kind] = (stages(context(name), folder, key), [])
        source, made = self.known[name, kind]
        index = 0
        while True:
            if index == len(made):
                try:
                    made.append(next(source))
                except StopIteration:
                    return
            yield made[index]
            index += 1


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Remembered:
    return Remembered(tmp_path_factory.mktemp("contexts"))


def same(before: Iterator[Any], after: Iterator[Any]) -> bool:
    """Looks no further than the first difference."""
    for was in before:
        if next(after, None) != was:
            return False
    return next(after, None) is None


KEYS = [
    (name, key)
    for name in CONTEXTS
    for key in flatten(context(name))
    if key not in LABELS
    and not (key.startswith("evaluation.") and name != "busy")  # they depend on no other setting
    and not (key.startswith(("logging.", "num_steps")) and name == "adapters")
]


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_an_option_acts_or_says_that_it_cannot(remembered: Remembered, tmp_path: Path, name: str, key: str) -> None:
    if (name, key) in ELSEWHERE | BY_CHANCE:
        return
    config = context(name)
    for index, value in enumerate(other_values(config, key, flatten(config)[key])):
        acts = not told(config, key, value)
        folder = tmp_path / str(index)
        try:
            others = stages(changed(config, key, value), folder, key)
            differs = not same(remembered.stages(name, key), others)
        except ConfigError:  # a selector without the options of the one before
            differs = acts = False
        assert differs == acts, f"{key}={value} {'differs' if differs else 'changes nothing, and nothing says so'}"


def test_every_key_is_walked() -> None:
    """Also those inside of what may be absent, such as adapters."""

    def leaves(model: Any, prefix: str) -> Iterator[str]:
        for key, field in model.model_fields.items():
            inner = [part for part in kinds(field.annotation) if hasattr(part, "model_fields")]
            if inner:
                yield from leaves(inner[0], f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}"

    def kinds(annotation: Any) -> Iterator[Any]:
        yield annotation
        for part in getattr(annotation, "__args__", ()):
            yield from kinds(part)

    walked = {place(key) for _, key in KEYS}
    walked |= {key.partition(".options.")[0] + ".options" for key in walked if ".options." in key}
    assert set(leaves(RunConfig, "")) - LABELS == {key for key in walked if ".options." not in key} - {"policy.lora"}


# ---------------------------------------------------------------- what a registered part says that it reads


def chosen(name: str, **options: Any) -> Tensor:
    item = SelectorConfig(name=name, ratio=options.pop("ratio", None), options=options)
    selectors = build_selectors(RunConfig().selection.model_copy(update={"selectors": (item,)}))
    return select(selectors, make_signals(rows=4, grid=(8, 8), seed=5), "exclude", complement=False).selected_BT


@pytest.mark.parametrize("name", list(SELECTORS))
def test_a_selector_reads_what_it_says_and_each_of_it_changes_the_choice(name: str) -> None:
    reads = SELECTORS.entries[name].reads
    assert set(inspect.signature(SELECTORS.load(name)).parameters) == set(reads)
    needed = {"ratio": 0.2} if "ratio" in reads else {}
    for key, value in {"ratio": 0.1, "sets": 2, "window": [0.5, 1.0]}.items():
        if key in reads:
            assert not torch.equal(chosen(name, **needed), chosen(name, **{**needed, key: value}))


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_a_weighting_reads_what_it_says_and_each_of_it_changes_the_weight(name: str) -> None:
    reads = set(WEIGHTINGS.entries[name].reads)
    taken = inspect.signature(WEIGHTINGS.load(name)).parameters.keys()
    assert taken == reads
    assert reads <= WeightingConfig.model_fields.keys()
    generator = torch.Generator().manual_seed(0)
    policy_BT, ref_BT = (torch.randn(2, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    selected_BT = torch.rand(2, 16, generator=generator) < 0.5

    def weight(**options: Any) -> tuple[list[float], bool]:
        weighting = build_weighting(WeightingConfig(name=name, **options))
        weight_BT = weighting(policy_BT.clone().requires_grad_(), ref_BT, selected_BT)
        return weight_BT.flatten().tolist(), weight_BT.requires_grad

    for key, value in {"form": "linear", "clip": 0.1, "detached": False, "support": "selected"}.items():
        assert (weight(**{key: value}) != weight()) == (key in reads), key


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_policy_that_says_so_can_compute_activations_again(name: str) -> None:
    policy = starts.without_memory(PolicyConfig(name=name, random_init=True))
    assert hasattr(policy, "recompute") == POLICIES.reads(name, "recompute")


def test_what_parts_of_one_s_own_read_is_not_known_and_counts_as_read() -> None:
    config = RunConfig(weighting=WeightingConfig(name="my_lab.weights:Mine"), policy=PolicyConfig(name="my_lab:build"))
    assert {item.key for item in idle(config)} & {"weighting.clip", "policy.recompute"} == set()
