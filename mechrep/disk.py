"""Everything that is written to a disk: whole or not at all, and known again when a byte of it has changed.

A file or folder is made under another name beside its own and moved into place in one step.  That name tells who makes
it, so that the remains of a program that was killed are found and taken away by the next one that writes there, and
what is being made at this moment is left alone.

A folder has a list of SHA-256 sums (``sha256sum -c SHA256SUMS`` checks it), a JSON record its own sum as a field.  What
mechrep 0.1 wrote has neither, and is read as it is.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechrep.errors import StoreError

SUMS = "SHA256SUMS"
_MADE = re.compile(r"(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.(?P<end>partial|before)")
_ABANDONED = 24 * 3600.0  # seconds after which nobody is still writing, whichever machine began it
_LONGEST_NAME = 150  # bytes: what is added while it is made must fit too
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}  # on Windows
_TRIES = 100  # to put a folder where others put theirs at the same time
_THERE = (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES)  # a folder is in the way: POSIX, Windows


def write_whole(path: str | Path, content: str | bytes | Callable[[Path], object], *, parents: bool = False) -> Path:
    """Write a file in one move; what was there before stays until the new one is complete.

    Args:
        path: the file.
        content: text (as UTF-8, lines ending in a line feed), bytes, or a function that writes the file it is given.
        parents: make the folders that are missing.

    Returns:
        The path.

    Raises:
        StoreError: it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder) / "a" / "b.txt", "the sea", parents=True).read_text()
        'the sea'
    """
    target = Path(path)
    with _told(target):
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        partial = _beside(target, "partial")
        try:
            if callable(content):
                content(partial)
            else:
                partial.write_bytes(content.encode() if isinstance(content, str) else content)
            _flush(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)  # left only by a failure
    tidy(target.parent, target.name)
    return target


def write_folder(path: str | Path, fill: Callable[[Path], object], *, record: str) -> Path:
    """Make a folder in one move, with the sums of its files; an earlier one stays until the new one is complete.

    Args:
        path: the folder.
        fill: writes the files into the folder that it is given.
        record: the file that each folder of this kind has; a folder without it is somebody else's and is kept.

    Raises:
        StoreError: it cannot be written, or other things stand there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = write_folder(Path(folder) / "a", lambda new: (new / "a.json").write_text("{}"), record="a.json")
        ...     sorted(file.name for file in made.iterdir())
        ['SHA256SUMS', 'a.json']
    """
    target = Path(path)
    if target.is_dir() and any(target.iterdir()) and not (target / record).is_file():
        raise StoreError(
            f"{target}, a folder of other things", "a new folder, or an earlier one of this kind", "choose one"
        )
    with _told(target):
        partial = _beside(target, "partial")
        try:
            partial.mkdir(parents=True)
            fill(partial)
            _write_sums(partial)
            _put(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    tidy(target.parent, target.name)
    return target


def check_folder(path: str | Path, record: str, known: Sequence[int] = (1, 2)) -> dict[str, Any]:
    """The record of a folder that :func:`write_folder` made, after the sums of all its files have been compared.

    Args:
        path: the folder.
        record: name of the JSON file with a field ``version``; without the field it is version 1, which has no sums.
        known: versions that can be read.

    Raises:
        StoreError: nothing there, a file that is missing or has changed (named), or an unknown version.
    """
    folder = Path(path)
    if not folder.exists():
        tidy(folder.parent, folder.name)  # a program may have been killed between two moves
    try:
        sums = _read_sums(folder)
        for name, told in sums.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != told:
                    raise ValueError(f"{name} has changed since it was written: its sum differs")
        made = read_json(folder / record)
        version = made.get("version", 1)
        _check_version(folder, version, known)
        if version != 1 and record not in sums:
            raise ValueError(f"{SUMS} is missing or lacks {record}")
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder} ({error})", "a folder written by save()", "delete it and make it again") from error
    return made


def write_record(path: str | Path, record: Mapping[str, Any], *, parents: bool = False) -> Path:
    """Write a JSON record with its own sum, in one move.

    Args:
        path: the file.
        record: what JSON can hold; its field ``version`` is that of its layout.
        parents: make the folders that are missing.

    Raises:
        StoreError: it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_record(Path(folder) / "a.json", {"version": 2, "n": 1})
        ...     read_record(path)
        {'version': 2, 'n': 1}
    """
    made = json.loads(json.dumps(record))  # as it will be read
    text = json.dumps(made | {"sha256": _sum_of(made)}, indent=1, ensure_ascii=False)
    return write_whole(path, text, parents=parents)


def read_record(path: str | Path, known: Sequence[int] = (1, 2)) -> dict[str, Any]:
    """What :func:`write_record` wrote, after its sum has been compared.

    Args:
        path: the file.
        known: versions that can be read; version 1 has no sum and no field ``version``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no record, or it has changed since it was written.
        StoreError: an unknown version.
    """
    record = read_json(Path(path))
    version, told = record.get("version", 1), record.pop("sha256", None)
    if told is not None and told != _sum_of(record):
        raise ValueError("changed since it was written: its sum differs")
    _check_version(path, version, known)
    if told is None and version != 1:
        raise ValueError("without its sum")
    return record


def is_plain_name(name: object) -> bool:
    """Whether a name from data is that of a file right in its folder, on any system.

    Example:
        >>> [is_plain_name(name) for name in ("heads", "../heads", "/etc", "a\\0b", "con.json", "", 7)]
        [True, False, False, False, False, False, False]
    """
    return (
        isinstance(name, str)
        and 0 < len(name.encode(errors="replace")) <= _LONGEST_NAME
        and not set(name) & set('/\\:*?"<>|')
        and name.isprintable()
        and name == name.strip(". ")
        and name.partition(".")[0].lower() not in _RESERVED
    )


def plain_name(name: object) -> str:
    """A name from data, as part of a path.

    Raises:
        ValueError: it would lead out of its folder, or cannot be the name of a file everywhere.
    """
    if not is_plain_name(name):
        raise ValueError(f"{name!r} is no name of a file or folder")
    return str(name)


def tidy(folder: str | Path, name: str = "") -> None:
    """Take away what programs that were killed have left in a folder; what they had moved aside is put back.

    Args:
        folder: where files and folders are made.
        name: of the one whose remains are meant; by default all.
    """
    with contextlib.suppress(OSError):  # nothing there, or nothing that this user may take away
        for path in sorted(Path(folder).iterdir()):
            made = _MADE.fullmatch(path.name)
            if made is None or (name and made["name"] != name) or not _abandoned(path, made):
                continue
            target = path.with_name(made["name"])
            if made["end"] == "before" and not target.exists():
                path.rename(target)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _abandoned(path: Path, made: re.Match[str]) -> bool:
    """Whether nobody is at work on it: its program ended, or its last change is a day old."""
    import psutil

    if made["machine"] == _machine() and not psutil.pid_exists(int(made["pid"])):
        return True
    return time.time() - path.stat().st_mtime > _ABANDONED


def _beside(target: Path, end: str) -> Path:
    """A name that nobody else uses, and that tells who does."""
    return target.with_name(f"{target.name}.{_machine()}-{os.getpid()}-{os.urandom(4).hex()}.{end}")


@functools.cache
def _machine() -> str:
    """Where a process number means one process: this machine, since it was started, in this container."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        facts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - no path of a file
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:8]


