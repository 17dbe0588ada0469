"""Several processes that train one model; one is the default and costs nothing.

    torchrun --nproc_per_node 2 -m preferl rl --config F.yaml

All processes hold the same weights and draw the same random numbers. Each computes its own rows (``shard``),
and results are put together: tensors that are 0 in the rows of the others are added up (``all_reduce``). So
the number of processes changes nothing but rounding. Only the first one writes and speaks.
"""

import contextlib
import contextvars
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from preferl.runs.errors import Interrupted, StoppedElsewhere

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
T = TypeVar("T")

_writing = contextvars.ContextVar("writing", default=False)  # whether a function of main_writes is at work
GRACE_S = 10.0  # for the process that failed to say why, before the others end


def launched() -> int:
    """How many processes ``torchrun`` has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_main() -> bool:
    """Whether this one tells the person what all of them do."""
    return launched() == 1 or os.environ["RANK"] == "0"


def let_main_speak() -> None:
    """Before an error that all processes find, each by itself: torchrun ends them when one has ended."""
    if not is_main():
        time.sleep(GRACE_S)


def world_size() -> int:
    """How many processes there are; who does not use torch does not load it for this."""
    if "torch.distributed" not in sys.modules:
        return 1
    from torch import distributed

    joined = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if joined else 1


def rank() -> int:
    """Which of them this is, from 0."""
    if world_size() == 1:
        return 0
    from torch import distributed

    return distributed.get_rank()


def local_rank() -> int:
    """Which of those on this machine this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that ``torchrun`` has started, as long as the context (or the function) lasts.

    Raises:
        StoppedElsewhere: this process failed, but not first: another one says why.
    """
    if launched() == 1 or world_size() > 1:
        yield
        return
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    store, own_rank, all_of_them = next(iter(rendezvous("env://")))
    # Rows are put together on the CPU, gradients where they are.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=own_rank, world_size=all_of_them)
    try:
        yield
        barrier()
    except StoppedElsewhere:
        _let_it_end()
        raise
    except Interrupted:  # the others stop at the same update, or are told by this that one has ended
        store.add("failed", 1)
        raise
    except BaseException as error:
        if store.add("failed", 1) > 1:
            _let_it_end()
            raise StoppedElsewhere from error
        raise
    finally:
        distributed.destroy_process_group()


def _let_it_end() -> None:
    """The process that failed says why; as soon as it has ended torchrun ends this one with a signal."""
    with contextlib.suppress(Interrupted):
        time.sleep(GRACE_S)


def shard(rows: Any, unit: int = 1) -> Any:
    """This process's share of a tensor or sequence of rows; every ``unit`` of them stays together.

    Every n-th, so that of rows in order of length each process has long and short ones.
    """
    if world_size() == 1:
        return rows
    if unit == 1:
        return rows[rank() :: world_size()]
    return rows.reshape(-1, unit)[rank() :: world_size()].flatten()


def all_reduce(tensor: "torch.Tensor") -> "torch.Tensor":
    """The sum over all processes, in place."""
    if world_size() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
    return tensor


def from_main(value: T) -> T:
    """What the first process has; the same in all of them."""
    return all_gather(value)[0]


def all_gather(value: T) -> list[T]:
    """What each process has, in the order of their ranks; the same list in all of them."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def gather_rows(own: Sequence[T]) -> list[T]:
    """All rows in their order, where each process has one entry for each row of ``shard``."""
    parts = all_gather(list(own))
    rows: list[Any] = [None] * sum(map(len, parts))
    for first, part in enumerate(parts):
        rows[first :: len(parts)] = part
    return rows


def all_reduce_gradients(optimizer: "torch.optim.Optimizer") -> None:
    """Sums the gradients of an optimiser's parameters over all processes. A parameter that had a gradient
    nowhere still has none: a gradient of 0 would let weight decay act."""
    if world_size() == 1:
        return
    import torch

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    flat = all_reduce(torch.cat([has.to(parts[0].device), *parts]))
    has, *sums = flat.split([len(parameters), *map(len, parts)])
    for parameter, there, total in zip(parameters, has.tolist(), sums, strict=True):
        parameter.grad = total.view_as(parameter) if there else None


def barrier() -> None:
    """Until all processes are here."""
    all_gather(None)


@contextlib.contextmanager
def sync_errors() -> Iterator[None]:
    """For work in which nothing is put together: where it fails in one process, all of them stop after it.

    Raises:
        StoppedElsewhere: it failed in another one.
    """
    if world_size() == 1:
        yield
        return
    try:
        yield
    except BaseException:
        all_gather(False)
        raise
    if not all(all_gather(True)):
        raise StoppedElsewhere


def main_writes(function: Callable[P, None]) -> Callable[P, None]:
    """A function that writes files: the first process calls it when all have read what was there before, and
    the others wait for it.

    Raises:
        RuntimeError: one is called inside another. The first process would wait there for the others, which
            wait for its end; a single process refuses it too, so that it is found where there is only one.
    """

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> None:
        if _writing.get():
            raise RuntimeError(f"{function.__qualname__} is called inside another function of main_writes")
        barrier()
        with sync_errors():
            if rank() == 0:
                token = _writing.set(True)
                try:
                    function(*args, **options)
                finally:
                    _writing.reset(token)

    return call


@main_writes
def write(work: Callable[[], None]) -> None:
    """Files that the first process writes (``main_writes``), where what does it is no function of its own."""
    work()
