"""Which errors a smaller batch may help against, in the words of every device, and which must never be tried again."""

import pytest
import torch

from clip_finetuning.runtime.out_of_memory import is_out_of_memory

RAN_OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 14.58 GiB"),
    torch.OutOfMemoryError("injected"),
    MemoryError(),
    *map(
        RuntimeError,
        [
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
            "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
            "cuFFT error: CUFFT_ALLOC_FAILED",
            "HIP error: out of memory",
            "HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
            "miopenStatusAllocFailed",
            "MPS backend out of memory (MPS allocated: 8.92 GB, other allocations: 1.23 GB, max allowed: 9.07 GB)",
            "Invalid buffer size: 20.00 GB",
            "XPU out of memory. Tried to allocate 2.00 GiB",
            "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
            "[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)",
            "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes",
        ],
    ),
]
SOMETHING_ELSE = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    ValueError("the captions are out of memory"),
    OSError(12, "Cannot allocate memory"),  # no process could be started
    RuntimeError("NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'"),  # others wait
]


@pytest.mark.parametrize("error", RAN_OUT, ids=repr)
def test_memory_that_ran_out(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", SOMETHING_ELSE, ids=repr)
def test_something_else(error):
    assert not is_out_of_memory(error)


def test_the_cpus_own_words_are_known():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
