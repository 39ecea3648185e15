"""The embedded world: a grammar of prompts, scenes that make them true, their pictures, and a lossless tokenizer.

Pictures show coloured shapes on a plain background. Sizes and places are multiples that make every patch one of a few
hundred, so the codebook is enumerated rather than learned and a picture survives tokenizing to the pixel.

Prompts follow GenEval's six task families and its metadata schema. Held-out combinations never occur in a caption
before evaluation, neither in pretraining nor in reinforcement learning:

- colour with shape: 8 of the 64 pairs (`HELD_OUT_COLORED`), each shape and each colour once;
- shape before shape: 8 of the 56 orders (`HELD_OUT_ORDERS`), each shape once first and once second, in any relation;
- number with shape in a frame: 48 of the 144;
- for single objects, which have nothing to combine, 6 of the 18 wordings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
import numpy.typing as npt

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, did_you_mean

Image = npt.NDArray[np.uint8]
"""uint8, (Y, X, 3)."""

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "heart")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 215, 40),
    "green": (44, 150, 60),
    "blue": (40, 90, 215),
    "purple": (140, 60, 180),
    "black": (25, 25, 25),
    "white": (255, 255, 255),
}
BACKGROUND = (190, 195, 200)
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
FRAMES = ("a photo of", "a picture of", "an image of", "a drawing of", "a painting of", "a scene with")
ARTICLES = ("a", "one", "a single")


@dataclass(frozen=True, slots=True)
class World:
    """Size of the pictures. The grammar is the same in each."""

    name: str
    side: int
    """Tokens per side."""
    sizes: tuple[int, ...]
    """Widths of objects, pixels, even."""
    spacing: int
    """Least distance between centres, patches, along the farther axis: objects share no patch and never touch."""
    patch: int = 4
    """Pixels per side of a token."""

    @property
    def pixels(self) -> int:
        return self.side * self.patch

    @property
    def grid(self) -> tuple[int, int]:
        return (self.side, self.side)


WORLDS = {world.name: world for world in (World("scenes-12", 12, (12,), 4), World("scenes-8", 8, (10,), 3))}


def get_world(name: str) -> World:
    if name not in WORLDS:
        others = "other models need another benchmark: -o evaluation.benchmark=geneval, or a --preset of theirs"
        raise ConfigError(f"unknown world {name!r}", hint=f"{did_you_mean(name, WORLDS)}; {others}")
    return WORLDS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    shape: str
    color: str
    size: int
    """Width and height, pixels."""
    row: int
    """Patch that holds the centre."""
    col: int


Scene = tuple[SceneObject, ...]


# ---------------------------------------------------------------- pictures


def _star_contains(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Five points, one up; the outline's corners alternate between two radii."""
    angle = np.pi / 5 * np.arange(10)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.5)
    corners_x, corners_y = radius * np.sin(angle), -radius * np.cos(angle)
    # stretched a little past its box, so that the tips still cover a pixel centre at 10 pixels
    corners_x = 1.15 * corners_x / np.abs(corners_x).max()
    corners_y = 1.3 * (2 * (corners_y - corners_y.min()) / np.ptp(corners_y) - 1)
    inside = np.zeros(x.shape, dtype=bool)
    for i in range(10):  # even-odd rule
        x0, y0, x1, y1 = corners_x[i - 1], corners_y[i - 1], corners_x[i], corners_y[i]
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


@cache
def shape_mask(shape: str, height: int, width: int) -> npt.NDArray[np.bool_]:
    """bool (height, width): the shape filling its bounding box."""
    y, x = np.meshgrid(
        (np.arange(height) + 0.5) / height * 2 - 1, (np.arange(width) + 0.5) / width * 2 - 1, indexing="ij"
    )
    if shape == "circle":
        mask = x**2 + y**2 <= 1.0
    elif shape == "square":
        mask = np.ones_like(x, dtype=bool)
    elif shape == "triangle":
        mask = np.abs(x) <= (y + 1) / 2 + 0.6 / height
    elif shape == "diamond":
        mask = np.abs(x) + np.abs(y) <= 1.0 + 1.0 / height
    elif shape == "cross":
        mask = (np.abs(x) <= 0.34) | (np.abs(y) <= 0.34)
    elif shape == "star":
        mask = _star_contains(x, y)
    elif shape == "ring":
        mask = (x**2 + y**2 <= 1.0) & (x**2 + y**2 > 0.36)
    elif shape == "heart":
        lobes = ((np.abs(x) - 0.5) ** 2 + (y + 0.5) ** 2 <= 0.27) & (y <= -0.4)
        mask = lobes | ((np.abs(x) <= (1.05 - y) / 1.45) & (y > -0.4))
    else:
        raise ConfigError(f"unknown shape {shape!r}", hint=did_you_mean(shape, SHAPES))
    mask.setflags(write=False)
    return mask


