"""AdamW and its learning-rate schedule, as every stage uses them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from preferl.models.storage import require_bitsandbytes
from preferl.options.shared import OptimOptions
from preferl.runs.errors import DivergedError, UsageError


def adamw(
    parameters: Iterable[torch.nn.Parameter],
    options: OptimOptions,
    learning_rate: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, its moments in float32 or, with ``optim`` ``adamw_8bit``, in eight
    bits.

    Raises:
        UsageError: ``optim`` is unknown, or a weight is of fewer bits than an update needs.
    """
    trained = [p for p in parameters if p.requires_grad]
    narrow = {p.dtype for p in trained} - {torch.float32, torch.float64}
    if narrow:
        # 1 + 1e-3 is 1 in bfloat16: updates of a usual size would vanish without a word.
        raise UsageError(
            f"weights of {', '.join(str(kind).removeprefix('torch.') for kind in narrow)} cannot be trained: "
            f"AdamW's updates are smaller than what such numbers tell apart. Load the model in float32, or "
            f"train LoRA weights on it"
        )
    settings: dict[str, Any] = {
        "lr": options.learning_rate if learning_rate is None else learning_rate,
        "betas": (0.9, options.adam_beta2),
        "eps": options.adam_epsilon,
        "weight_decay": options.weight_decay,
    }
    check_optim(options.optim)
    if options.optim == "adamw":
        return torch.optim.AdamW(trained, fused=True, **settings)
    import bitsandbytes

    on_gpu = any(p.device.type == "cuda" for p in trained)
    kind = bitsandbytes.optim.PagedAdamW8bit if on_gpu else bitsandbytes.optim.AdamW8bit
    return kind(trained, **settings)


def check_optim(name: str) -> None:
    """Before anything is loaded.

    Raises:
        UsageError: there is no such optimiser, or it needs a package that is not installed.
    """
    if name not in ("adamw", "adamw_8bit"):
        raise UsageError(f"optim '{name}' is unknown; use adamw or adamw_8bit")
    if name == "adamw_8bit":
        require_bitsandbytes(f"optim {name}")


def schedule(
    optimizer: torch.optim.Optimizer, options: OptimOptions, total_updates: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then cosine or linear decay to ``lr_end_factor``, or constant.

    Raises:
        UsageError: ``lr_scheduler_type`` is none of these.
    """
    kind, end = options.lr_scheduler_type, options.lr_end_factor
    if kind not in ("cosine", "linear", "constant"):
        raise UsageError(f"lr_scheduler_type '{kind}' is unknown; use cosine, linear or constant")
    warmup = _warmup(options.warmup_ratio, total_updates)

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / (warmup + 1)
        done = min((update - warmup) / max(total_updates - warmup, 1), 1.0)
        if kind == "cosine":
            return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))
        return end + (1 - end) * (1 - done) if kind == "linear" else 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def not_longer(before: tuple[str, float], after: tuple[str, float]) -> str | None:
    """Why one length of a run (an option, and its value) is no longer than another; None where it is."""
    if before[0] != after[0]:
        return f"the length was given by {before[0]} ({before[1]}), and has to be by the same option again"
    if after[1] < before[1]:
        return f"{after[0]} can only grow"
    return None


def other_rates(options: Mapping[str, Any], before: int | None, after: int | None) -> str | None:
    """Why the updates of a longer run would have had other learning rates than those of a shorter one; None
    where they would not.

    Args:
        options: those of ``OptimOptions``, the same in both.
        before: updates of the shorter run; None where that depends on the data.
        after: of the longer one.
    """
    kind, share = options["lr_scheduler_type"], options["warmup_ratio"]
    if kind != "constant":
        return (
            f"lr_scheduler_type {kind} ends where the run ends, so every update so far would have had "
            f"another learning rate (only lr_scheduler_type constant can be extended)"
        )
    known = before is not None and after is not None
    if share and not (known and _warmup(share, before) == _warmup(share, after)):
        return (
            f"warmup_ratio {share} is a share of all updates, so the warm-up would have been another (only "
            f"warmup_ratio 0 can be extended)"
        )
    return None


def _warmup(share: float, updates: int) -> int:
    return round(share * updates)


def clip_and_step(optimizer: torch.optim.Optimizer, max_grad_norm: float, where: str) -> float:
    """Clips the gradient, steps, and clears it; returns the norm before clipping.

    Raises:
        DivergedError: the gradient is not finite; the weights are left as they were.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not math.isfinite(norm):
        raise DivergedError(
            f"{where}: the gradient's norm is {norm}; stopped before the update. "
            f"Lower the learning rate, or look at the data of this step"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
