"""Which RuntimeErrors are the machine's - a device, its libraries, the connections between processes, shared memory, a disk -
and which a mistake in this code: torch has one class for all of them, so each library's own words have to tell.

Only the standard library, so that whoever prints errors need not load torch.
"""

import re

DEVICE, PROCESSES = "the device failed", "the processes lost each other"
KINDS = {  # by name: some versions of torch lack some of them
    "AcceleratorError": DEVICE,
    "CudaError": DEVICE,
    "DeferredCudaCallError": DEVICE,
    "DistError": PROCESSES,  # and those that are kinds of it: DistNetworkError, DistBackendError, DistStoreError
}
# In this order: an error of the connections often quotes the device's.
WORDS = {
    "a worker of the loader failed, NUM_WORKERS=0 does without workers": (
        r"dataloader worker|pin memory thread|unable to \w+ (the )?shared memory|shared memory\(shm\)|torch_shm_manager"
        r"|unable to (mmap|open|resize|write to) .*(/torch_|shm)|items of ancdata|too many open files"
    ),
    PROCESSES: (
        r"\bnccl|\brccl|\bgloo\b|connection (was )?(closed|reset|refused|timed out)|client socket|socket timeout|tcpstore"
        r"|wait timeout|timed out (after|waiting)|\bheartbeat\b|rendezvous|monitoredbarrier"
    ),
    "a file of weights could not be written or read whole": r"pytorchstream(writer|reader)|inline_container|file write",
    DEVICE: (
        r"\b(cuda|hip|mps|xpu|sycl)\w* (error|driver|runtime|initialization|unknown|kernel|backend|failure|out)"
        r"|cudnn|cublas|cusolver|cusparse|cufft|curand|nvrtc|nvml|nvidia driver|no kernel image|miopen|rocblas|hipblas"
        r"|device-side assert|illegal (memory access|instruction)|misaligned address|(launch|ecc|hardware) (failure|error)"
        r"|unspecified launch|uncorrectable|device(s)? (is|are)? ?(lost|busy|unavailable)|no (cuda|hip|xpu)[\w-]* (gpus|devices?)"
        r"|command buffer|metal|level.zero|torch not (compiled|linked) with"
    ),
}
PATTERNS = {what: re.compile(words, re.IGNORECASE) for what, words in WORDS.items()}


def explain(error: RuntimeError) -> str | None:
    """What of the machine failed and the error's own first line, in one; None for a mistake of this code."""
    text = str(error)
    named = [KINDS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in KINDS]
    what = next(iter(named + [what for what, pattern in PATTERNS.items() if pattern.search(text)]), None)
    if what is None:
        return None
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{what} ({first.rstrip('.')})"
