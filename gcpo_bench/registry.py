"""Name -> `"module:attribute"`: every pluggable part, loaded only when it is used.

A configuration may also name `"my_lab.selectors:Mine"` directly, so outside code needs no fork; `outside` says when
such a name is followed. To add a part, write its file and add its line here; the conformity tests pick it up by
themselves.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gcpo_bench import outside
from gcpo_bench.errors import ConfigError, GcpoBenchError, did_you_mean


@dataclass(frozen=True, slots=True)
class Entry:
    target: str
    """`"module:attribute"`."""
    summary: str
    """One line for `gcpo-bench ls`."""
    reads: tuple[str, ...] = ()
    """Keys of the settings that it makes use of and others of its kind do not."""


@dataclass(frozen=True, slots=True)
class Registry:
    kind: str
    entries: dict[str, Entry]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries or outside.is_outside(name)

    def reads(self, name: str, key: str) -> bool:
        """Whether the part makes use of `key`; of parts of one's own nothing says so, and they count as if they did."""
        return name not in self.entries or key in self.entries[name].reads

    def load(self, name: str) -> Any:
        """The object behind `name`.

        Raises ConfigError for a name that does not exist, TrustError and ConfigError as `outside.load`.
        """
        if name in self.entries:
            module_name, _, attribute = self.entries[name].target.partition(":")
            return getattr(importlib.import_module(module_name), attribute)
        if outside.is_outside(name):
            return outside.load(self.kind, name)
        raise ConfigError(f"unknown {self.kind} {name!r}", hint=did_you_mean(name, self.entries))

    def make(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """What the part `name` gives for these arguments.

        Raises ConfigError as `load`, and for whatever an outside part raises that says nothing to the user by itself.
        """
        part = self.load(name)
        if name in self.entries:
            return part(*args, **kwargs)
        try:
            return part(*args, **kwargs)
        except (GcpoBenchError, OSError, ImportError):
            raise
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":  # torch's; this file does not import torch
                raise
            takes = ", ".join(inspect.signature(part).parameters) or "nothing"
            said = str(error) if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"{self.kind} {name!r}: {said}", hint=f"{name} takes {takes}; --debug shows where it failed"
            ) from error


SELECTORS = Registry(
    "selector",
    {
        "all": Entry("gcpo_bench.training.selectors:All", "every token"),
        "initial": Entry("gcpo_bench.training.selectors:Initial", "the first tokens in raster order", ("ratio",)),
        "structural": Entry(
            "gcpo_bench.training.selectors:Structural", "steepest change of entropy on the grid", ("ratio", "window")
        ),
        "diverse": Entry(
            "gcpo_bench.training.selectors:Diverse",
            "positions where the group's images differ most",
            ("ratio",),
        ),
        "random": Entry(
            "gcpo_bench.training.selectors:Random", "uniformly at random, new every step", ("ratio", "sets")
        ),
        "top-entropy": Entry(
            "gcpo_bench.training.selectors:TopEntropy", "highest entropy: fork tokens of LLM work", ("ratio", "sets")
        ),
        "low-entropy": Entry("gcpo_bench.training.selectors:LowEntropy", "lowest entropy", ("ratio", "sets")),
        "low-confidence": Entry(
            "gcpo_bench.training.selectors:LowConfidence", "less probable than the image's mean, as ConfPO selects"
        ),
    },
)

WEIGHTINGS = Registry(
    "weighting",
    {
        "uniform": Entry("gcpo_bench.training.weighting:Uniform", "weight 1 everywhere"),
        "confidence": Entry(
            "gcpo_bench.training.weighting:Confidence",
            "dynamic advantage weight: running mean of policy/reference",
            ("form", "clip", "detached", "support"),
        ),
        "prefix": Entry(
            "gcpo_bench.training.weighting:Prefix", "control: the early-token boost hidden in the released weight"
        ),
    },
)

