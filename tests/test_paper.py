"""The published numbers are those of the source, typed a second time and in its own layout: fractions and check marks.

Source: a summary of the paper (arXiv 2509.22485; zhaoyang97/Paper-Notes), tables "main" and "ablation".
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gcpo_bench.reports import paper
from gcpo_bench.reports.load import load
from gcpo_bench.reports.paper_tables import paper_table

from .run_factory import make_run

GENEVAL = """
model              overall counting colour position
Janus-Pro-7B         0.80    0.59    0.90    0.79
Janus-Pro-7B + GRPO  0.87    0.71    0.94    0.92
Janus-Pro-7B + GCPO  0.90    0.90    0.90    0.95
Janus-Pro-1B + GRPO  0.84    0.59    0.84    0.88
Janus-Pro-1B + GCPO  0.85    0.63    0.88    0.91
LlamaGen + GRPO      0.39    0.28    0.68    0.11
LlamaGen + GCPO      0.42    0.25    0.71    0.13
"""
UNPUBLISHED = {("Janus-Pro-1B", "start"), ("LlamaGen", "start")}
ABLATION = """
init struct sim DAW  GenEval shape texture spatial HPS
 x     .     .   .    0.82   0.282  0.350  0.237  28.90
 .     x     .   .    0.81   0.271  0.337  0.226  28.22
 .     .     x   .    0.82   0.294  0.410  0.257  28.78
 x     x     x   .    0.83   0.292  0.399  0.294  29.33
 x     x     x   x    0.85   0.320  0.480  0.322  29.61
"""
RELEASED = """
setting                  janus-pro llamagen
num_steps                  1600       .
sampling.prompts_per_step     8       8
sampling.group_size           4       8
sampling.guidance_scale       5       1
loss.beta                  0.01    0.04
optimizer.learning_rate    3e-6    1e-5
"""
"""The released scripts: GenEval for Janus-Pro, HPS for LlamaGen (zghhui/GCPO d2fa245)."""


def test_the_main_table_is_the_published_one() -> None:
    published = {}
    for line in GENEVAL.strip().splitlines()[1:]:
        name, numbers = line[:20].strip(), line[20:].split()
        model, _, method = name.partition(" + ")
        published[model, method.lower() or "start"] = tuple(100 * float(number) for number in numbers)
    ours = {(row.model, row.method): row.values for row in paper.MAIN}
    assert len(ours) == len(paper.MAIN) == len(published) + len(UNPUBLISHED)
    assert {key: values for key, values in ours.items() if key not in UNPUBLISHED} == {
        key: pytest.approx(values) for key, values in published.items()
    }
    assert all(ours[key] == (None,) * len(paper.MAIN_COLUMNS) for key in UNPUBLISHED)
    assert paper.MAIN_COLUMNS == ("overall", "counting", "colors", "position")


def test_the_ablation_is_the_published_one() -> None:
    lines = [line.split() for line in ABLATION.strip().splitlines()]
    parts = lines[0][:4]
    published = {
        tuple(part for part, mark in zip(parts, line[:4], strict=True) if mark == "x"): [float(x) for x in line[4:]]
        for line in lines[1:]
    }
    ours = {paper.COMPONENTS[row.method]: list(row.values) for row in paper.LADDER}
    # GenEval and T2I-CompBench in points of a hundred here, HPS (times 100 already) as it is
    assert ours == {
        marks: pytest.approx([100 * x for x in values[:4]] + values[4:]) for marks, values in published.items()
    }
    assert [column.split()[-1].lower() for column in paper.LADDER_COLUMNS] == [word.lower() for word in lines[0][4:]]


def test_the_decimals_of_a_column_align(tmp_path: Path) -> None:
    """28.90 stands above 28.22, and 35.0 above 33.7."""
    ladder = paper_table(load([make_run(tmp_path, "gcpo", steps=1, maps=False, evaluated=False).path])).data["ladder"]
    assert [row[4:9] for row in ladder] == [
        ["82", "28.2", "35.0", "23.7", "28.90"],
        ["81", "27.1", "33.7", "22.6", "28.22"],
        ["82", "29.4", "41.0", "25.7", "28.78"],
        ["83", "29.2", "39.9", "29.4", "29.33"],
        ["85", "32.0", "48.0", "32.2", "29.61"],
    ]


def test_the_released_settings_are_those_of_the_scripts() -> None:
    header, *lines = [line.split() for line in RELEASED.strip().splitlines()]
    for column, family in enumerate(header[1:], start=1):
        assert paper.RELEASED[family] == {line[0]: float(line[column]) for line in lines if line[column] != "."}
