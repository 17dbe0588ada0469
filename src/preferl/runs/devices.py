"""Device, dtype, threads and seeds: the only file that asks what machine this is."""

import contextlib
import hashlib
import math
import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from preferl.runs import distributed
from preferl.runs.errors import UsageError


@contextlib.contextmanager
def prepared(
    seed: int, device: str, dtype: str, num_threads: int
) -> Iterator[tuple[torch.device, torch.dtype]]:
    """Seeds every generator and gives the device and the dtype to compute in, as long as the context lasts;
    then the generators and the number of threads are what they were.

    Raises:
        UsageError: the device or the dtype is unknown or not there.
    """
    place, kind = chosen_device(device), chosen_dtype(dtype, device)
    threads = torch.get_num_threads()
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        if num_threads:
            torch.set_num_threads(num_threads)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield place, kind
        finally:
            torch.set_num_threads(threads)
            random.setstate(states[0])
            np.random.set_state(states[1])


def chosen_device(device: str) -> torch.device:
    """The device of a name, ``auto`` included.

    Raises:
        UsageError: it is unknown or not there.
    """
    cuda = torch.cuda.is_available()
    name = ("cuda" if cuda else "cpu") if device == "auto" else device
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device '{device}' is not one torch knows; use auto, cpu or cuda") from error
    if place.type == "cuda" and not cuda:
        raise UsageError(f"device '{device}' asked for, but torch sees no CUDA device; use cpu")
    return own_gpu() if place.type == "cuda" and distributed.world_size() > 1 else place


def chosen_dtype(dtype: str, device: str = "auto") -> torch.dtype:
    """The dtype of a name, ``auto`` included.

    Raises:
        UsageError: it is unknown.
    """
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        # bfloat16 is emulated on most CPUs, 8 to 18 times slower than float32.
        fast = chosen_device(device).type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if dtype not in kinds:
        raise UsageError(f"dtype '{dtype}' is unknown; use auto, float32 or bfloat16")
    return kinds[dtype]


def chosen(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What is computed with, as a manifest records it."""
    kind = str(dtype).removeprefix("torch.")
    return {"device": device.type, "dtype": kind, "num_threads": torch.get_num_threads()}


def own_gpu() -> torch.device:
    """The GPU of this one of several processes."""
    number, there = distributed.local_rank(), torch.cuda.device_count()
    if number >= there:
        raise UsageError(
            f"process {number + 1} of this machine has no GPU of its own (there are {there}); start no more "
            f"processes than GPUs, or use --device cpu"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def derived_seed(seed: int, *names: object) -> int:
    """A seed of its own for each named purpose, so that adding a draw in one place moves no other."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def generator(seed: int, *names: object) -> torch.Generator:
    """An explicit CPU generator for a named purpose."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Computes in ``dtype`` where it is not float32; weights stay float32 either way."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def peak_memory_mib(device: torch.device) -> float:
    """Peak resident memory of this process, or of the GPU where one is used, in MiB; NaN where the system
    does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource  # not on Windows
    except ModuleNotFoundError:
        return math.nan
    scale = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