POLICIES = Registry(
    "model",
    {
        "scenes-12": Entry(
            "gcpo_bench.training.policies.scenes:build", "embedded world, 48 px images of 12x12 tokens (default)"
        ),
        "scenes-8": Entry(
            "gcpo_bench.training.policies.scenes:build", "embedded world, 32 px images of 8x8 tokens, for tests"
        ),
        "janus-pro-1b": Entry(
            "gcpo_bench.training.policies.janus_pro:build",
            "Janus-Pro-1B, 384 px images of 24x24 tokens",
            ("recompute",),
        ),
        "janus-pro-7b": Entry(
            "gcpo_bench.training.policies.janus_pro:build",
            "Janus-Pro-7B, 384 px images of 24x24 tokens",
            ("recompute",),
        ),
        "janus-pro-small": Entry(
            "gcpo_bench.training.policies.janus_pro:build",
            "Janus-Pro's classes at 10 M parameters, 24x24 tokens; random weights only: for benchmarks",
            ("recompute",),
        ),
        "janus-pro-tiny": Entry(
            "gcpo_bench.training.policies.janus_pro:build",
            "Janus-Pro's classes in miniature, for tests",
            ("recompute",),
        ),
        "llamagen-xl-256": Entry(
            "gcpo_bench.training.policies.llamagen:build",
            "LlamaGen-XL stage 1, 256 px images of 16x16 tokens",
            ("recompute",),
        ),
        "llamagen-xl-512": Entry(
            "gcpo_bench.training.policies.llamagen:build",
            "LlamaGen-XL stage 2, 512 px images of 32x32 tokens",
            ("recompute",),
        ),
        "llamagen-small": Entry(
            "gcpo_bench.training.policies.llamagen:build",
            "LlamaGen's classes at 15 M parameters, 16x16 tokens; random weights only: for benchmarks",
            ("recompute",),
        ),
        "llamagen-tiny": Entry(
            "gcpo_bench.training.policies.llamagen:build", "LlamaGen's classes in miniature, for tests", ("recompute",)
        ),
    },
)

REWARDS = Registry(
    "reward",
    {
        "redness": Entry(
            "gcpo_bench.evaluators.pixels:Redness", "how much more red than green and blue: to see that training works"
        ),
        "geneval": Entry("gcpo_bench.evaluators.scenes:GenEvalReward", "GenEval's rule: 1 if correct, else 0"),
        "geneval-dense": Entry(
            "gcpo_bench.evaluators.scenes:DenseGenEvalReward", "mean of GenEval's partial terms, exact counts"
        ),
        "geneval-server": Entry(
            "gcpo_bench.evaluators.geneval_benchmark:ServerReward",
            "GenEval's verdict on photographs, as GCPO trains with it; needs weights",
        ),
        "geneval-server-dense": Entry(
            "gcpo_bench.evaluators.geneval_benchmark:ServerDenseReward",
            "reward-server's score on photographs, as Flow-GRPO trains with it; needs weights",
        ),
        "geneval-server-strict": Entry(
            "gcpo_bench.evaluators.geneval_benchmark:ServerStrictReward",
            "exact numbers on photographs, as reward-server counts; needs weights",
        ),
        "scene-strict": Entry(
            "gcpo_bench.evaluators.scenes:StrictSceneReward", "1 only for exactly the asked scene: nothing extra"
        ),
        "hps-v2.1": Entry("gcpo_bench.evaluators.scorers.rewards:hps_v21", "HPS v2.1, the cosine"),
        "hps-v2.0": Entry("gcpo_bench.evaluators.scorers.rewards:hps_v20", "HPS v2.0, the cosine"),
        "clip-score": Entry("gcpo_bench.evaluators.scorers.rewards:clip_score", "CLIPScore of ViT-L/14, the cosine"),
        "pickscore": Entry("gcpo_bench.evaluators.scorers.rewards:pickscore", "PickScore v1, about 20 to 23"),
        "aesthetic": Entry("gcpo_bench.evaluators.scorers.rewards:aesthetic", "LAION aesthetic v2, about 5 to 6.5"),
        "image-reward": Entry("gcpo_bench.evaluators.scorers.rewards:image_reward", "ImageReward v1.0, standardised"),
        "deqa": Entry("gcpo_bench.evaluators.scorers.rewards:deqa", "DeQA-Score, 1 to 5, in a program of its own"),
        "unified-reward": Entry(
            "gcpo_bench.evaluators.scorers.rewards:unified_reward", "UnifiedReward, 1 to 5, behind a chat server"
        ),
    },
)

