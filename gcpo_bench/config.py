"""The configuration of a run: what it means, how it is put together, how it is checked.

Order of precedence: defaults < method < preset < `-o dotted.key=value` and named flags, which may not contradict.
Methods (`methods.py`) and presets (`presets/*.yaml`) are data; nothing in training asks which one it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Share = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Config(BaseModel):
    """Frozen; unknown keys, NaN, infinities, and true and false in place of numbers are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        if is_truth_for_number(cls.model_fields[str(info.field_name)].annotation, value):
            raise ValueError("true and false are no numbers")
        return value


def is_truth_for_number(annotation: Any, value: Any) -> bool:
    """Whether true or false, or a list with one, stands where numbers are asked for: Python takes them for 1 and 0."""
    kinds = list(_kinds(annotation))
    asks_for_numbers = bool not in kinds and (int in kinds or float in kinds)
    items = value if isinstance(value, (list, tuple)) else (value,)
    return asks_for_numbers and any(isinstance(item, bool) for item in items)


def _kinds(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)


class LoraConfig(Config):
    rank: int = Field(32, ge=1)
    alpha: float = Field(64.0, gt=0)
    """The adapters' product is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Linear layers that get an adapter, by the last part of their name; empty: those of the transformer's layers."""


class PolicyConfig(Config):
    name: str = "scenes-12"
    """Registered model; `gcpo-bench ls models`."""
    weights: str = "packaged"
    """To start from: `packaged`, a run, a folder (published weights, a checkpoint, what `pretrain` wrote), a hub id."""
    random_init: bool = False
    """Random weights instead, always the same ones: for speed, memory and tests without downloads."""
    template: str = ""
    """What the prompt is put into, for models that know several; empty: the model's own."""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations. Log-probs, entropy, similarity, token weights and optimiser are float32 always."""
    trained: str = ""
    """Which part learns, for models that name several; empty: the model's first. The rest is frozen."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead; the reference is then the policy without them, not a second copy."""
    recompute: Literal["auto", "always", "never"] = "auto"
    """Compute activations again in the backward pass instead of keeping them; auto: where they would not fit."""


class DataConfig(Config):
    prompts: str = "scenes-train"
    """Prompt set that training draws from."""


class SamplingConfig(Config):
    prompts_per_step: int = Field(12, ge=1)
    group_size: int = Field(8, ge=2)
    """Images per prompt; advantages are centred over them."""
    guidance_scale: float = Field(1.0, ge=1)
    """Classifier-free guidance u + s (c - u); 1 switches it off and halves the cost of sampling."""
    temperature: float = Field(1.0, gt=0)
    top_k: int = Field(0, ge=0)
    """0 keeps the whole codebook."""
    top_p: Share = 1.0
    batch_rows: int = Field(48, ge=1)
    """Images sampled at once, by one CPU thread; it changes memory and speed, not the images. A step of the decoder is
    small: below some 40 rows a second thread gains little."""


class RewardConfig(Config):
    name: str = "geneval"
    weight: float = 1.0


class SelectorConfig(Config):
    name: str
    ratio: Share | None = None
    """Share of the grid this selector takes, floor(ratio * tokens); None where the selector has none."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the selector."""


class SelectionConfig(Config):
    selectors: tuple[SelectorConfig, ...] = Field(
        (
            SelectorConfig(name="initial", ratio=0.1),
            SelectorConfig(name="structural", ratio=0.1, options={"window": [0.1, 0.9]}),
            SelectorConfig(name="diverse", ratio=0.1),
        ),
        min_length=1,
    )
    overlap: Literal["exclude", "allow"] = "exclude"
    """`exclude`: each selector chooses among tokens not yet taken by the ones before it, so the sets are disjoint."""
    complement: bool = False
    """Train on everything the selectors did not choose."""
    entropy_source: Literal["sampling", "conditional"] = "sampling"
    """Entropy of the (guided) distribution that was sampled, or of the conditional one."""
    similarity_embedding: Literal["projected", "codebook"] = "projected"
    """Token embedding as the transformer reads it, or the tokenizer's code vector."""


