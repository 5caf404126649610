"""CuPy's part in `kvstore.client.cuda`, played by NumPy: a kernel is a loop of memmove."""

import ctypes
import types
from typing import Any

import numpy as np


class DeviceArray(np.ndarray):
    """What code that expects a CuPy array may touch, and nothing that only NumPy's own would have."""

    device = types.SimpleNamespace(id=0)

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self.ctypes.data)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.__array_interface__

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("implicit conversion of a device array to a host array")

    def get(self, *, stream: Any, out: np.ndarray, blocking: bool) -> None:
        assert not blocking
        assert stream.entered
        out[:] = self.view(np.ndarray)

    def set(self, host: np.ndarray, *, stream: Any) -> None:
        assert type(host) is np.ndarray
        assert stream.entered
        self.view(np.ndarray)[:] = host


class _Stream:
    def __init__(self, *_: Any, **__: Any) -> None:
        self.entered = False
        self.waited = self.synchronized = 0

    def __enter__(self) -> None:
        self.entered = True

    def __exit__(self, *_: object) -> None:
        self.entered = False

    def wait_event(self, event: "_Event") -> None:
        self.waited += event.recorded_on == [0]

    def synchronize(self) -> None:
        self.synchronized += 1


class _Event:
    def __init__(self, *, disable_timing: bool) -> None:
        assert disable_timing
        self.recorded_on: list[int] = []
        self.ptr = self


def _event_record(event: _Event, stream: int) -> None:
    event.recorded_on.append(stream)


class _Device:
    def __init__(self, ordinal: int) -> None:
        assert ordinal == 0

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class CupyDouble(types.ModuleType):
    """Stands in for the module `cupy`; `launches` counts kernel launches, `registered` has the host memory
    (address, bytes) that is page-locked."""

    def __init__(self) -> None:
        super().__init__("cupy")
        self.launches = 0
        self.registered: set[tuple[int, int]] = set()
        runtime = types.SimpleNamespace(
            eventRecord=_event_record,
            hostRegister=lambda pointer, size, flags: self.registered.add((pointer, size)),
            hostUnregister=lambda pointer: self.registered.remove(next(r for r in self.registered if r[0] == pointer)),
            CUDARuntimeError=OSError,
        )
        self.cuda = types.SimpleNamespace(
            Stream=_Stream, Event=_Event, Device=_Device, runtime=runtime, is_available=lambda: True
        )

    def RawKernel(self, source: str, name: str) -> Any:
        assert name in source
        return self._launch

    def asarray(self, source: Any) -> DeviceArray:
        return source if isinstance(source, DeviceArray) else np.array(source).view(DeviceArray)

    def zeros(self, size: int, dtype: Any) -> DeviceArray:
        # Alignment of real device memory: the allocator gives multiples of 512.
        return np.zeros(size, dtype).view(DeviceArray)

    def _launch(self, grid: tuple[int], block: tuple[int], columns: tuple[DeviceArray, ...]) -> None:
        self.launches += 1
        assert 0 < block[0] <= 1024
        sources, targets, lengths = (column.view(np.ndarray).tolist() for column in columns)
        assert grid == (len(sources),)
        for source, target, length in zip(sources, targets, lengths, strict=True):
            ctypes.memmove(target, source, length)
