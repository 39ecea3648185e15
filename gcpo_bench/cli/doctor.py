"""`gcpo-bench doctor`: is everything there that the program needs?"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from .options import JsonOption, RunsDirOption
from .output import print_json, print_table, size

State = Literal["ok", "absent", "warning", "missing"]
MIN_DISK_BYTES = 500_000_000
EXTRAS = {
    "diffusers": "diffusers",
    "mmdet": "mmdet",
    "hpsv2": "hpsv2",
    "peft": "peft",
    "submitit": "slurm",
    "ray": "ray",
    "spacy": "spacy",
}
"""Optional package -> the extra that installs it."""
SPACY_MODEL = "en_core_web_sm"


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: State
    """`missing` is required and makes the command fail; what needs something `absent` cannot run, and says so then."""
    found: str
    mend: str = ""


def doctor_command(runs_dir: RunsDirOption = Path("runs"), as_json: JsonOption = False) -> None:
    """Check the installation: packages, weights, disk, cores, GPU. Exit code 4 if something required is missing."""
    from gcpo_bench.errors import PrerequisiteError

    checks = [*_interpreter(), *_torch(), *_pixels(), *_weights(), *_machine(runs_dir), *_published(), *_extras()]
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        print_table(("check", "state", "found", "mend"), [list(asdict(check).values()) for check in checks])
    if failed := [check for check in checks if check.state == "missing"]:
        raise PrerequisiteError("; ".join(f"{check.name}: {check.found}" for check in failed), hint=failed[0].mend)


def _interpreter() -> Iterator[Check]:
    from gcpo_bench import __version__
    from gcpo_bench.environment import package_version

    yield Check("gcpo-bench", "ok", __version__)
    version = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 11)
    yield Check("python", "missing" if old else "ok", version, "install Python 3.11 or newer" if old else "")
    for name in ("transformers", "numpy", "scipy", "safetensors", "pydantic", "pillow", "pandas", "matplotlib"):
        yield _package(name, package_version(name))


def _package(name: str, version: str | None) -> Check:
    """Installed, and it can be imported."""
    from gcpo_bench.environment import without

    if version is None:
        return Check(name, "missing", "not installed", f"pip install {name}")
    try:
        with without("MPLBACKEND"):  # as reports import matplotlib
            importlib.import_module({"pillow": "PIL.Image"}.get(name, name))
    except Exception as error:
        return Check(name, "missing", f"{version} cannot be imported: {_short(error)}", f"pip install -U {name}")
    return Check(name, "ok", version)


def _torch() -> Iterator[Check]:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # a broken wheel can raise anything: OSError, ImportError, RuntimeError
        yield Check("torch", "missing", _short(error), "pip install 'torch>=2.7,<2.14'")
        return
    yield Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Check("GPU", "ok", ", ".join(names))
    else:
        yield Check("GPU", "ok", "none that torch sees; the embedded world needs none")
    yield _torchvision()


def _pixels() -> Iterator[Check]:
    """What an installed package decided unsaid in published evaluators: CLIP's activation, the resizing of pixels."""
    try:
        import torch
        from transformers.activations import ACT2FN

        from gcpo_bench.evaluators.scorers.images import resize_floats
    except Exception:
        return
    one = torch.ones(1)
    quick, exact = (round(float(ACT2FN[name](one)), 3) for name in ("quick_gelu", "gelu"))
    right = (quick, exact) == (0.846, 0.841)
    mend = "" if right else "reinstall transformers: scores of CLIP models would be wrong"
    yield Check("activation", "ok" if right else "missing", f"QuickGELU(1) is {quick}, GELU(1) is {exact}", mend)
    lines_CYX = (torch.arange(18) % 3 == 1).float().expand(1, 1, 18)  # every third is white
    smooth, bare = (resize_floats(lines_CYX, (1, 6), "bilinear", antialias=each)[0, 0, 2] for each in (True, False))
    right = (round(float(smooth), 3), float(bare)) == (0.333, 1.0)
    mend = "" if right else "reinstall torch: scores of HPS would be wrong"
    yield Check("antialias", "ok" if right else "missing", "an option of each scorer, and it works", mend)


def _torchvision() -> Check:
    """A CUDA torchvision beside a CPU torch raises when imported, and transformers imports it wherever it is there."""
    from gcpo_bench.environment import package_version

    version = package_version("torchvision")
    if version is None:
        return Check("torchvision", "ok", "not installed, not needed")
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        mend = "pip uninstall torchvision, or install the build that belongs to this torch"
        return Check("torchvision", "missing", f"{version} does not work with this torch: {_short(error)}", mend)
    return Check("torchvision", "ok", version)


def _weights() -> Iterator[Check]:
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.files import checksum, read_json
    from gcpo_bench.registry import POLICIES

    folder = Path(str(resources.files("gcpo_bench.training.weights")))
    for model in (model for model in POLICIES if (folder / f"{model}.json").exists() or model.startswith("scenes-")):
        mend = f"reinstall gcpo-bench, or: gcpo-bench pretrain --model {model} --out {folder}"
        weights = folder / f"{model}.safetensors"
        try:
            record = read_json(folder / f"{model}.json")
            expected = record.get("checksum") if isinstance(record, dict) else None
            found = checksum(weights)
        except GcpoBenchError as error:
            yield Check(f"weights {model}", "missing", str(error), mend)
            continue
        if found == expected:
            yield Check(f"weights {model}", "ok", f"{size(weights.stat().st_size)}, {found[:13]}")
        else:
            yield Check(f"weights {model}", "missing", f"checksum is {found}, should be {expected}", mend)


