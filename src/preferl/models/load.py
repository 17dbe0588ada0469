"""Language models in and out: any causal LM that transformers loads, from safetensors only.

A model is data and never a program: code that it brings is not run (``trust_remote_code`` False in every
call, or the library asks on the terminal), what cannot fit this machine is not built, and weights that are no
numbers are not used.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging

from preferl.data.records import Prompt
from preferl.data.sources import Source
from preferl.data.templates import KWARGS, PLAIN_TEMPLATE, RESERVED
from preferl.data.tokens import coder_of
from preferl.models.adapters import CONFIG as ADAPTER_FILE
from preferl.models.adapters import Adapter, find_adapter, merge
from preferl.models.hub import check_hub
from preferl.models.special_tokens import ensure_eos_token, ensure_pad_token, ids_without_text, stop_ids
from preferl.models.storage import (
    Weights,
    compute_alike,
    keep_stored,
    narrow_dtype,
    quantisation,
    stored_dtype,
)
from preferl.models.tiny import CHAT_TEMPLATE
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.files import whole_directory
from preferl.runs.memory import refuse_too_large
from preferl.runs.objects import object_of
from preferl.runs.policies import refuse_scorer
from preferl.runs.progress import say

CPU = torch.device("cpu")
SAME = 1e-5  # of the largest number: what rounding may do to two passes of one shape
AS_DIALOGUE = "as_dialogue"  # of a tokenizer's configuration: what was asked for when its model was trained


def model_directory(name_or_path: str) -> str:
    """A stage's directory stands for the model in it, the name of an object for where it is written; anything
    else is taken as it is."""
    name_or_path = object_of(name_or_path) or name_or_path
    inside = Path(name_or_path) / "model"
    return str(inside) if (inside / "config.json").exists() else str(name_or_path)


def source_of(name_or_path: str) -> tuple[str, dict[str, str]]:
    """Where transformers reads a model, and what else it is told: the name of a GGUF file, where a model is
    given as such, or by a folder that holds one and nothing else of a model.

    Raises:
        UsageError: the package that reads such files is not installed.
    """
    source = Path(model_directory(name_or_path))
    file = source if source.suffix == ".gguf" and source.is_file() else None
    if source.is_dir() and not (source / "config.json").exists():
        files = sorted(source.glob("*.gguf"))
        if len(files) > 1:
            raise UsageError(
                f"'{name_or_path}' holds {len(files)} GGUF files ({', '.join(f.name for f in files[:4])}); "
                f"give the path of one of them"
            )
        file = files[0] if files else None
    if file is None:
        return str(source), {}
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(
            f"'{file}' is a GGUF file, which needs the package gguf to be read: pip install preferl[gguf]"
        )
    return str(file.parent), {"gguf_file": file.name}


def refuse_absent(*names: str | None) -> None:
    """Refuses models that are neither here nor on the Hub, before data is read or another model loaded.

    Raises:
        UsageError: the first of them.
    """
    for name in names:
        if name is not None and object_of(name) is None:
            check_hub(model_directory(name))


def load_tokenizer(name_or_path: str, chat_template_kwargs: Mapping[str, Any] | None = None) -> Any:
    """The tokenizer of a model directory or Hub name; one without a chat template gets a plain one.

    ``chat_template_kwargs`` are what its template is given besides messages, from now on and in every
    directory that it is saved to; None for what is kept with it.

    Raises:
        UsageError: there is no such tokenizer, or an argument is none of a template.
    """
    source, gguf = source_of(name_or_path)
    check_hub(source)
    with named_failures(
        f"no tokenizer could be loaded from '{name_or_path}'",
        "give a directory written by save_pretrained, a stage directory or a Hub name",
    ):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **gguf)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    set_template_kwargs(tokenizer, chat_template_kwargs)
    return tokenizer


def set_template_kwargs(tokenizer: Any, kwargs: Mapping[str, Any] | None) -> None:
    """What a tokenizer's chat template is given besides messages; None leaves it as it is.

    Raises:
        UsageError: an argument is none of a template.
    """
    if kwargs is None:
        return
    taken = sorted(set(kwargs) & set(RESERVED))
    if taken:
        raise UsageError(f"{KWARGS} names {', '.join(taken)}, which preferl itself gives to a template")
    tokenizer.init_kwargs[KWARGS] = dict(kwargs)


def load_pretrained(
    auto_class: Any,
    name_or_path: str,
    new_head: bool = False,
    weights: Weights = Weights.TRAINED,
    device: torch.device = CPU,
    **options: Any,
) -> tuple[Any, list[str]]:
    """``from_pretrained`` from safetensors; returns the model and the weights it had to make up.

    Args:
        auto_class: of transformers.
        name_or_path: what is loaded.
        new_head: whether what stands on the trunk, and an encoder's pooler in it, may be new.
        weights: how they are kept.
        device: where weights are quantised; all others are loaded to the CPU.
        **options: for ``from_pretrained``.

    Raises:
        UsageError: nothing could be loaded, it cannot fit this machine, or other weights are missing and
            would silently be random.
        DivergedError: a weight is NaN or infinite.
    """
    source, gguf = source_of(name_or_path)
    with (
        named_failures(
            f"no model could be loaded from '{name_or_path}'",
            "give a directory written by save_pretrained (safetensors), a stage directory or a Hub name",
        ),
        quiet_transformers(),  # what its reports warn about is checked below
    ):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **gguf)
        refuse_other_kinds(auto_class, config, name_or_path)
        refuse_more_layers_than_weights(config, Path(source))
        if weights is Weights.TRAINED:
            refuse_to_train_quantised(config, name_or_path)
        dtype = torch.float32 if weights is Weights.TRAINED else stored_dtype(source)
        size = 0.5 if weights is Weights.IN_4BIT else dtype.itemsize
        refuse_too_large(size * least_parameters(config), f"'{name_or_path}'")
        if weights is Weights.IN_4BIT and not hasattr(config, "quantization_config"):
            options |= quantisation(device)
        model, info = auto_class.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
            **gguf,
            **options,
        )
        if gguf:
            forget_quantisation(model)
    missing = sorted(info["missing_keys"])
    stray = [key for key in missing if not (new_head and is_on_trunk(model, key))]
    if stray:
        raise UsageError(
            f"'{name_or_path}' is no {auto_class.__name__.removeprefix('AutoModelFor')} model: "
            f"{', '.join(stray[:3])} {'is' if len(stray) == 1 else 'are'} not in its weights and would be "
            f"random; give the directory of the right kind of model"
        )
    refuse_nonfinite(model, name_or_path)
    compute_alike(model)
    if weights is not Weights.TRAINED:
        # The vocabulary's layer is as large as the embeddings; what stands on other trunks is small.
        writes = model.get_output_embeddings() is not None
        keep_stored(model, wide=lambda name: not writes and is_on_trunk(model, f"{name}."))
    return model, missing


def forget_quantisation(model: Any) -> None:
    """transformers reads GGUF files into ordinary weights and takes the model for quantised all the same, so
    that it could be neither trained nor saved."""
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def refuse_to_train_quantised(config: Any, name: str) -> None:
    """Raises:
    UsageError: a model is stored quantised, and its weights cannot be trained.
    """
    method = getattr(config, "quantization_config", None)
    if method is not None:
        kind = method.get("quant_method") if isinstance(method, dict) else method.quant_method
        raise UsageError(
            f"'{name}' is stored quantised ({getattr(kind, 'value', kind)}), and quantised weights cannot be "
            f"trained: train LoRA weights on them (--lora_r 16), or take the model that was quantised"
        )


WHAT_THEY_DO = {
    "AutoModelForCausalLM": "writes text token by token, as policies and judges do",
    "AutoModelForSequenceClassification": "scores a text, as reward models do",
}


def refuse_other_kinds(auto_class: Any, config: Any, name: str) -> None:
    """Raises:
    UsageError: transformers knows the family of a model, and has no class of this kind for it.
    """
    if type(config) not in auto_class._model_mapping and not hasattr(config, "auto_map"):
        kind = WHAT_THEY_DO.get(auto_class.__name__, f"is loaded by {auto_class.__name__}")
        raise UsageError(
            f"'{name}' is of the family {config.model_type}, of which transformers has no class that {kind}; "
            f"take a model of another family"
        )


def is_on_trunk(model: PreTrainedModel, key: str) -> bool:
    """Whether a parameter or module belongs to what a task puts on a trunk: any layer outside of it, and the
    pooler that encoders have in it, which their language models lack."""
    outside = model.base_model is not model and not key.startswith(f"{model.base_model_prefix}.")
    return outside or "pooler" in key.split(".")


@contextlib.contextmanager
def named_failures(what: str, fix: str) -> Iterator[None]:
    """Whatever a library finds wrong with a model's files becomes one sentence about them.

    Raises:
        UsageError: the body failed, for want of memory aside.
    """
    try:
        yield
    except (UsageError, DivergedError, MemoryError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UsageError(
                f"{what}: it brings code of its own (auto_map in its configuration), and preferl runs no "
                f"code that a model brings; take a model of an architecture that transformers has"
            ) from error
        if "ignore_mismatched_sizes" in str(error):
            raise UsageError(f"{what}: its weights have other sizes than its configuration; {fix}") from error
        raise UsageError(f"{what}: {type(error).__name__}: {_first_line(error)}; {fix}") from error


def refuse_more_layers_than_weights(config: Any, source: Path) -> None:
    """A configuration may name any number of layers, and building them takes for ever; weights are there.

    Raises:
        UsageError: it names more layers than there are tensors in the files beside it.
    """
    files = list(source.glob("*.safetensors"))
    if not files:  # a Hub name: transformers says what is missing
        return
    count = 0
    for file in files:
        with safe_open(file, framework="pt") as weights:
            count += len(weights.keys())
    layers = sizes_of(config)[0]
    if layers > count:
        raise UsageError(
            f"the configuration of '{source}' names {layers:,} layers, and its weights are {count:,} "
            f"tensors; one of them is of another model"
        )


def least_parameters(config: Any) -> float:
    """Parameters that a transformer of this configuration has at the very least: one square matrix in every
    layer, and the embeddings."""
    layers, width, vocabulary = sizes_of(config)
    return layers * width**2 + vocabulary * width


def sizes_of(config: Any) -> tuple[int, int, int]:
    """Layers, width and vocabulary; 0 where a configuration has none, or something that is no number."""
    text = config.get_text_config()
    found = [getattr(text, name, 0) for name in ("num_hidden_layers", "hidden_size", "vocab_size")]
    layers, width, vocabulary = (size if isinstance(size, int) else 0 for size in found)
    return layers, width, vocabulary


def refuse_nonfinite(model: torch.nn.Module, name: str) -> None:
    """Weights that are no numbers make every result that comes of them none either.

    Raises:
        DivergedError: a weight is NaN or infinite; names the model and the tensor.
    """
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            # The extremes pass NaN on, and take a fifteenth of the time of asking every weight.
            ends = torch.stack(torch.aminmax(tensor))
            if not bool(ends.isfinite().all()):
                raise DivergedError(
                    f"'{name}' has weights that are not finite numbers ({key} has {_worst(ends)}): its "
                    f"training diverged, or the file is damaged; take another model or an earlier checkpoint"
                )


def _worst(ends: torch.Tensor) -> str:
    return "NaN" if bool(ends.isnan().any()) else "infinity"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers draws a bar for every file of a second, and reports; not as long as the context lasts."""
    verbosity, drawn = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if drawn:
            logging.enable_progress_bar()


