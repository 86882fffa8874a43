"""Errors a person can act on, files that are never half written, and where a result came from."""

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import tempfile
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """What a person gave cannot be used: one sentence with the file, the value and the fix."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` on success, delete it on any error.

    A reader of `path` therefore sees the old file or the whole new one, never a part of it.

    Raises:
        InputError: the folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise InputError(
            f"{path}: cannot write here ({error.strerror}). Choose another output folder."
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files for their owner alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 checksum of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON; dataclasses become objects. NaN is refused, as JSON has none."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, unreadable or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read this file ({error.strerror}).") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: this is not JSON ({error}). Restore the file from its source.") from error


def dataclass_from_dict(cls: type, values: Any, where: str = "config") -> Any:
    """Rebuild a (nested) config dataclass from what `dataclasses.asdict` and JSON made of it.

    Missing fields keep their defaults, so that old configs load; lists become tuples again.

    Raises:
        InputError: a field this version does not know, a value of the wrong kind or one the config
            itself refuses.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected an object with named fields, found {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(fields)):
        raise InputError(
            f"{where}: unknown field {', '.join(unknown)}. Known fields: {', '.join(fields)}. "
            "The file may come from a newer mammomil."
        )
    hints = typing.get_type_hints(cls)
    given = {}
    for name, value in values.items():
        hint = hints[name]
        if isinstance(hint, types.UnionType) and value is not None:  # `X | None`
            hint = next(option for option in typing.get_args(hint) if option is not type(None))
        if dataclasses.is_dataclass(hint) and value is not None:
            value = dataclass_from_dict(typing.cast(type, hint), value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(value)
        given[name] = value
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error


def provenance(**facts: Any) -> dict[str, Any]:
    """Say where a result comes from: versions, machine, commit, time, and the caller's own `facts`.

    The commit is that of the mammomil checkout, None for an installed package.
    """
    import torch

    here = Path(__file__).resolve().parent
    git = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    names = ("mammomil", "torch", "torchvision", "numpy", "scikit-learn", "pydicom")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU"
    return {
        **facts,
        "commit": git.stdout.strip() or None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions},
        "device": device,
        "threads": torch.get_num_threads(),
    }
