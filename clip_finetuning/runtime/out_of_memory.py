"""Which errors say that memory has run out: each device, library and version of torch has words of its own.

Only the standard library, so that whoever prints errors need not load torch.
"""

import re

WORDS = re.compile(
    r"out of memory"  # CUDA, HIP, MPS and XPU, from the allocator or from the driver
    r"|alloc(ation)?_?failed|rocblas_status_memory_error"  # cuBLAS, cuDNN 8 and 9, cuFFT, hipBLAS, MIOpen, ...
    r"|out_of_(device|host)_memory|erroroutofmemory|error_out_of_memory"  # Level Zero's, HIP's and the driver's codes
    r"|defaultcpuallocator|can't allocate memory|not enough memory|cannot allocate memory"  # Linux, Windows, macOS
    r"|invalid buffer size",  # one tensor larger than MPS takes
    re.IGNORECASE,
)
FROM_A_COLLECTIVE = re.compile(r"nccl|rccl|gloo", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the machine has no memory left, so that a smaller batch may work.

    torch.OutOfMemoryError, MemoryError, and RuntimeErrors of the libraries below. Not an error of a collective, though
    it may quote such words: the processes no longer agree on where they are, and nothing can be done again.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"OutOfMemoryError", "MemoryError"}:
        return True
    if not isinstance(error, RuntimeError) or FROM_A_COLLECTIVE.search(str(error)):
        return False
    return bool(WORDS.search(str(error)))
