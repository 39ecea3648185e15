"""What a JSON schema allows, in words."""

from __future__ import annotations

from typing import Any

from gcpo_bench.draft import KeyPath


def node_at(schema: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    """The part of a JSON schema that describes the value at `path`."""
    node = schema
    for key in path:
        if isinstance(key, str):
            node = node.get("properties", {}).get(key, {})
        else:
            node = node["prefixItems"][key] if "prefixItems" in node else node.get("items", {})
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node


def allowed(node: dict[str, Any]) -> str:
    """A JSON schema of one value, in words."""
    if "anyOf" in node:
        return " or ".join(allowed(option) for option in node["anyOf"] if option.get("type") != "null")
    if "enum" in node:
        return " or ".join(map(repr, node["enum"]))
    nouns = {
        "number": "a finite number",
        "integer": "a whole number",
        "string": "a word",
        "boolean": "true or false",
        "array": "a list",
        "object": "a mapping of keys to values",
    }
    limits = (
        ("exclusiveMinimum", "above {}"),
        ("minimum", "at least {}"),
        ("exclusiveMaximum", "below {}"),
        ("maximum", "at most {}"),
        ("minItems", "of at least {}"),
    )
    # a bound of 1.0 is said as 1, which a schema has in some versions of pydantic
    bounds = [words.format(int(b) if (b := node[limit]) == int(b) else b) for limit, words in limits if limit in node]
    return " ".join([nouns.get(node.get("type", ""), "valid"), " and ".join(bounds)]).strip()
