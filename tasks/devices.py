"""What the errors of devices mean: no memory, or a device that does not work any more."""

from __future__ import annotations

import re

import torch

# PyTorch raises failures of the libraries below it as plain RuntimeErrors.
_LIBRARIES = "CUDA|cuBLAS|cuBLASLt|cuDNN|cuFFT|cuSPARSE|cuSOLVER|NCCL|NVRTC|HIP|MIOpen|rocBLAS|RCCL"
_STATUSES = "CUBLAS|CUDNN|CUSPARSE|CUSOLVER|HIPBLAS|HIPSPARSE|HIPSOLVER|ROCBLAS|MIOPEN"
DEVICE_ERROR = re.compile(
    rf"\b({_LIBRARIES})\b( \w+)? error\b"  # "CUDA driver error", "NCCL internal error"
    rf"|\b({_STATUSES})_STATUS_"
    r"|\b(CUFFT|CUDA_ERROR|NVRTC_ERROR)_[A-Z]|\b(cuda|hip)Error[A-Z]|\bnccl\w*Error\b"
    r"|\bTriton Error \[",
    re.IGNORECASE,
)
# A library without memory for its handle reports that it is not initialized.
NO_MEMORY = re.compile(
    r"out of memory|out_of_memory|_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)\b"
    r"|_STATUS_INSUFFICIENT_RESOURCES|cudaErrorMemoryAllocation|hipErrorOutOfMemory"
    r"|unable to find (a valid cuDNN algorithm|an engine)",
    re.IGNORECASE,
)


class ModelFailsError(RuntimeError):
    """The model failed on a row that is known to work: no row of the shard is to blame."""


def lacks_device_memory(error: BaseException) -> bool:
    """Return whether an error says that the device has too little memory for so many rows."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return _is_device_error(error) and NO_MEMORY.search(str(error)) is not None


def is_broken_device(error: BaseException) -> bool:
    """Return whether an error says that the device does not work, for this row or any other."""
    return _is_device_error(error) and not lacks_device_memory(error)


def _is_device_error(error: BaseException) -> bool:
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and DEVICE_ERROR.search(str(error)) is not None
