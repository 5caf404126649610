"""Files that are their owner's alone."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def write_private(path: Path, text: bytes, *, renews: bool = False) -> None:
    """Whole or not at all, and never readable by others, not even for a moment. Raises OSError that names the path.

    renews: owner, group, and whether the group may read, stay those of the file that is there: root renews what a
    service reads as its own user.
    """
    fresh = ""
    try:
        # A name that nobody guesses: who may write the directory could have a file of his own there, or a link.
        descriptor, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(descriptor, "wb") as file:
            file.write(text)
            if renews and path.exists():
                was = path.stat()
                os.fchown(descriptor, was.st_uid, was.st_gid)
                os.fchmod(descriptor, 0o600 | was.st_mode & stat.S_IRGRP)
        os.replace(fresh, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise OSError(error.errno, error.strerror, str(path)) from error