def load_policy(
    name_or_path: str,
    device: torch.device,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    weights: Weights = Weights.FROZEN,
) -> tuple[PreTrainedModel, Any]:
    """A causal language model, in evaluation mode (no dropout anywhere), and its tokenizer.

    The tokenizer has an EOS token, and a pad token other than EOS (``ensure_pad_token``). A directory of LoRA
    weights stands for its base with them merged in. ``weights``: how they are kept.
    """
    model, tokenizer = _language_model(name_or_path, chat_template_kwargs, weights, device)
    refuse_sight_of_the_future(model.eval(), name_or_path)
    ensure_eos_token(tokenizer, model)
    ensure_pad_token(tokenizer, model)
    return model.to(device).eval(), tokenizer


@torch.no_grad()
def refuse_sight_of_the_future(model: PreTrainedModel, name: str) -> None:
    """An encoder that transformers also loads as a language model would learn each token from the token
    itself. Tried on two short rows that differ in their last token.

    Raises:
        UsageError: what the model says of earlier tokens differs too.
    """
    size = model.config.get_text_config().vocab_size
    ids_2S = torch.arange(12).repeat(2, 1) % size
    ids_2S[1, -1] += 1 if ids_2S[1, -1] + 1 < size else -1
    fix = "its family in transformers cannot be run with this configuration; look at config.json"
    with named_failures(f"the model '{name}' fails on {ids_2S.shape[1]} tokens", fix):
        logits_2SV = model(input_ids=ids_2S, attention_mask=torch.ones_like(ids_2S)).logits[:, :-1].float()
    difference, largest = (logits_2SV[0] - logits_2SV[1]).abs().max(), logits_2SV.abs().max().clamp(min=1)
    if difference > SAME * largest:
        raise UsageError(
            f"'{name}' ({model.config.model_type}) reads a token together with those after it, as encoders "
            f"do, and cannot write a response from left to right; take a causal language model. A reward "
            f"model can start from it: preferl reward --model_name_or_path {name}"
        )


