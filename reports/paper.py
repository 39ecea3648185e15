"""The numbers that are published for GCPO, and nothing that is not.

Source: a summary of the paper (arXiv 2509.22485; zhaoyang97/Paper-Notes). The paper's own tables were not available,
so a number stands here only if that summary or an author quotes it; None means "not known to us".
"""

from __future__ import annotations

from dataclasses import dataclass

MAIN_COLUMNS = ("overall", "counting", "colors", "position")
"""GenEval columns that the summary has; single object, two objects and colour attribution are not in it."""
LADDER_COLUMNS = ("GenEval", "T2I-C shape", "T2I-C texture", "T2I-C spatial", "HPS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    model: str
    method: str
    """Our name of what was trained; "start" is the model before training."""
    values: tuple[float | None, ...]
    """In points of a hundred, in the order of the table's columns."""


RELEASED: dict[str, dict[str, float]] = {
    "janus-pro": {
        "num_steps": 1600,
        "sampling.prompts_per_step": 8,
        "sampling.group_size": 4,
        "sampling.guidance_scale": 5.0,
        "loss.beta": 0.01,
        "optimizer.learning_rate": 3e-6,
    },
    "llamagen": {
        "sampling.prompts_per_step": 8,
        "sampling.group_size": 8,
        "sampling.guidance_scale": 1.0,
        "loss.beta": 0.04,
        "optimizer.learning_rate": 1e-5,
    },
}
"""Settings of the released scripts (GenEval for Janus-Pro, HPS for LlamaGen), by how a model's name begins."""

MAIN = (
    Row(model="Janus-Pro-7B", method="start", values=(80.0, 59.0, 90.0, 79.0)),
    Row(model="Janus-Pro-7B", method="grpo", values=(87.0, 71.0, 94.0, 92.0)),
    Row(model="Janus-Pro-7B", method="gcpo", values=(90.0, 90.0, 90.0, 95.0)),
    Row(model="Janus-Pro-1B", method="start", values=(None, None, None, None)),
    Row(model="Janus-Pro-1B", method="grpo", values=(84.0, 59.0, 84.0, 88.0)),
    Row(model="Janus-Pro-1B", method="gcpo", values=(85.0, 63.0, 88.0, 91.0)),
    Row(model="LlamaGen", method="start", values=(None, None, None, None)),
    Row(model="LlamaGen", method="grpo", values=(39.0, 28.0, 68.0, 11.0)),
    Row(model="LlamaGen", method="gcpo", values=(42.0, 25.0, 71.0, 13.0)),
)
"""GenEval, the main table. Counting 90 for the 7B model looks like a slip, but the summary's text repeats it."""

LADDER = (
    Row(model="not named", method="gcpo-init", values=(82.0, 28.2, 35.0, 23.7, 28.90)),
    Row(model="not named", method="gcpo-struct", values=(81.0, 27.1, 33.7, 22.6, 28.22)),
    Row(model="not named", method="gcpo-sim", values=(82.0, 29.4, 41.0, 25.7, 28.78)),
    Row(model="not named", method="gcpo-no-daw", values=(83.0, 29.2, 39.9, 29.4, 29.33)),
    Row(model="not named", method="gcpo", values=(85.0, 32.0, 48.0, 32.2, 29.61)),
)
"""The component ablation; 85 suggests Janus-Pro-1B."""

COMPONENTS = {
    "gcpo-init": ("init",),
    "gcpo-struct": ("struct",),
    "gcpo-sim": ("sim",),
    "gcpo-no-daw": ("init", "struct", "sim"),
    "gcpo": ("init", "struct", "sim", "DAW"),
}
"""The check marks of the ablation's left columns."""
