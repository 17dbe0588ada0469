"""Weights in memory: frozen ones in the dtype that they came in, and once for all models that have them.

Trained weights are float32: an update of AdamW is far smaller than what bfloat16 tells apart. Frozen ones
never change, so that those of a checkpoint in bfloat16 stay bfloat16 and take half the memory. They are cast
where they are used, layer by layer, and every product is computed as it would be with float32 weights of
the same values: policy and reference agree bit for bit, whichever of them is trained.
"""

import copy
import importlib.util
import logging
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from safetensors import safe_open
from torch.nn import functional as F

from preferl.models.hub import weight_files
from preferl.runs.errors import UsageError

NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}  # as safetensors calls them


class Weights(Enum):
    """How a model's weights are kept in memory, by what is to become of them."""

    TRAINED = "float32, to be trained"
    FROZEN = "as they are stored"
    IN_4BIT = "quantised to four bits (NF4, Dettmers et al. 2023)"


# --------------------------------------------------------------------------------------- stored and computed


def stored_dtype(source: str) -> torch.dtype:
    """The dtype in which all floating-point weights of a directory or Hub name are stored; float32 where they
    are of several, or of a wider one, or where there is no such file.

    The files decide: what a configuration says about them may be out of date.
    """
    kinds: set[str] = set()
    for file in weight_files(source):
        with safe_open(file, framework="pt") as weights:
            kinds |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    floating = {kind for kind in kinds if "F" in kind}
    return NARROW.get(next(iter(floating)), torch.float32) if len(floating) == 1 else torch.float32


class StoredLinear(torch.nn.Linear):
    """A frozen linear layer that computes in the dtype of its input, whichever it is stored in."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled(input.device.type):  # it casts by itself
            return super().forward(input)
        return _Product.apply(input, self.weight, self.bias)  # type: ignore[no-any-return]


class StoredEmbedding(torch.nn.Embedding):
    """A frozen embedding that gives float32, whichever dtype it is stored in."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).float()