def _language_model(
    name_or_path: str,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    weights: Weights = Weights.TRAINED,
    device: torch.device = CPU,
) -> tuple[PreTrainedModel, Any]:
    adapter = find_adapter(model_directory(name_or_path))
    if adapter is not None:
        refuse_to_quantise(adapter, weights)
        model, tokenizer = load_adapted(adapter, _language_model, chat_template_kwargs)
        return model.requires_grad_(weights is Weights.TRAINED), tokenizer
    tokenizer = load_tokenizer(name_or_path, chat_template_kwargs)
    auto_class = _language_model_class(name_or_path)
    return load_pretrained(auto_class, name_or_path, weights=weights, device=device)[0], tokenizer


def refuse_to_quantise(adapter: Adapter, weights: Weights) -> None:
    """Raises:
    UsageError: what is to be quantised are adapter weights, whose sum with their base is stored nowhere.
    """
    if weights is Weights.IN_4BIT:
        raise UsageError(
            f"load_in_4bit: '{adapter.source}' holds adapter weights of '{adapter.base}', which are added to "
            f"it before training goes on, so that there is no stored model to quantise; start from the "
            f"merged one (preferl writes it as model/ beside adapter/)"
        )


def _language_model_class(name_or_path: str) -> Any:
    """Of a family that also reads pictures transformers may have no class for text alone."""
    config = known_configuration(name_or_path)
    refuse_scorer(name_or_path, getattr(config, "architectures", None) or [])
    kind = type(config)
    sees_too = kind not in MODEL_FOR_CAUSAL_LM_MAPPING and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if sees_too else AutoModelForCausalLM


