"""Everything that is written to a disk: whole or not at all, and known again when a byte of it has changed.

A file or folder is made under another name beside its own and moved into place: a file in one step, a folder in two,
between which a reader waits.  That name tells who makes it, so that the remains of a program that was killed are found
and taken away by the next one that writes there, and what is being made at this moment is left alone.

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
from typing import Any, TypeVar

from mechrep.errors import StoreError

SUMS = "SHA256SUMS"
_SUM = '"sha256": '  # begins the last field of a record
_MADE = re.compile(r"(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.(?P<end>partial|before)")
_ABANDONED = 24 * 3600.0  # seconds after which nobody is still writing, whichever machine began it
_LONGEST_NAME = 150  # bytes: what is added while it is made must fit too
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}  # on Windows
_PAUSE = 0.01  # seconds, until what is being written has come to rest
_TRIES = 100  # to put a folder where others put theirs at the same time
_THERE = (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES)  # a folder is in the way: POSIX, Windows

Read = TypeVar("Read")


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
    target = Path(path).resolve()
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
    return Path(path)


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
    target = Path(path).resolve()  # a link stays a link, and leads to what is new
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
    return Path(path)


def read_folder(
    path: str | Path, record: str, read: Callable[[dict[str, Any]], Read], known: Sequence[int] = (1, 2)
) -> Read:
    """Read a folder that :func:`write_folder` made: one state of it, though another may be put in its place meanwhile.

    Args:
        path: the folder.
        record: name of the JSON file with a field ``version``; without the field it is version 1, which has no sums.
        read: gives what is asked for from the record, and may read other files of the folder; may be done again.
        known: versions that can be read.

    Raises:
        StoreError: nothing there, a file that is missing or has changed (named), or an unknown version; and what
            ``read`` raises.
    """
    folder = Path(path)
    for _ in range(_TRIES):
        if not folder.exists():
            tidy(folder.parent, folder.name)  # a program may have been killed between two moves
        seen = _identity(folder)
        try:
            found = read(_checked(folder, record, known))
        except StoreError:
            if _identity(folder) == seen:
                raise
        else:
            if _identity(folder) == seen:
                return found
        time.sleep(_PAUSE)
    raise StoreError(f"{folder}, which is written again and again", "a folder at rest", "wait until that has ended")


def check_folder(path: str | Path, record: str, known: Sequence[int] = (1, 2)) -> dict[str, Any]:
    """The record of a folder, after the sums of all its files have been compared, see :func:`read_folder`."""
    return read_folder(path, record, lambda made: made, known)


def _identity(folder: Path) -> tuple[int, ...] | None:
    """Tells a folder from another that was put in its place, which may have the number of one that is gone."""
    try:
        facts = folder.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns


def _checked(folder: Path, record: str, known: Sequence[int]) -> dict[str, Any]:
    try:
        sums = _read_sums(folder)
        for name, told in sums.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != told:
                    raise ValueError(f"{name} has changed since it was written: its sum differs")
        made = read_json(folder / record)
        version = made.get("version", 1)
        _check_version(folder, version, known)
        there = {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()} - {SUMS}
        if version != 1 and (unlisted := sorted(there - sums.keys())):
            raise ValueError(f"{SUMS} is missing or lacks {unlisted[0]}")
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder} ({error})", "a folder written by save()", "delete it and make it again") from error
    return made


def write_record(
    path: str | Path, record: Mapping[str, Any], *, parents: bool = False, indent: int | None = None
) -> Path:
    """Write a JSON record with the sum of what stands before it as its last field, in one move.

    Args:
        path: the file.
        record: what JSON can hold; its field ``version`` is that of its layout.
        parents: make the folders that are missing.
        indent: for a file that people read; much slower.

    Raises:
        StoreError: it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_record(Path(folder) / "a.json", {"version": 2, "n": 1})
        ...     read_record(path)
        {'version': 2, 'n': 1}
    """
    head = json.dumps(record, indent=indent)[:-1].rstrip() + (", " if record else "")
    return write_whole(path, f'{head}{_SUM}"{_sum_of(head)}"}}', parents=parents)


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
    text = Path(path).read_text(encoding="utf-8")
    record = _json_of(text)
    version, told = record.get("version", 1), record.pop("sha256", None)
    if told is not None and told != _sum_of(text.rpartition(_SUM)[0]):
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
        entries = sorted(one.name for one in os.scandir(folder) if one.name.startswith(name))
        for path in map(Path(folder).joinpath, entries):
            made = _MADE.fullmatch(path.name)
            if made is None or (name and made["name"] != name):
                continue
            target = path.with_name(made["name"])
            if made["end"] == "before" and not target.exists():  # whoever is at work on it tries again
                with contextlib.suppress(OSError):  # it is done meanwhile
                    path.rename(target)
            elif not _abandoned(path, made):
                continue
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _abandoned(path: Path, made: re.Match[str]) -> bool:
    """Whether nobody is at work on it: its program ended, or its last change is a day old."""
    import psutil

    if made["machine"] == _machine() and not psutil.pid_exists(int(made["pid"])):
        return True
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED
    except FileNotFoundError:  # it is done meanwhile
        return False


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
        try:
            if target.is_dir() and any(target.iterdir()):
                with contextlib.suppress(FileNotFoundError):  # somebody else was faster
                    target.rename(before)
            try:
                made.rename(target)
                return
            except OSError as error:  # somebody put another there meanwhile, or the old one back
                if error.errno not in _THERE or not target.is_dir():
                    raise
        finally:
            if before.exists() and not target.exists():  # an error, or an interruption
                before.rename(target)
            shutil.rmtree(before, ignore_errors=True)
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


def _sum_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A record as any program may have written it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no record.
    """
    return _json_of(path.read_text(encoding="utf-8"))


def _json_of(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
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
