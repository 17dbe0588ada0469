"""The tokens that end a response and fill a row: found or made, the same in every model of a run."""

import re
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from preferl.data.tokens import coder_of

PAD, EOS = "<|pad|>", "<|eos|>"


def ensure_eos_token(tokenizer: Any, model: PreTrainedModel) -> None:
    """Gives a tokenizer without EOS one: the first EOS id of the model, else what ends a turn in its chat
    template, else SEP (tokenizers of BERT's kind), else a new token."""
    if tokenizer.eos_token_id is not None:
        return
    token = next(iter(tokenizer.convert_ids_to_tokens(eos_ids_of(model, tokenizer))), None)
    token = token or tokenizer.convert_ids_to_tokens(coder_of(tokenizer).end_id or []) or tokenizer.sep_token
    tokenizer.add_special_tokens({"eos_token": token or EOS})
    model._preferl_notes = [  # type: ignore[attr-defined]
        *getattr(model, "_preferl_notes", []),
        f"the tokenizer names no EOS token: responses end with {tokenizer.eos_token}"
        + ("" if token else ", which is new and has to be learnt"),
    ]


def eos_ids_of(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """The EOS ids of a model's generation settings that the tokenizer has."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return []
    found = settings.eos_token_id
    ids = [] if found is None else [found] if isinstance(found, int) else [int(i) for i in found]
    known = tokenizer.added_tokens_decoder
    # Without a file of such settings they are those of the configuration's class, and may be of no token that
    # ends anything: an ordinary token is believed only from a file.
    guessed = getattr(settings, "_from_model_config", False)
    return [i for i in ids if i in known or (i < len(tokenizer) and not guessed)]


def stop_ids(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """The tokens that end a response: the tokenizer's EOS, those of the model's generation settings, and the
    one with which the chat template ends an assistant's turn."""
    found = [tokenizer.eos_token_id, *eos_ids_of(model, tokenizer), coder_of(tokenizer).end_id]
    return list(dict.fromkeys(found))


def ids_without_text(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Rows of the model's output that are no token of the tokenizer: vocabularies are padded to round
    numbers."""
    output = model.get_output_embeddings()
    rows = model.config.get_text_config().vocab_size if output is None else output.weight.shape[0]
    return sorted(set(range(rows)) - set(tokenizer.get_vocab().values()))


def mend_generation_settings(model: PreTrainedModel) -> None:
    """Removes from a model's generation settings what transformers refuses to write: sampling settings beside
    ``do_sample: false``, which have no effect. A model that cannot be saved is not worth training."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    dropped: list[str] = []
    plain = GenerationConfig()
    while (reason := _refused(settings)) is not None:
        names = [name for name in re.findall(r"`(\w+)`", reason) if name in vars(settings)]
        name = next((n for n in names if getattr(settings, n) != getattr(plain, n, None)), None)
        if name is None:  # nothing that could be put right alone
            model.generation_config = GenerationConfig(
                **{key: getattr(settings, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
            )
            dropped = ["all settings but the ids of special tokens"]
            break
        dropped.append(f"{name} {getattr(settings, name)}")
        setattr(settings, name, getattr(plain, name, None))
    if dropped:
        model._preferl_notes = [  # type: ignore[attr-defined]
            *getattr(model, "_preferl_notes", []),
            f"generation_config.json contradicts itself, and transformers would not write it: left out "
            f"{', '.join(dropped)}; sampling here has options of its own",
        ]


def _refused(settings: GenerationConfig) -> str | None:
    """Why transformers would not write generation settings; None where it would."""
    try:
        settings.validate(strict=True)
    except ValueError as error:
        return str(error)
    return None


def ensure_pad_token(tokenizer: Any, model: PreTrainedModel) -> None:
    """Gives the tokenizer a pad token that is not EOS and the model a row for it; the model's generation
    settings name pad and every EOS id, and can be saved.

    With pad = EOS a model never learns to stop, and sequence-classification heads read the token before. The
    token is one that the tokenizer keeps in reserve, else a new one, the same in every model of a run.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": reserved_token(tokenizer) or PAD})
    make_room(model, len(tokenizer))
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = tokenizer.pad_token_id  # a nested text configuration has one of its own
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        stops = stop_ids(model, tokenizer)
        model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
        mend_generation_settings(model)


# Names of tokens that no text has: those of padding itself first, then those kept in reserve.
RESERVE = (
    r"[<\[]\|?(?!.*(image|vision|video|audio))([a-z_]*_)?pad(ding)?(_id)?\|?[>\]]",
    r"[<\[].*(reserved|unused|extra_).*[>\]]",
)


def reserved_token(tokenizer: Any) -> str | None:
    """A token that is kept in reserve, or for padding, and used for nothing: by its name, among the special
    and the added ones; None where there is none."""
    known = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    used = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
    template = str(tokenizer.chat_template)
    free = [name for name in known if name not in used and name not in template]
    for kind in RESERVE:
        found = next((name for name in free if re.fullmatch(kind, name, re.IGNORECASE)), None)
        if found is not None:
            return found
    return None


ROWS = 64  # what sizes of vocabularies are often multiples of, for the sake of matrix products


@torch.no_grad()
def make_room(model: PreTrainedModel, tokens: int) -> None:
    """Gives a model rows for so many tokens. A size that is a multiple of 64 becomes another such; new rows
    are the mean of the others, the same whenever and in whatever model they are made. Tied embeddings stay
    tied."""
    rows = model.get_input_embeddings().weight.shape[0]
    if tokens <= rows:
        return
    ends = model.get_input_embeddings, model.get_output_embeddings
    kinds = [type(end()) for end in ends]
    trains = next(model.parameters()).requires_grad
    multiple = None if rows % ROWS else ROWS
    model.resize_token_embeddings(tokens, pad_to_multiple_of=multiple, mean_resizing=False)
    for end, kind in zip(ends, kinds, strict=True):
        layer = end()
        if layer is not None:
            layer.__class__ = kind  # a new layer is a plain one
            layer.weight[rows:] = layer.weight[:rows].float().mean(0).to(layer.weight.dtype)
            layer.requires_grad_(trains)