def known_configuration(name_or_path: str) -> Any:
    """The configuration of a model; None where it cannot be read: whoever loads it says what is wrong."""
    try:
        source, gguf = source_of(name_or_path)
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **gguf)
    except (OSError, ValueError, UsageError):
        return None


def load_adapted(
    adapter: Adapter,
    load_base: Callable[[str], tuple[PreTrainedModel, Any]],
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, Any]:
    """The base of an adapter with its weights merged in, and the tokenizer: the adapter's own where it brings
    one.

    Raises:
        UsageError: the base, which is named, or the adapter cannot be loaded.
        DivergedError: a weight is NaN or infinite.
    """
    try:
        model, tokenizer = load_base(adapter.base)
    except UsageError as error:
        raise UsageError(
            f"'{adapter.source}' holds adapter weights (LoRA) of the base '{adapter.base}', which cannot be "
            f"loaded: {error}; bring it there, or change base_model_name_or_path in "
            f"{adapter.directory / ADAPTER_FILE}"
        ) from error
    if adapter.has_tokenizer:
        tokenizer = load_tokenizer(str(adapter.directory))
    set_template_kwargs(tokenizer, chat_template_kwargs)
    with named_failures(
        f"the adapter weights of '{adapter.source}' could not be merged into their base '{adapter.base}'",
        "give a directory that peft's save_pretrained or preferl's lora_r wrote, and its own base",
    ):
        model = merge(model, adapter)
    refuse_nonfinite(model, adapter.source)
    model.config.name_or_path = model.name_or_path = adapter.source
    say(f"'{adapter.source}' holds adapter weights (LoRA), here merged into their base '{adapter.base}'")
    return model, tokenizer