def render(scene: Scene, world: World) -> Image:
    """The picture of a scene: exact palette colours, no antialiasing."""
    image = np.empty((world.pixels, world.pixels, 3), dtype=np.uint8)
    image[:] = BACKGROUND
    for item in scene:
        top, left = (world.patch * place + (world.patch - item.size) // 2 for place in (item.row, item.col))
        image[top : top + item.size, left : left + item.size][shape_mask(item.shape, item.size, item.size)] = COLORS[
            item.color
        ]
    return image


# ---------------------------------------------------------------- tokens


def _patches(images_BYXC: npt.NDArray[np.uint8], patch: int) -> npt.NDArray[np.uint8]:
    """(B, Y, X, 3) -> (B, T, patch, patch, 3), raster order."""
    rows, cols = images_BYXC.shape[1] // patch, images_BYXC.shape[2] // patch
    tiles = images_BYXC.reshape(-1, rows, patch, cols, patch, 3).swapaxes(2, 3)
    return tiles.reshape(-1, rows * cols, patch, patch, 3)


class Tokenizer:
    """One token a patch. Token 0 is background; every patch that `render` can draw has a token of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.codebook = self._enumerate()
        """uint8 (V, patch, patch, 3)."""
        self._index = {patch.tobytes(): token for token, patch in enumerate(self.codebook)}
        self.colors_V, self.masks_V = self._factors()
        """int64 (V,): each token's colour, 0 for background, and its mask among the distinct ones, 0 for empty."""

    @property
    def vocab_size(self) -> int:
        return len(self.codebook)

    def _enumerate(self) -> npt.NDArray[np.uint8]:
        blank = render((), self.world)[: self.world.patch, : self.world.patch]
        seen = {blank.tobytes(): blank}
        for color in COLORS:
            for shape in SHAPES:
                for size in self.world.sizes:
                    picture = render((SceneObject(shape=shape, color=color, size=size, row=2, col=2),), self.world)
                    for patch in _patches(picture[None], self.world.patch)[0]:
                        seen.setdefault(patch.tobytes(), patch)
        return np.stack(list(seen.values()))

    def _factors(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        painted_VYX = (self.codebook != np.array(BACKGROUND, dtype=np.uint8)).any(axis=-1)
        masks: dict[bytes, int] = {}
        masks_V = [masks.setdefault(mask.tobytes(), len(masks)) for mask in painted_VYX]
        palette = [BACKGROUND, *COLORS.values()]
        inks = [
            tuple(patch[mask][0]) if mask.any() else BACKGROUND
            for patch, mask in zip(self.codebook, painted_VYX, strict=True)
        ]
        return np.array([palette.index(ink) for ink in inks]), np.array(masks_V)

    def encode(self, images_BYXC: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Tokens (B, T); a patch that no scene can hold becomes the nearest one (squared RGB distance)."""
        patches = _patches(images_BYXC, self.world.patch)
        tokens = [self._index.get(patch.tobytes(), -1) for row in patches for patch in row]
        tokens_BT = np.array(tokens, dtype=np.int64).reshape(patches.shape[:2])
        flat = self.codebook.reshape(self.vocab_size, -1).astype(np.int64)
        for b, t in np.argwhere(tokens_BT < 0):
            tokens_BT[b, t] = ((flat - patches[b, t].reshape(-1).astype(np.int64)) ** 2).sum(axis=1).argmin()
        return tokens_BT

    def decode(self, tokens_BT: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Images (B, Y, X, 3)."""
        side, patch = self.world.side, self.world.patch
        tiles = self.codebook[tokens_BT].reshape(-1, side, side, patch, patch, 3).swapaxes(2, 3)
        return tiles.reshape(-1, side * patch, side * patch, 3)


@cache
def tokenizer(world_name: str) -> Tokenizer:
    """The tokenizer of a world, made once."""
    return Tokenizer(get_world(world_name))


# ---------------------------------------------------------------- prompts

HELD_OUT_COLORED = frozenset(
    (color, shape) for i, shape in enumerate(SHAPES) for j, color in enumerate(COLORS) if (j - i) % 8 == 3
)
"""(colour, shape) pairs that no caption names before evaluation."""

HELD_OUT_ORDERS = tuple((shape, SHAPES[(i + 3) % 8]) for i, shape in enumerate(SHAPES))
"""(first, second) shape that no caption names in this order before evaluation; the other order occurs."""


def _held_out_wording(frame: str, article: str) -> bool:
    return FRAMES.index(frame) % 3 == ARTICLES.index(article)


def _held_out_number(frame: str, shape: str) -> int:
    """The one number of this shape that no caption names in this frame before evaluation.

    A number withheld in every frame would leave two for the shape, and a policy soon learns which one it never has.
    """
    return 2 + (FRAMES.index(frame) + SHAPES.index(shape)) % 3


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _prompt(tag: str, text: str, include: list[dict[str, object]], **more: object) -> tuple[str, dict[str, object]]:
    return text, {"tag": tag, "include": include, **more}


def _single(frame: str, article: str, shape: str) -> tuple[str, dict[str, object]]:
    return _prompt("single_object", f"{frame} {article} {shape}", [{"class": shape, "count": 1}])


def _two(frame: str, first: str, second: str) -> tuple[str, dict[str, object]]:
    include: list[dict[str, object]] = [{"class": first, "count": 1}, {"class": second, "count": 1}]
    return _prompt("two_object", f"{frame} {_with_article(first)} and {_with_article(second)}", include)


def _counting(frame: str, number: int, shape: str) -> tuple[str, dict[str, object]]:
    return _prompt(
        "counting",
        f"{frame} {NUMBERS[number]} {plural(shape)}",
        [{"class": shape, "count": number}],
        exclude=[{"class": shape, "count": number + 1}],
    )


def _colors(frame: str, color: str, shape: str) -> tuple[str, dict[str, object]]:
    include: list[dict[str, object]] = [{"class": shape, "count": 1, "color": color}]
    return _prompt("colors", f"{frame} {_with_article(f'{color} {shape}')}", include)


def _position(frame: str, subject: str, relation: str, other: str) -> tuple[str, dict[str, object]]:
    # as in GenEval, the object that the relation refers to comes first
    include: list[dict[str, object]] = [
        {"class": other, "count": 1},
        {"class": subject, "count": 1, "position": [relation, 0]},
    ]
    return _prompt("position", f"{frame} {_with_article(subject)} {relation} {_with_article(other)}", include)


def _color_attr(frame: str, first: tuple[str, str], second: tuple[str, str]) -> tuple[str, dict[str, object]]:
    include: list[dict[str, object]] = [
        {"class": shape, "count": 1, "color": color} for color, shape in (first, second)
    ]
    text = " and ".join(_with_article(f"{color} {shape}") for color, shape in (first, second))
    return _prompt("color_attr", f"{frame} {text}", include)


def _train() -> Iterator[tuple[str, dict[str, object]]]:
    pairs = [pair for pair in permutations(SHAPES, 2) if pair not in HELD_OUT_ORDERS]
    colored = [(c, s) for s in SHAPES for c in COLORS if (c, s) not in HELD_OUT_COLORED]
    for frame in FRAMES:
        yield from (_single(frame, a, s) for a in ARTICLES if not _held_out_wording(frame, a) for s in SHAPES)
        yield from (_two(frame, *pair) for pair in pairs)
        yield from (_counting(frame, n, s) for n in NUMBERS for s in SHAPES if n != _held_out_number(frame, s))
        yield from (_colors(frame, *pair) for pair in colored)
        yield from (_position(frame, subject, r, other) for r in RELATIONS for subject, other in pairs)
        yield from (
            _color_attr(frame, first, second)
            for first in colored
            for second in colored
            if (first[1], second[1]) in pairs and first[0] != second[0]
        )


def _held_out() -> Iterator[tuple[str, dict[str, object]]]:
    """48 prompts a task: every held-out combination in turn, frames and orders spread evenly over them."""
    colors = list(COLORS)
    for f, frame in enumerate(FRAMES):
        yield from (_single(frame, a, s) for a in ARTICLES if _held_out_wording(frame, a) for s in SHAPES)
        yield from (_counting(frame, _held_out_number(frame, s), s) for s in SHAPES)
        yield from (_colors(frame, *pair) for pair in sorted(HELD_OUT_COLORED))
        for k, (first, second) in enumerate(HELD_OUT_ORDERS):
            yield _two(frame, first, second)
            yield _position(frame, first, RELATIONS[(f + k) % 4], second)
            color, other = (k + f) % 8, (k + f + 1 + (2 * f + k) % 7) % 8
            yield _color_attr(frame, (colors[color], first), (colors[other], second))


def _numbered(prefix: str, items: Iterator[tuple[str, dict[str, object]]]) -> tuple[Prompt, ...]:
    counts = dict.fromkeys(TASKS, 0)
    prompts = []
    for text, metadata in items:
        tag = str(metadata["tag"])
        prompts.append(Prompt(id=f"{prefix}-{tag}-{counts[tag]:04d}", text=text, metadata=metadata))
        counts[tag] += 1
    return tuple(sorted(prompts, key=lambda prompt: (TASKS.index(prompt.tag), prompt.id)))


@cache
def train_prompts() -> tuple[Prompt, ...]:
    """Prompts of pretraining and reinforcement learning, by task."""
    return _numbered("train", _train())


@cache
def held_out_prompts() -> tuple[Prompt, ...]:
    """Prompts of evaluation, 48 a task; no combination of theirs occurs in `train_prompts`."""
    return _numbered("heldout", _held_out())


@cache
def words() -> tuple[str, ...]:
    """Every word of the grammar, sorted."""
    return tuple(sorted({word for prompt in train_prompts() for word in prompt.text.split()}))


# ---------------------------------------------------------------- scenes


def _related(subject: tuple[int, int], relation: str, other: tuple[int, int]) -> bool:
    """Clearly in that direction: at least as far along its axis as across it (rows grow downwards)."""
    rows, cols = subject[0] - other[0], subject[1] - other[1]
    along, across = {
        "left of": (-cols, rows),
        "right of": (cols, rows),
        "above": (-rows, cols),
        "below": (rows, cols),
    }[relation]
    return along > 0 and along >= abs(across)


def _places(count: int, world: World, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Centres of `count` objects, at least `spacing` apart, uniformly over what fits."""
    centers = [(row, col) for row in range(1, world.side - 1) for col in range(1, world.side - 1)]
    while True:  # a bad first place can leave no room for the last; draw anew then
        free, chosen = centers, list[tuple[int, int]]()
        while free and len(chosen) < count:
            row, col = free[int(rng.integers(len(free)))]
            chosen.append((row, col))
            free = [(r, c) for r, c in free if max(abs(r - row), abs(c - col)) >= world.spacing]
        if len(chosen) == count:
            return chosen


def sample_scene(prompt: Prompt, world: World, rng: np.random.Generator) -> Scene:
    """A scene for which the prompt is exactly true: nothing missing, nothing extra; what it leaves open is random."""
    clauses = [clause for clause in prompt.metadata["include"] for _ in range(clause["count"])]
    while True:
        places = _places(len(clauses), world, rng)
        relations = [(i, clause["position"]) for i, clause in enumerate(clauses) if "position" in clause]
        if all(_related(places[i], relation, places[target]) for i, (relation, target) in relations):
            break
    return tuple(
        SceneObject(
            shape=clause["class"],
            color=clause.get("color") or list(COLORS)[int(rng.integers(len(COLORS)))],
            size=world.sizes[int(rng.integers(len(world.sizes)))],
            row=row,
            col=col,
        )
        for clause, (row, col) in zip(clauses, places, strict=True)
    )