def _machine(runs_dir: Path) -> Iterator[Check]:
    from gcpo_bench.environment import cpu_model, memory_bytes, usable_cores
    from gcpo_bench.files import storage

    yield Check("machine", "ok", f"{cpu_model()}, {usable_cores()} cores, {size(memory_bytes())} memory")
    existing = next(path for path in (runs_dir.absolute(), *runs_dir.absolute().parents) if path.exists())
    writable = _is_writable(existing)
    mend = "" if writable else "choose another --runs-dir or mend its permissions"
    where = f"{runs_dir} can be written" if writable else f"{existing} cannot be written"
    yield Check("runs folder", "ok" if writable else "missing", where, mend)
    yield _disk("disk of runs", existing, "free some space, or choose another --runs-dir")
    home = storage("").absolute()
    existing = next(path for path in (home, *home.parents) if path.exists())
    yield _disk("disk of weights", existing, "free some space, or set GCPO_BENCH_HOME to a folder on another disk")


def _disk(name: str, folder: Path, mend: str) -> Check:
    free = shutil.disk_usage(folder).free
    scarce = free < MIN_DISK_BYTES
    return Check(name, "warning" if scarce else "ok", f"{size(free)} free", mend if scarce else "")


def _is_writable(folder: Path) -> bool:
    import tempfile

    if not folder.is_dir():
        return False
    try:
        with tempfile.TemporaryFile(dir=folder):  # permissions alone do not tell of read-only file systems
            return True
    except OSError:
        return False


def _published() -> Iterator[Check]:
    """Which published benchmarks and models can be run; none is required, but a damaged copy is told."""
    from gcpo_bench import catalogue
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.prompt_sets import SETS, verify
    from gcpo_bench.registry import BENCHMARKS
    from gcpo_bench.weights import state

    for name, each in SETS.items():
        try:
            if each.is_there:
                verify(name)
        except GcpoBenchError as error:
            yield Check(f"prompts {name}", "warning", str(error), each.mend)
    for each_weights in catalogue.CATALOGUE.values():
        if state(each_weights) == "unfinished":
            mend = f"gcpo-bench models fetch {each_weights.name}"
            yield Check(f"weights {each_weights.name}", "warning", "not whole", mend)
    for name in BENCHMARKS:
        if name in SETS or catalogue.NEEDS.get(name):
            yield _benchmark(name)
    yield _phrases()
    for name in catalogue.ELSEWHERE:
        yield _elsewhere(name)
    for name in catalogue.POLICIES:
        found = state(catalogue.CATALOGUE[name])
        if found == "there":
            yield Check(f"model {name}", "ok", "ready")
        else:
            yield Check(f"model {name}", "absent", "not fetched", f"gcpo-bench models fetch {name}")


def _benchmark(name: str) -> Check:
    """Prompts and weights are counted; whether that is all, the benchmark itself says, as it does before it draws."""
    from gcpo_bench import catalogue
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.evaluators.readiness import lack
    from gcpo_bench.prompt_sets import SETS, verify, with_parts
    from gcpo_bench.weights import local

    lacks, mends = [], []
    for each in with_parts(name):
        try:
            verify(each)
        except GcpoBenchError:
            lacks, mends = ["prompts"], [SETS[name].mend]
    needed = catalogue.NEEDS.get(name, ())
    if absent := sum(local(each) is None for each in needed):
        lacks.append(f"{absent} of {len(needed)} weights")
        mends.append(f"gcpo-bench models fetch {name}")
    if lacks:
        return Check(f"benchmark {name}", "absent", f"lacks {', '.join(lacks)}", "; ".join(mends))
    if error := lack(name, "", {}):
        return Check(f"benchmark {name}", "absent", f"lacks something: {error}", error.hint)
    return Check(f"benchmark {name}", "ok", "ready")


def _elsewhere(name: str) -> Check:
    """What runs outside this process: told where, or not. It is not started."""
    from gcpo_bench.catalogue import ELSEWHERE
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.registry import SCORERS

    if name not in SCORERS.entries:
        return Check(f"elsewhere: {name}", "absent", "runs in a program of its own", ELSEWHERE[name].how)
    try:
        SCORERS.load(name)()
    except GcpoBenchError as error:
        return Check(f"elsewhere: {name}", "absent", str(error), error.hint)
    return Check(f"elsewhere: {name}", "ok", f"{ELSEWHERE[name].variable} is set; it was not asked")


def _phrases() -> Check:
    """The table of noun phrases that T2I-CompBench needs: the user's own, else the shipped one."""
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.evaluators import phrases

    name = "noun phrases t2i-compbench"
    try:
        table = phrases.load()
    except GcpoBenchError as error:
        return Check(name, "warning", str(error), error.hint)
    return Check(name, "ok", f"{len(table)} prompts, {table.parser}{', shipped' if table.places else ''}")


def _extras() -> Iterator[Check]:
    from gcpo_bench.environment import package_version

    for package, extra in EXTRAS.items():
        version = package_version(package)
        mend = "" if version else f"pip install 'gcpo-bench[{extra}]'"
        yield Check(f"optional: {package}", "ok" if version else "absent", version or "not installed", mend)
    model = package_version(SPACY_MODEL)
    mend = "" if model else f"python -m spacy download {SPACY_MODEL}; for other noun phrases than the shipped ones"
    yield Check(f"optional: {SPACY_MODEL}", "ok" if model else "absent", model or "not installed", mend)


def _short(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 160 else f"{text[:157]}..."
