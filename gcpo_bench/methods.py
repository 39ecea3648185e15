"""Every published setting and every control, as data: which tokens, which weight, which loss.

Sources: GCPO (OpenReview hYMlDtplMf, arXiv 2509.22485) and its released code (zghhui/GCPO d2fa245). Where paper and
code differ, `gcpo-paper` and `gcpo-official` follow one each; `gcpo` is the clean default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gcpo_bench.errors import ConfigError, did_you_mean

WINDOW = [0.1, 0.9]
"""The released code looks for structural tokens only between 10 % and 90 % of the raster."""

INITIAL = {"name": "initial", "ratio": 0.1}
STRUCTURAL = {"name": "structural", "ratio": 0.1, "options": {"window": WINDOW}}
DIVERSE = {"name": "diverse", "ratio": 0.1}
CRITICAL = [INITIAL, STRUCTURAL, DIVERSE]
ALL_TOKENS = [{"name": "all"}]
UNIFORM = {"name": "uniform"}
CONFIDENCE = {"name": "confidence", "form": "exp", "detached": True}
LLAMAGEN_SIGNALS = {"entropy_source": "conditional", "similarity_embedding": "codebook"}
"""What the released code for LlamaGen looks at; that for Janus looks at guided logits and projected tokens."""


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    summary: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Nested overrides of RunConfig, the sections `selection`, `weighting` and `loss` only."""
    families: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How a model's name begins -> what is set there beside `settings`, because that family's released code differs."""

    def settings_for(self, model: str) -> dict[str, Any]:
        """`settings`, with those of the model's family."""
        found = {section: dict(values) for section, values in self.settings.items()}
        for family, settings in self.families.items():
            for section, values in settings.items() if model.startswith(family) else ():
                found[section] = {**found.get(section, {}), **values}
        return found


def _matched(name: str) -> list[dict[str, Any]]:
    """A single selector that takes as many tokens as the three critical sets together."""
    return [{"name": name, "ratio": 0.1, "options": {"sets": 3}}]


def _method(name: str, summary: str, selectors: list[dict[str, Any]], weighting: dict[str, Any], **more: Any) -> Method:
    selection = {"selectors": selectors, **more.pop("selection", {})}
    families = more.pop("families", {})
    return Method(name, summary, {"selection": selection, "weighting": weighting, **more}, families)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _method("grpo", "GRPO: every token, weight 1", ALL_TOKENS, UNIFORM),
        _method(
            "gcpo", "GCPO, clean: three disjoint critical sets, detached exp weight, float32", CRITICAL, CONFIDENCE
        ),
        _method(
            "gcpo-official",
            "GCPO as released: like gcpo, but gradient flows through the weight and so reaches unselected tokens",
            CRITICAL,
            {**CONFIDENCE, "detached": False},
            families={"llamagen-": {"selection": LLAMAGEN_SIGNALS}},
        ),
        _method(
            "gcpo-paper",
            "GCPO as printed: linear weight, sets may overlap, a mean an image. While policy == reference every weight "
            "is 0 and the only gradient is that through the weight; with weighting.detached=true training never starts",
            [INITIAL, {"name": "structural", "ratio": 0.1, "options": {"window": [0.0, 1.0]}}, DIVERSE],
            {"name": "confidence", "form": "linear", "detached": False},
            selection={"overlap": "allow", "entropy_source": "conditional"},
            loss={"normalizer": "per-image"},
        ),
        _method("gcpo-init", "ladder: initial tokens only, weight 1", [INITIAL], UNIFORM),
        _method("gcpo-struct", "ladder: structural tokens only, weight 1", [STRUCTURAL], UNIFORM),
        _method("gcpo-sim", "ladder: diverse tokens only, weight 1", [DIVERSE], UNIFORM),
        _method("gcpo-no-daw", "ladder: the three sets together, weight 1", CRITICAL, UNIFORM),
        _method("random", "control: as many tokens as gcpo, at random, weight 1", _matched("random"), UNIFORM),
        _method(
            "remaining",
            "control: exactly the tokens gcpo leaves out, weight 1",
            CRITICAL,
            UNIFORM,
            selection={"complement": True},
        ),
        _method("top-entropy", "baseline: as many tokens, highest entropy, weight 1", _matched("top-entropy"), UNIFORM),
        _method("low-entropy", "baseline: as many tokens, lowest entropy, weight 1", _matched("low-entropy"), UNIFORM),
        _method(
            "low-confidence",
            "baseline: tokens less probable than their image's mean probability, as ConfPO selects; no ratio",
            [{"name": "low-confidence"}],
            UNIFORM,
        ),
        _method("grpo-daw", "control: the dynamic weight on every token", ALL_TOKENS, CONFIDENCE),
        _method(
            "init-reweighted",
            "control: gcpo's tokens, weighted by the early-token boost that the released weight's gradient contains",
            CRITICAL,
            {"name": "prefix"},
        ),
    )
}


def get_method(name: str) -> Method:
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}", hint=did_you_mean(name, METHODS))
    return METHODS[name]