class _Product(torch.autograd.Function):
    """x W^T + b with a gradient for x alone. What is kept for it are the weights as they are stored: those
    that were cast for one product are gone after it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight.to(gradients[0].dtype), None, None


STORED: dict[type, type] = {torch.nn.Linear: StoredLinear, torch.nn.Embedding: StoredEmbedding}


def keep_stored(model: Any, wide: Callable[[str], bool] = lambda name: False) -> None:
    """Lets a frozen model with narrow weights compute in float32, in place: the weights of its linear layers
    and embeddings stay as they are stored, all else (norms, biases, layers of other kinds) becomes float32.
    All becomes float32 in families that cast what they compute to the dtype of a weight; that is tried.

    Args:
        model: the model.
        wide: whether a layer of this name becomes float32 too.
    """
    users: dict[int, list[torch.nn.Module]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(module)
        if type(module) in STORED and module.weight.dtype in NARROW.values() and not wide(name):
            module.__class__ = STORED[type(module)]
    # A weight that is tied stays narrow where all layers that use it can read it so.
    stay = {key for key, modules in users.items() if all(_is_stored(module) for module in modules)}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or (name == "weight" and id(parameter) in stay):
                continue
            if parameter.is_floating_point():  # quantised ones are bytes
                parameter.data = parameter.data.float()
    _widen_buffers(model)
    if narrow_dtype(model) is not None and _casts_to_weights(model):
        as_trained(model)
    model.requires_grad_(False)


def _widen_buffers(model: Any) -> None:
    """Buffers in float32. Those that are in no file were computed from the configuration in the dtype that
    the weights were loaded in, and are computed again."""
    if all(buffer.dtype not in NARROW.values() for buffer in model.buffers()):
        return
    skeleton = _without_weights(model, model.config)
    stored = model.state_dict().keys()
    computed = dict(skeleton.named_buffers())
    for name, buffer in model.named_buffers():
        if buffer.dtype in NARROW.values():
            fresh = buffer if name in stored else computed[name]
            buffer.data = fresh.data.to(buffer.device, torch.float32)


def _without_weights(model: Any, config: Any) -> Any:
    """A model of the same class, whose buffers are computed and whose weights take no memory."""
    from accelerate import init_empty_weights  # it imports whatever optional package there is

    with init_empty_weights(include_buffers=False):
        return type(model)(config)


def _is_stored(module: torch.nn.Module) -> bool:
    return type(module) in STORED.values()


@torch.no_grad()
def _casts_to_weights(model: Any) -> bool:
    """Whether anything in a model is computed in its weights' dtype, and not in float32: tried on some
    tokens."""
    narrow: list[torch.nn.Module] = []

    def look(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and torch.is_tensor(inputs[0]) and inputs[0].dtype in NARROW.values():
            narrow.append(module)

    hooks = [module.register_forward_pre_hook(look) for module in model.modules()]
    size = model.config.get_text_config().vocab_size
    try:
        model(input_ids=torch.arange(8, device=model.device)[None] % size)
    finally:
        for hook in hooks:
            hook.remove()
    return bool(narrow)


def as_trained(model: torch.nn.Module) -> None:
    """Makes a model of plain layers with float32 weights of its own, in place: what training needs."""
    own_weights(model)
    plain = {stored: computed for computed, stored in STORED.items()}
    for module in model.modules():
        module.__class__ = plain.get(type(module), type(module))
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def narrow_dtype(model: torch.nn.Module) -> torch.dtype | None:
    """The dtype in which a model's layers are stored where they compute in another one; None for all
    others."""
    kinds = (module.weight.dtype for module in model.modules() if _is_stored(module))
    return next((kind for kind in kinds if kind in NARROW.values()), None)


# ------------------------------------------------------------------------------------- once for several roles


def twin(model: Any, own: Callable[[str], bool] = lambda name: False) -> Any:
    """The same model again, around the very same weights: modules of its own, parameters in common. Adapters
    that are put on one of the two are not on the other.

    Args:
        model: the model.
        own: whether a parameter of this name is copied.
    """
    shared = [p for name, p in model.named_parameters() if not own(name)] + list(model.buffers())
    # What a quantised layer needs to read its weights is as little a thing of its own.
    shared += [m.quant_state for m in model.modules() if getattr(m, "quant_state", None) is not None]
    return copy.deepcopy(model, {id(part): part for part in shared})


def share_weights(first: torch.nn.Module, other: torch.nn.Module) -> float:
    """Lets another model use the frozen parameters of a first one wherever its own are equal, bit for bit, in
    place.

    Returns:
        The share of the other model's weights that it has in common with the first.
    """
    offered = {id(p): p for p in first.parameters() if not p.requires_grad}
    known: dict[int, torch.nn.Parameter] = {}
    shared = 0
    for parameter in list(other.parameters()):
        alike = (p for p in offered.values() if p.shape == parameter.shape and p.dtype == parameter.dtype)
        found = next((p for p in alike if p is parameter or _equal(p, parameter)), None)
        if found is not None:
            del offered[id(found)]  # each for one: norms often start alike, and are not tied for that
            known[id(parameter)] = found
            shared += parameter.numel()
    for module in other.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in known:
                module._parameters[name] = known[id(parameter)]
    return shared / max(sum(p.numel() for p in other.parameters()), 1)


def _equal(a: torch.nn.Parameter, b: torch.nn.Parameter) -> bool:
    """Whether two parameters of one shape are equal; the first row tells most that are not apart."""
    if not (torch.equal(a[:1], b[:1].to(a.device)) and torch.equal(a, b.to(a.device))):
        return False
    scales = [getattr(getattr(p, "quant_state", None), "absmax", None) for p in (a, b)]
    if scales[0] is None or scales[1] is None:
        return scales[0] is scales[1]
    return torch.equal(scales[0], scales[1].to(scales[0].device))


def same_weights(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models have the same weights by name, whichever dtypes they are kept in."""
    own, others = model.state_dict(), other.state_dict()
    return own.keys() == others.keys() and all(
        own[name].shape == others[name].shape and torch.equal(own[name].float(), others[name].float())
        for name in own
    )


def own_weights(model: torch.nn.Module) -> None:
    """Gives a model weights of its own, in place, which may then be changed: copies of those that it had. A
    weight that nobody else has is freed as soon as it is copied."""
    places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))  # tied ones have several
    for (module, name), *others in places.values():
        old = module._parameters[name]
        assert old is not None
        fresh = torch.nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
        for place, called in ((module, name), *others):
            place._parameters[called] = fresh
        del old


# -------------------------------------------------------------------------------------------------- quantised

# When imported bitsandbytes asks for kernels from the Hub, of a package that is not ours, and logs that there
# are none.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in str(record.msg)
)


def quantisation(device: torch.device) -> dict[str, Any]:
    """What ``from_pretrained`` is given to quantise a model to NF4, its scales quantised too, on a device.

    Raises:
        UsageError: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    require_bitsandbytes("load_in_4bit")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def require_bitsandbytes(option: str) -> None:
    """Raises:
    UsageError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            f"{option} needs the package bitsandbytes, which is not installed: pip install preferl[quant]"
        )


def dequantised(model: Any) -> Any:
    """An ordinary model in float32 with the weights that a quantised one stands for."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    config.dtype = torch.float32
    plain = _without_weights(model, config)
    plain.load_state_dict(model.dequantize().state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain.requires_grad_(False).eval()


def compute_alike(model: torch.nn.Module) -> None:
    """Lets the layers of a quantised model compute the same with and without gradients, in place: on CPUs
    with bfloat16 bitsandbytes has a faster and coarser product for passes without, so that what is sampled
    would not be what is trained."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_quantised(model: Any) -> bool:
    """Whether a model's weights are stored in fewer bits than any floating-point number."""
    return bool(getattr(model, "is_quantized", False))
