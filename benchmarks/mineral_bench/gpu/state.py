"""Which stages are done, and whether their figures still belong to this machine, software and these files."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mineral_bench.gpu import packages, unpack
from mineral_bench.gpu.plan import STAGES
from mineral_bench.gpu.record import ENDINGS, read_record, record_path
from mineral_bench.gpu.settings import GRAPHS

if TYPE_CHECKING:
    from mineral_bench.gpu.settings import Settings

_PACKAGES = ("mineral_batch", "mineral_train", "mineral_export", "mineral_bench")
# Files that figures depend on, and those that may change without measuring again.
_SOURCES = (".py", ".cu", ".ptx", ".onnx")
_OF_THE_PAGE = ("mineral_bench/gpu/page.py", "mineral_bench/gpu/measured.py")


#: What stages leave in OUT besides their records; everything made from the paper's model goes with it.
_FILES = {
    "photographs": ("photos/*",),
    "models": ("models/paper-*",),
    "attention": ("models/paper-attention-*",),
    "starter": ("models/starter-*",),
    "rtx": ("models/rtx.plan*",),
    "quantized": ("models/paper-int8*", "models/paper-float8*"),
}


def for_stage(settings: Settings, name: str) -> Settings:
    """Add everything that a stage's figures belong to: if one of these changes, the stage is measured again.

    These are the GPU and PyTorch and, for all that measures, this project's sources, the ONNX Runtime that is imported,
    the photographs, and each stage whose files it takes, by the time when that one was done.
    """
    plan, where = STAGES[name], dict(settings.where)
    if name != "install":
        where |= {"project": project(package_folders()), "onnxruntime": packages.onnxruntime_at(import_paths(settings))}
    if plan.has_photos:
        where["pictures"] = photos_digest(settings.photos)
    for other in (*plan.needs, *plan.uses):
        record = outcome(settings, other)
        if record["status"] == "done":  # what is missing for the moment leaves what was measured with it alone
            where[f"{other} of"] = record.get("made", "")
    return replace(settings, where=where)


def import_paths(settings: Settings) -> list[str]:
    """Return where a stage's modules come from: OUT/site first, then this project, then what is installed."""
    return [str(settings.site), *import_roots(), *sys.path]


def package_folders() -> tuple[Path, ...]:
    """Return the folders of this project's packages, in a checkout or installed."""
    specs = [importlib.util.find_spec(name) for name in _PACKAGES]
    return tuple(Path(spec.submodule_search_locations[0]) for spec in specs if spec and spec.submodule_search_locations)


def import_roots() -> list[str]:
    """Return the folders that this project's packages are imported from."""
    return list(dict.fromkeys(str(folder.parent) for folder in package_folders()))


@cache
def project(folders: tuple[Path, ...]) -> str:
    """Return a digest of the files in these packages that figures depend on."""
    files = [(file.relative_to(folder.parent).as_posix(), file) for folder in folders for file in folder.rglob("*")]
    relevant = sorted((name, file) for name, file in files if file.suffix in _SOURCES and name not in _OF_THE_PAGE)
    return digest([[name, sha256(file.read_bytes()).hexdigest()] for name, file in relevant])


@cache
def photos_digest(folder: Path | None) -> str:
    """Return a digest of the photographs, wherever they lie; `synthetic` if there are none."""
    if folder is None:
        return "synthetic"
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return f"{len(files)} files, {digest([[str(file.relative_to(folder)), file.stat().st_size] for file in files])}"


def digest(value: Any) -> str:
    """Return a short digest of what JSON can hold."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def outcome(settings: Settings, name: str) -> dict[str, Any]:
    """Return a stage's record; one that belongs to something else, or whose files are gone, counts as not done."""
    record = read_record(settings.out, name)
    is_lost = record.get("status") == "done" and not has_files_of(settings, name)
    if not record or is_lost or _is_foreign(record, for_stage(settings, name)):
        return {"status": "not done"}
    return (
        {**record, "status": "cut off"}
        if record.get("status") == "done" and _has_more(settings, name, record)
        else record
    )


def _is_foreign(record: dict[str, Any], stage: Settings) -> bool:
    return any(record.get("where", {}).get(key) != value for key, value in stage.where.items())


def _has_more(settings: Settings, name: str, record: dict[str, Any]) -> bool:
    """Whether more was brought along than a stage has unpacked or compiled."""
    if name == "install":
        return not set(unpack.brought(settings)) <= set(record.get("installed", ()))
    return name == "pycuda" and any(source.name not in record for source in unpack.sources(settings))


def start_over(settings: Settings, name: str) -> None:
    """Leave nothing of a stage to go on with; figures that belong to something else are kept as NAME.DIGEST.json."""
    record, file = read_record(settings.out, name), record_path(settings.out, name)
    if record.keys() - set(ENDINGS) and _is_foreign(record, for_stage(settings, name)):
        file.replace(record_path(settings.out, f"{name}.{digest(record.get('where'))}"))
    file.unlink(missing_ok=True)
    _remove_files_of(settings, name)


def has_files_of(settings: Settings, stage: str) -> bool:
    """Whether the files that other stages need of a finished stage still exist."""
    if stage == "install":
        return settings.site.is_dir()
    if stage == "photographs":
        return all(map(settings.has_photographs, settings.sizes.photos))
    if stage == "models":
        return settings.model("float32").is_file() and settings.model("float16").is_file()
    if stage == "pycuda":
        return all(map(settings.is_compiled, read_record(settings.out, stage).values()))
    return stage != "attention" or settings.model("float16", GRAPHS[", Attention nodes"]).is_file()


def _remove_files_of(settings: Settings, stage: str) -> None:
    """Remove what a stage that starts over must not find: made by other software, or from another model."""
    for pattern in _FILES.get(stage, ()):
        for path in settings.out.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
