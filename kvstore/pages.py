"""Pages of shared memory: their size, and that they are there before they are needed.

A page that is touched for the first time is found, and cleared if it is new; 64 MiB of those take 20 to 200 ms.
All of this is advice to the kernel: where it does not take it, everything works the same, slower.
"""

import ctypes
import mmap

import numpy as np
import numpy.typing as npt

_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def ask_for_huge(mapped: npt.NDArray[np.uint8]) -> None:
    """For those that are not there yet, by each process that maps them: who touches a page first decides its size.
    Source: madvise(2), MADV_HUGEPAGE."""
    _madvise(mapped.ctypes.data, mapped.nbytes, mmap.MADV_HUGEPAGE)


def make(mapped: npt.NDArray[np.uint8]) -> None:
    """Makes all pages of a mapping that is new, and writable. Blocks, without the interpreter's lock (`mmap.madvise`
    keeps it). Where the kernel cannot (Linux before 5.14) or has no memory, they come when they are touched.
    Source: madvise(2), MADV_POPULATE_WRITE."""
    _madvise(mapped.ctypes.data, mapped.nbytes, _MADV_POPULATE_WRITE)


def find(mapped: npt.NDArray[np.uint8]) -> None:
    """The same for a mapping of pages that another process has made: sixteen are found at a time, and they can be
    written where the mapping can. Source: madvise(2), MADV_POPULATE_READ."""
    _madvise(mapped.ctypes.data, mapped.nbytes, _MADV_POPULATE_READ)