class WeightingConfig(Config):
    name: str = "confidence"
    form: Literal["exp", "linear"] = "exp"
    """`exp`: running mean of exp(clip(d)), as released; `linear`: of clip(d), as printed. d = policy - reference."""
    clip: float = Field(0.5, gt=0)
    detached: bool = True
    """Stop the gradient through the weight. Released code does not, and then unselected tokens get gradient too."""
    support: Literal["all", "selected"] = "all"
    """Positions the running mean is taken over."""


class LossConfig(Config):
    beta: float = Field(0.01, ge=0)
    """Weight of the k3 divergence from the reference."""
    clip_epsilon: float = Field(0.2, gt=0, lt=1)
    """Ratio clipping; inert with one update a rollout."""
    kl_tokens: Literal["selected", "all"] = "selected"
    normalizer: Literal["selected", "all", "per-image"] = "selected"
    """What the terms are divided by: the number of tokens they cover, of all, or of each image's own first, as printed:
    a mean over images of the means over their selected tokens."""


class AdvantageConfig(Config):
    std_epsilon: float = Field(1e-4, gt=0)
    zero_variance: Literal["keep", "drop"] = "keep"
    """Groups with equal rewards: keep (only the divergence acts on them) or drop from the update. Always counted."""


class OptimizerConfig(Config):
    learning_rate: float = Field(6e-4, gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """How slowly AdamW's running means of the gradient and of its square forget."""
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    min_rate: float = Field(0.0, ge=0, le=1)
    """Where `linear` and `cosine` end, as a share of the learning rate."""
    epochs: int = Field(1, ge=1)
    """Optimiser passes over each rollout."""
    minibatches: int = Field(1, ge=1)
    """Optimiser steps a pass."""
    micro_batch_rows: int = Field(24, ge=1)
    """Rows a forward and backward pass holds at once, a CPU thread; it changes memory and speed, not the update."""


class EvaluationConfig(Config):
    benchmark: str = "scenes"
    images_per_prompt: int = Field(4, ge=1)
    prompts_per_task: int | None = Field(None, ge=1)
    """Only so many prompts of each task; None takes all."""
    guidance_scale: float = Field(1.0, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_k: int = Field(0, ge=0)
    """0 keeps the whole codebook."""
    top_p: Share = 1.0
    seed: int = Field(0, ge=0)
    """Seed of the evaluation images: the same noise for every run that is to be compared."""

    def distribution(self) -> dict[str, float]:
        """What images are drawn from; top-k and top-p where they cut something off."""
        cuts: dict[str, float] = {"top_k": self.top_k} if self.top_k else {}
        cuts |= {"top_p": self.top_p} if self.top_p < 1 else {}
        return {"guidance_scale": self.guidance_scale, "temperature": self.temperature, **cuts}


class LoggingConfig(Config):
    checkpoint_every: int = Field(20, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    token_maps_every: int = Field(10, ge=0)
    """Steps between saved token maps of the tracked prompts; 0 saves none."""
    tracked_prompts: int = Field(6, ge=1)
    tracked_prompt_set: str = "scenes-heldout"
    variant: str = ""
    """What reports call it, as a plan named it; empty: what its settings say."""


RESOURCES = ("policy.recompute", "sampling.batch_rows", "optimizer.micro_batch_rows")
"""Dotted keys that change speed and memory, and of the numbers nothing but rounding."""


class RunConfig(Config):
    """Everything that decides a run's numbers. Two runs with equal RunConfig give equal results on one machine."""

    method: str = "gcpo"
    """Name the selection, weighting and loss were taken from; a label, the sections below are what runs."""
    policy: PolicyConfig = PolicyConfig()
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    rewards: tuple[RewardConfig, ...] = Field((RewardConfig(),), min_length=1)
    selection: SelectionConfig = SelectionConfig()
    weighting: WeightingConfig = WeightingConfig()
    loss: LossConfig = LossConfig()
    advantages: AdvantageConfig = AdvantageConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    num_steps: int = Field(60, ge=0)
    seed: int = Field(0, ge=0, lt=2**32)
    num_threads: int = Field(2, ge=1)
    """CPU threads. They change speed, not results: how work is split, `batch_rows` and `micro_batch_rows` say."""