SCORERS = Registry(
    "scorer",
    {
        "hps-v2.1": Entry("gcpo_bench.evaluators.scorers.hps:hps_v21", "Human Preference Score v2.1"),
        "hps-v2.0": Entry("gcpo_bench.evaluators.scorers.hps:hps_v20", "Human Preference Score v2.0"),
        "hpsv2-package-v2.1": Entry(
            "gcpo_bench.evaluators.scorers.hps_package:hps_package_v21", "HPS v2.1 by the package hpsv2 itself"
        ),
        "hpsv2-package-v2.0": Entry(
            "gcpo_bench.evaluators.scorers.hps_package:hps_package_v20", "HPS v2.0 by the package hpsv2 itself"
        ),
        "clip-score": Entry("gcpo_bench.evaluators.scorers.clip_score:clip_score", "cosine in OpenAI's CLIP ViT-L/14"),
        "clip-score-tensor": Entry(
            "gcpo_bench.evaluators.scorers.clip_score:clip_score_tensor", "the same, pixels resized as in DiffusionNFT"
        ),
        "clip-score-b32": Entry(
            "gcpo_bench.evaluators.scorers.clip_score:clip_score_b32", "cosine in OpenAI's CLIP ViT-B/32"
        ),
        "pickscore": Entry("gcpo_bench.evaluators.scorers.pickscore:pickscore", "PickScore v1"),
        "aesthetic": Entry("gcpo_bench.evaluators.scorers.aesthetic:aesthetic", "LAION aesthetic predictor v2"),
        "image-reward": Entry("gcpo_bench.evaluators.scorers.image_reward:image_reward", "ImageReward v1.0"),
        "deqa": Entry("gcpo_bench.evaluators.scorers.deqa:deqa", "DeQA-Score, in a program of its own"),
        "unified-reward": Entry(
            "gcpo_bench.evaluators.scorers.unified_reward:unified_reward", "UnifiedReward, behind a chat server"
        ),
    },
)

PROMPT_SETS = Registry(
    "prompt set",
    {
        "scenes-train": Entry("gcpo_bench.scenes:train_prompts", "embedded world: 14,352 prompts in six tasks"),
        "scenes-heldout": Entry("gcpo_bench.scenes:held_out_prompts", "embedded world: 48 held-out prompts a task"),
        "geneval-train": Entry(
            "gcpo_bench.geneval_prompts:train_prompts",
            "9,750 prompts in GenEval's form, none of its evaluation prompts",
        ),
        "geneval": Entry("gcpo_bench.prompt_sets:geneval", "GenEval's 553 prompts; gcpo-bench data fetch geneval"),
        "t2i-r1": Entry(
            "gcpo_bench.prompt_sets:t2i_r1", "T2I-R1's 7,223 training prompts; gcpo-bench data fetch t2i-r1"
        ),
    },
)

