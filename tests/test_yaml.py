"""YAML as its version 1.2 reads it: what a person means by a number or a word is what they get."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from gcpo_bench.files import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("08", 8),
        ("-010", -10),
        ("[010, 08]", [10, 8]),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("true", True),
        ("~", None),
        ("", None),
        # numbers, truth values and dates of 1.1, and words of 1.2
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("0b11", "0b11"),
        ("no", "no"),
        ("on", "on"),
        ("2024-01-01", "2024-01-01"),
        ("<<", "<<"),
    ],
)
def test_scalars_are_read_as_1_2_reads_them(text: str, value: Any) -> None:
    read = parse_yaml(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "value", ["010", "08", "0o17", "no", "1e5", ".5", "1_0", "2024-01-01", "1:30", 8, 1e-5, 1e16, True]
)
def test_what_is_written_is_read_as_the_same_by_1_1_too(value: Any) -> None:
    text = dump_yaml({"key": value, "list": [value]})
    for read in (parse_yaml(text), parse_yaml(text, stored=True), yaml.safe_load(text)):
        assert read == {"key": value, "list": [value]}
        assert type(read["key"]) is type(value)


def test_a_text_with_leading_zeros_in_an_older_run_stays_a_text() -> None:
    written = yaml.safe_dump({"policy": {"weights": "08"}, "seed": 8})  # plain: 1.1 takes 08 for no number
    assert "weights: 08" in written
    assert parse_yaml(written, stored=True) == {"policy": {"weights": "08"}, "seed": 8}
