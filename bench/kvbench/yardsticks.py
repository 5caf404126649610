"""What stands beside kvstore in results, by the names of the contestants: the machine itself, and other systems."""

SOCKET, PERFTEST, FIO = "socket", "ucx_perftest", "fio"
MEMCPY, MEMCPY_XXH3, HASH = "memcpy", "memcpy + xxh3", "blake2b, one piece"
CUDA_TO_HOST, CUDA_TO_DEVICE = "cudaMemcpy to host", "cudaMemcpy to device"
READERS_SOCKETS, ALL_SOCKETS = "sockets, readers' NICs", "sockets, all NICs"
MOONCAKE_STORE, MOONCAKE_ENGINE, NIXL = "mooncake store", "mooncake transfer engine", "nixl"
LMCACHE = "lmcache"

MACHINE = frozenset(
    (SOCKET, PERFTEST, FIO, MEMCPY, MEMCPY_XXH3, HASH, CUDA_TO_HOST, CUDA_TO_DEVICE, READERS_SOCKETS, ALL_SOCKETS)
)
RIVALS = frozenset((MOONCAKE_STORE, MOONCAKE_ENGINE, NIXL, LMCACHE))
