"""Files written whole or not at all: nobody ever reads half of one."""

from __future__ import annotations

import os
from pathlib import Path

from mechrep.errors import StoreError


def write_whole(path: str | Path, content: str | bytes, *, parents: bool = False) -> Path:
    """Write a file in one move; what was there before stays until the new one is complete.

    Args:
        path: the file.
        content: text (as UTF-8, lines ending in a line feed) or bytes.
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
    # A name of its own: whoever writes the same file at the same time has another one.
    partial = target.with_name(f"{target.name}.{os.urandom(4).hex()}.partial")
    try:
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)  # left only by a failure
    except OSError as error:
        raise StoreError(f"{target} ({error.strerror})", "a place to write", "free space or choose another") from error
    return target
