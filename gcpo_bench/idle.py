"""Settings that cannot act beside the others: a clip that the weighting does not have, a decay of a constant rate.

Whether such a setting is an error depends on who made it: `resolve` refuses it where it was asked for, and a stored
configuration may hold any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gcpo_bench.config import RunConfig
from gcpo_bench.registry import POLICIES, WEIGHTINGS
from gcpo_bench.variants import signals_read


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    key: str
    """Dotted."""
    why: str
    mend: str
    unread: bool
    """Nothing reads it. Else it is read, and each of its values gives the same here."""


def idle(config: RunConfig) -> list[Idle]:
    """Every setting of the configuration that cannot act in it; what outside parts read is not known and counts."""
    return [*_unread(config), *_without_difference(config)]


def _unread(config: RunConfig) -> Iterator[Idle]:
    policy, optimizer, weighting = config.policy, config.optimizer, config.weighting

    def unread(key: str, why: str, mend: str = "leave it out") -> Idle:
        return Idle(key=key, why=why, mend=mend, unread=True)

    if not POLICIES.reads(policy.name, "recompute"):
        yield unread("policy.recompute", f"{policy.name} always keeps its activations")
    if policy.random_init:
        yield unread("policy.weights", "policy.random_init draws random ones", "leave one of the two out")
    if policy.lora is not None:
        yield unread("policy.trained", "with policy.lora only the adapters learn", "leave one of the two out")
    for key in type(weighting).model_fields:
        if key != "name" and not WEIGHTINGS.reads(weighting.name, key):
            yield unread(f"weighting.{key}", f"the weighting {weighting.name} has no {key}")
    if optimizer.schedule == "constant":
        yield unread("optimizer.min_rate", "the rate is constant", "choose optimizer.schedule=linear or cosine")
    if 0 < config.num_steps <= optimizer.warmup_steps:
        why = f"of {config.num_steps} steps none comes after the warm-up, so the rate never reaches learning_rate"
        yield unread("optimizer.warmup_steps", why, "lower it below num_steps")
    rows = config.sampling.prompts_per_step * config.sampling.group_size
    if optimizer.minibatches > rows:
        yield unread("optimizer.minibatches", f"a step has {rows} images", f"lower it to {rows} or less")


def _without_difference(config: RunConfig) -> Iterator[Idle]:
    sampling, selection, optimizer = config.sampling, config.selection, config.optimizer
    names = [item.name for item in selection.selectors]

    def same(why: str, *keys: str) -> Iterator[Idle]:
        yield from (Idle(key=key, why=why, mend="leave it out", unread=False) for key in keys)

    if config.num_steps - optimizer.warmup_steps < 2:
        yield from same("the run ends before the rate falls", "optimizer.schedule", "optimizer.min_rate")
    if optimizer.epochs * optimizer.minibatches == 1:
        yield from same("with one update a rollout every ratio is 1", "loss.clip_epsilon")
    if "all" in names and not selection.complement:
        yield from same("every token is selected", "loss.kl_tokens", "loss.normalizer", "weighting.support")
    if config.logging.token_maps_every == 0:
        yield from same("no token maps are saved", "logging.tracked_prompts")
    if len(names) == 1:
        yield from same("there is one selector", "selection.overlap")
    if sampling.guidance_scale == sampling.temperature == 1:
        why = "images are drawn without guidance at temperature 1, from the conditional distribution itself"
        yield from same(why, "selection.entropy_source")
    if config.logging.token_maps_every == 0 and "similarity" not in signals_read(selection):
        yield from same("no selector looks at similarity and no token maps are saved", "selection.similarity_embedding")
    if config.policy.device != "cpu":
        yield from same("on a GPU one CPU thread does all", "num_threads")
