"""Which RuntimeErrors are the machine's: the words of torch and the libraries below, as they were seen or stand in their sources."""

import subprocess
import sys

import pytest
import torch

from clip_finetuning.runtime.machine_error import DEVICE, PROCESSES, explain
from tests.helpers import ROOT

LOADER = "a worker of the loader failed"
WEIGHTS = "a file of weights"
MACHINE = [
    (LOADER, "DataLoader worker (pid 71) is killed by signal: Bus error. It is possible that dataloader's workers are out of"),
    (LOADER, "DataLoader worker (pid(s) 71, 72) exited unexpectedly"),
    (LOADER, "Pin memory thread exited unexpectedly"),
    (LOADER, "unable to allocate shared memory(shm) for file </torch_7504_1112435243_1>: No space left on device (28)"),
    (LOADER, "unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)"),
    (LOADER, "unable to mmap 38535168 bytes from file </torch_1_2>: Cannot allocate memory (12)"),
    (LOADER, "received 0 items of ancdata"),
    (LOADER, "Too many open files. Communication with the workers is no longer possible."),
    (LOADER, "error executing torch_shm_manager at \"/x\" at ../torch/lib/libshm/core.cpp:99"),
    (PROCESSES, "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:21683"),
    (PROCESSES, "NCCL error in: ../ProcessGroupNCCL.cpp:1691, unhandled cuda error"),
    (PROCESSES, "[1]: Socket Timeout"),
    (PROCESSES, "wait timeout after 900000ms, keys: /default_pg/0//cuda//1"),
    (PROCESSES, "Connection reset by peer"),
    (WEIGHTS, "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/3: file write failed"),
    (WEIGHTS, "PytorchStreamReader failed reading zip archive: failed finding central directory"),
    (DEVICE, "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"),
    (DEVICE, "CUDA error: device-side assert triggered"),
    (DEVICE, "CUDA error: no kernel image is available for execution on the device"),
    (DEVICE, "CUDA driver error: unknown error"),
    (DEVICE, "CUDA unknown error - this may be due to an incorrectly set up environment"),
    (DEVICE, "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    (DEVICE, "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"),
    (DEVICE, "No CUDA GPUs are available"),
    (DEVICE, "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"),
    (DEVICE, "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized; CUDA initialization: x"),
    (DEVICE, "HIP error: invalid device function"),
    (DEVICE, "miopenStatusUnknownError"),
    (DEVICE, "MPS backend out of memory"),
    (DEVICE, "The MPS backend is supported on MacOS 14.0+"),
    (DEVICE, "XPU error: device lost"),
]  # fmt: skip
MISTAKES = [
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    "Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the same",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 0",
    "element 0 of tensors does not require grad and does not have a grad_fn",
    "a leaf Variable that requires grad is being used in an in-place operation.",
    "Trying to backward through the graph a second time",
    "dictionary changed size during iteration",
    "a fault",
    "generator raised StopIteration",
    "view size is not compatible with input tensor's size and stride",
    "",
]


@pytest.mark.parametrize(("what", "text"), MACHINE)
def test_the_machines_errors_are_told(what, text):
    said = explain(RuntimeError(text))
    assert said.startswith(what) and text.splitlines()[0].rstrip(".") in said and "\n" not in said


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_of_this_code_is_none(text):
    assert explain(RuntimeError(text)) is None


@pytest.mark.parametrize(
    ("what", "kind"),
    [(PROCESSES, torch.distributed.DistNetworkError), (PROCESSES, torch.distributed.DistBackendError)]
    + ([(DEVICE, torch.AcceleratorError)] if hasattr(torch, "AcceleratorError") else []),
)
def test_torchs_own_classes_are_told_whatever_they_say(what, kind):
    assert explain(kind("words of next year")) == f"{what} (words of next year)"
    assert explain(kind("")).startswith(f"{what} (")


@pytest.mark.parametrize("flags", [[], ["--debug"]])
def test_without_debug_it_is_one_line(flags):
    code = (
        "import sys; sys.argv[0] = 'script.py'\nimport settings\nfrom clip_finetuning.runtime import command_line, console\n"
        "def main():\n    command_line.Parser(settings, 'x', []).parse_args(sys.argv[1:])\n"
        "    raise RuntimeError('CUDA error: unknown error\\nCompile with TORCH_USE_CUDA_DSA')\n"
        "console.run(main, settings)"
    )
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    if flags:
        assert "Traceback" in done.stderr and done.returncode == 1
    else:
        line = "script.py: error: the device failed (CUDA error: unknown error); --debug shows where\n"
        assert (done.returncode, done.stderr) == (2, line)