BENCHMARKS = Registry(
    "benchmark",
    {
        "scenes": Entry(
            "gcpo_bench.evaluators.scenes:ScenesBenchmark",
            "GenEval's six tasks, held-out prompts of the embedded world",
        ),
        "hps-benchmark": Entry("gcpo_bench.evaluators.hps:hps_benchmark", "HPS v2.1 on HPSv2's 4 x 800 prompts"),
        "hps-gcpo400": Entry("gcpo_bench.evaluators.hps:hps_gcpo400", "HPS v2.1 on the GCPO family's 400 prompts"),
        "drawbench": Entry(
            "gcpo_bench.evaluators.drawbench:drawbench", "DrawBench's 200 prompts, a panel of learned scorers"
        ),
        "t2i-compbench-color": Entry("gcpo_bench.evaluators.t2i_compbench:color", "T2I-CompBench colour, BLIP-VQA"),
        "t2i-compbench-shape": Entry("gcpo_bench.evaluators.t2i_compbench:shape", "T2I-CompBench shape, BLIP-VQA"),
        "t2i-compbench-texture": Entry(
            "gcpo_bench.evaluators.t2i_compbench:texture", "T2I-CompBench texture, BLIP-VQA"
        ),
        "t2i-compbench-non-spatial": Entry(
            "gcpo_bench.evaluators.t2i_compbench:non_spatial", "T2I-CompBench non-spatial relations, CLIPScore"
        ),
        "t2i-compbench-spatial": Entry(
            "gcpo_bench.evaluators.t2i_compbench_objects:spatial",
            "T2I-CompBench 2D positions, Grounding DINO or a file",
        ),
        "t2i-compbench-3d-spatial": Entry(
            "gcpo_bench.evaluators.t2i_compbench_objects:spatial_3d", "T2I-CompBench 3D positions, the same and DPT"
        ),
        "t2i-compbench-numeracy": Entry(
            "gcpo_bench.evaluators.t2i_compbench_objects:numeracy", "T2I-CompBench numbers, Grounding DINO or a file"
        ),
        "t2i-compbench-complex": Entry(
            "gcpo_bench.evaluators.t2i_compbench_complex:complex_prompts", "T2I-CompBench 3-in-1 of complex prompts"
        ),
        "geneval": Entry(
            "gcpo_bench.evaluators.geneval_benchmark:GenEvalBenchmark",
            "GenEval: 553 prompts, 4 images each, judged by what a detector finds",
        ),
    },
)

GENERATORS = Registry(
    "generator",
    {
        "diffusers": Entry(
            "gcpo_bench.evaluators.generators.diffusers:DiffusersGenerator",
            "a text-to-image pipeline of diffusers: SD, SDXL, FLUX, ...; diffusers:<hub id or folder>",
        ),
    },
)

BENCHMARK_GROUPS = {
    "t2i-compbench": tuple(
        f"t2i-compbench-{category}"
        for category in ("color", "shape", "texture", "spatial", "3d-spatial", "numeracy", "non-spatial", "complex")
    ),
    "hps": ("hps-benchmark", "hps-gcpo400"),
}
"""A name for several benchmarks, of which those are meant that can run."""

EXECUTORS = Registry(
    "executor",
    {
        "local": Entry("gcpo_bench.executors.local:run", "processes of this machine"),
        "slurm": Entry("gcpo_bench.executors.slurm:run", "Slurm jobs through submitit, queued again when preempted"),
        "ray": Entry("gcpo_bench.executors.ray:run", "Ray Core tasks"),
    },
)

SECTIONS = Registry(
    "report section",
    {
        "verdict": Entry("gcpo_bench.reports.sections:verdict", "each comparison in plain words"),
        "claims": Entry("gcpo_bench.reports.study:claims", "each claim of the paper, decided or not"),
        "paper": Entry("gcpo_bench.reports.paper_tables:paper_table", "the paper's tables, published beside measured"),
        "components": Entry("gcpo_bench.reports.study:components", "ladder, ratio curve, points against seconds"),
        "scores": Entry("gcpo_bench.reports.sections:scores", "overall and per task, with intervals"),
        "curves": Entry("gcpo_bench.reports.sections:curves", "reward and divergence over training"),
        "token-maps": Entry("gcpo_bench.reports.sections:token_maps", "what each criterion chose, over the image"),
        "perturbation": Entry("gcpo_bench.reports.perturbation:perturbation", "noise in a range of tokens"),
        "gallery": Entry("gcpo_bench.reports.sections:gallery", "images before and after, with boxes and reasons"),
        "cost": Entry("gcpo_bench.reports.sections:cost", "seconds per phase"),
        "reproduce": Entry("gcpo_bench.reports.sections:reproduce", "command and environment of each run"),
    },
)