def notes_of(model: PreTrainedModel, tokenizer: Any) -> list[str]:
    """What was mended in a policy or is unusual about it, in sentences."""
    notes = list(getattr(model, "_preferl_notes", []))
    stops = stop_ids(model, tokenizer)
    if len(stops) > 1:
        notes.append(f"responses end with any of {', '.join(tokenizer.convert_ids_to_tokens(stops))}")
    blank = ids_without_text(model, tokenizer)
    if blank:
        notes.append(
            f"{len(blank):,} of the model's ids ({blank[0]} to {blank[-1]}) stand for no text in the "
            f"tokenizer's vocabulary: they are never drawn"
        )
    return notes


def reads_dialogue(tokenizer: Any) -> bool:
    """Whether a plain-text prompt is a user's turn to a model: it has a chat template of its own, neither
    ours for tokenizers without one nor that of the small models which are made here (both say nothing of what
    a model was trained on). What was asked for when it was trained stands with the model."""
    known = tokenizer.init_kwargs.get(AS_DIALOGUE)
    if known is not None:
        return bool(known)
    return tokenizer.chat_template not in (None, PLAIN_TEMPLATE, CHAT_TEMPLATE)


def read_by(source: Source, tokenizers: Sequence[Any], others: Sequence[Any] = ()) -> Source:
    """A data set as models read it (``Source.read_by``), and a note where a template takes no system message.

    Args:
        source: what was read.
        tokenizers: of the models that decide what a plain-text prompt is.
        others: of models that read the prompts too.

    Raises:
        DataError: no row is left.
    """
    templates = [coder_of(tokenizer).template for tokenizer in (*tokenizers, *others)]
    instruct = bool(tokenizers) and all(map(reads_dialogue, tokenizers))

    def unread(prompt: Prompt) -> str | None:
        return next(filter(None, (template.unread(prompt) for template in templates)), None)

    found = source.read_by(instruct, unread)
    if source.asked:  # later stages take it from the model
        for tokenizer in tokenizers:
            tokenizer.init_kwargs[AS_DIALOGUE] = source.dialogue
    asked = [record.prompt for part in found.parts.values() for record in part.prompts]
    system = sum(any(m["role"] == "system" for m in prompt) for prompt in asked if isinstance(prompt, list))
    if system and not all(template.takes_system for template in templates):
        note = (
            f"{system:,} prompts have a system message, which the chat template does not take: its text is "
            f"put in front of the first user's"
        )
        found = dataclasses.replace(found, notes=[*found.notes, note])
    return found


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Turns gradients off, for references and reward models."""
    return model.requires_grad_(False).eval()


def save(model: PreTrainedModel, tokenizer: Any, path: Path) -> None:
    """Writes safetensors, configuration, tokenizer and chat template; all of them or none."""
    narrow = narrow_dtype(model)
    more: dict[str, Any] = {}
    if narrow is not None:  # all of it as it was stored
        state = model.state_dict()
        more["state_dict"] = {n: t.to(narrow) if t.is_floating_point() else t for n, t in state.items()}
    with whole_directory(path) as directory:
        with quiet_transformers():
            model.save_pretrained(directory, **more)
        tokenizer.save_pretrained(directory)


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names and bytes of all weights: equal hashes mean that nothing moved."""
    return tensors_hash(model.state_dict())


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        digest.update(flat.cpu().numpy().tobytes())
    return digest.hexdigest()


def parameter_count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def fitting_length(max_length: int, *models: PreTrainedModel) -> int:
    """Most tokens of a prompt and a response: ``max_length``, or the fewest positions of some models."""
    limits = [max_length, *map(max_positions, models)]
    return min(limit for limit in limits if limit is not None)


def max_positions(model: Any) -> int | None:
    """Longest sequence that the model has positions for; None where it does not say.

    RoBERTa and its like number positions from behind the padding's on: their table has two rows more than
    they can read tokens.
    """
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    stated = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if stated is None or stated < 1:  # XLNet says -1 for any number
        return None
    if not isinstance(model, torch.nn.Module):
        return stated
    for name, module in model.named_modules():
        table = module if name.endswith("position_embeddings") else None
        if isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
            return min(stated, table.num_embeddings - table.padding_idx - 1)
    return stated


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
