"""Nested plain values on their way to a configuration, and who set each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gcpo_bench.errors import did_you_mean

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Replaced:
    """A value that somebody set and somebody later set again."""

    path: KeyPath
    value: Any
    before: str
    after: str


class Draft:
    """Nested plain values on their way to a RunConfig; remembers who set each."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values = values
        self.default = source
        self.sources: dict[KeyPath, str] = {}
        self.replaced: list[Replaced] = []

    def set(self, path: KeyPath, value: Any, source: str) -> None:
        """Put `value` at `path`: a mapping onto a mapping is merged, anything else replaces what was there."""
        old = get(self.values, path) if path else self.values
        if isinstance(value, dict) and isinstance(old, dict):
            for key, item in value.items():
                self.set((*path, key), item, source)
            return
        below = {known: where for known, where in self.sources.items() if known[: len(path)] == path}
        self.replaced += [Replaced(known, get(self.values, known), where, source) for known, where in below.items()]
        self.sources = {known: where for known, where in self.sources.items() if known not in below}
        self.sources[path] = source
        container: Any = self.values
        for key in path[:-1]:
            container = container.setdefault(key, {}) if isinstance(container, dict) else container[key]
        container[path[-1]] = value

    def source(self, path: KeyPath) -> str:
        """Who set the value at `path`, itself or as part of something larger."""
        parents = (path[:length] for length in range(len(path), 0, -1))
        return next((self.sources[parent] for parent in parents if parent in self.sources), self.default)

    def locate(self, dotted: str) -> KeyPath:
        """The path a dotted key means; list items go by index or by their `name`. Raises ValueError with the reason."""
        path: KeyPath = ()
        for part in dotted.split("."):
            here = get(self.values, path) if path else self.values
            if isinstance(here, list):
                path = (*path, _item(here, part, display(path, self.values)))
            elif isinstance(here, dict) or here is None:
                path = (*path, part)
            else:
                raise ValueError(f"{display(path, self.values)} is a single value and has no key {part!r}")
        return path


def get(values: Any, path: KeyPath) -> Any:
    for key in path:
        if isinstance(values, dict):
            values = values.get(key)
        elif isinstance(values, (list, tuple)) and isinstance(key, int) and key < len(values):
            values = values[key]
        else:
            return None
    return values


def _item(items: list[Any], part: str, where: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    known = [str(name) for name in names if name] or [str(index) for index in range(len(items))]
    raise ValueError(f"{where} has no item {part!r}; {did_you_mean(part, known)}")


def display(path: KeyPath, values: Any) -> str:
    """The dotted key of a path, with list items by name where the name is unique, else by index."""
    parts = []
    for length, key in enumerate(path):
        part = str(key)
        if isinstance(key, int):
            siblings = get(values, path[:length])
            names = [item.get("name") for item in siblings or () if isinstance(item, dict)]
            name = get(values, (*path[: length + 1], "name"))
            if isinstance(name, str) and names.count(name) == 1:
                part = name
        parts.append(part)
    return ".".join(parts)


def leaves(values: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Single values with their paths; a list of plain values counts as one, and so does an empty mapping."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    elif isinstance(values, list) and values and isinstance(values[0], dict):
        for index, value in enumerate(values):
            yield from leaves(value, (*path, index))
    else:
        yield path, values