@contextlib.contextmanager
def _told(target: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"{target} ({reason})", "a place to write", "free space or choose another") from error


def _flush(file: Path) -> None:
    """Hand a file over to the disk: a move must not come before the content when power fails."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _put(made: Path, target: Path) -> None:
    """Move a folder into place; what stands there, perhaps since a moment ago, goes."""
    for _ in range(_TRIES):
        before = _beside(target, "before")
        if target.is_dir() and any(target.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # somebody else was faster
                target.rename(before)
        try:
            made.rename(target)
            shutil.rmtree(before, ignore_errors=True)
            return
        except OSError as error:
            if error.errno not in _THERE or not target.is_dir():
                if before.exists() and not target.exists():
                    before.rename(target)
                raise
        shutil.rmtree(before, ignore_errors=True)  # somebody put another there meanwhile
    raise OSError(errno.EBUSY, "others write it again and again")


def _write_sums(folder: Path) -> None:
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _flush(path)
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder).as_posix()}\n")
    (folder / SUMS).write_bytes("".join(lines).encode())
    _flush(folder / SUMS)


def _read_sums(folder: Path) -> dict[str, str]:
    if not (folder / SUMS).is_file():
        return {}
    sums = {}
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        told, _, name = line.partition("  ")
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{SUMS} is damaged")
        sums[name] = told
    return sums


def _sum_of(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A record as any program may have written it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("no record")
    return record


def _check_version(path: str | Path, version: Any, known: Sequence[int]) -> None:
    if version not in known:
        raise StoreError(
            f"{path}, written in version {version!r} of its layout",
            f"version {' or '.join(map(str, known))}",
            "update mechrep: a newer one wrote it",
        )
