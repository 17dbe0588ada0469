"""Reward models with one head an attribute, and the mixtures that make one score of them.

Such a model is an ordinary ``AutoModelForSequenceClassification`` with ``num_labels`` = K, ``id2label`` the
attributes' names and ``problem_type`` ``regression``: column a of its logits, plus ``rating_mean`` from its
configuration where the head has no bias, is the rating that it expects. A mixture is a weight for each
attribute, ``0.7*helpfulness + 0.3*correctness``, one for all prompts. It is kept in ``config.json`` as
``reward_mixture``, or named behind the model: ``runs/rm#0.7*helpfulness+0.3*correctness``.

The score of a mixture is w . logits on the scale of all our rewards: mean 0 and standard deviation 1 on
reference samples, by the logits' ``reference_mean`` m and ``reference_covariance`` C there, which stand in
the configuration too: (w . logits - w . m) / sqrt(w . C w). A mixture of linear heads is a linear head, so
a model that is used as a reward is one with a single label, like any other.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from preferl.models.mean_pooling import MeanPooledRewardModel
from preferl.models.passes import segments
from preferl.runs.errors import UsageError

NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
# A weight, a star, a name; it ends where the next weight begins, since names may hold a minus.
NEXT = rf"(?=[+-]\s*{NUMBER}\s*\*|$)"
TERM = re.compile(rf"\s*(?P<sign>[+-]?)\s*(?P<weight>{NUMBER})\s*\*\s*(?P<name>[^+*]+?)\s*{NEXT}")
MARK = re.compile(r"#(?=\s*[+-]?[\d.])")


def split_mixture(name: str) -> tuple[str, str | None]:
    """A model's name and the mixture written behind it; a directory that is called so has none.

    Example:
        >>> split_mixture("runs/rm#0.7*helpfulness+0.3*correctness")
        ('runs/rm', '0.7*helpfulness+0.3*correctness')
    """
    found = None if Path(name).exists() else MARK.search(name)
    return (name, None) if found is None else (name[: found.start()], name[found.end() :].strip())


def parse_mixture(text: str, attributes: Sequence[str], where: str = "reward_mixture") -> dict[str, float]:
    """The weight of each attribute that a text names.

    Example:
        >>> parse_mixture("0.7*helpfulness + 0.3*correctness - 0.1*verbosity",
        ...               ["helpfulness", "correctness", "verbosity"])
        {'helpfulness': 0.7, 'correctness': 0.3, 'verbosity': -0.1}

    Raises:
        UsageError: it is no weighted sum, names another attribute or one twice, or all weights are 0.
    """
    known = ", ".join(attributes)
    form = f"write weights of the attributes {known}, as {_example(attributes)}"
    weights: dict[str, float] = {}
    place = 0
    while place < len(text):
        term = TERM.match(text, place)
        if term is None or (place and not term["sign"]):
            raise UsageError(f"{where} '{text}' is no weighted sum at '{text[place:].strip()}'; {form}")
        name, weight = term["name"].strip(), float(term["weight"])
        if name not in attributes:
            raise UsageError(f"{where} '{text}' names '{name}', which is none of the attributes; {form}")
        if name in weights:
            raise UsageError(f"{where} '{text}' names '{name}' twice; add up its weights; {form}")
        weights[name] = -weight if term["sign"] == "-" else weight
        place = term.end()
    if not any(weights.values()):
        raise UsageError(f"{where} '{text}' gives every attribute weight 0: that is no reward; {form}")
    return weights


def _example(attributes: Sequence[str]) -> str:
    first, *others = attributes
    return f"0.7*{first} + 0.3*{others[0]}" if others else f"1*{first}"


def mixture_text(weights: Mapping[str, float]) -> str:
    """Weights as they are written: the inverse of ``parse_mixture``."""
    text = ""
    for name, weight in weights.items():
        sign = " - " if weight < 0 else " + "
        text += f"{sign if text else sign.strip() if weight < 0 else ''}{abs(weight):.4g}*{name}"
    return text


def attributes_of(config: Any) -> list[str]:
    """The names of a model's heads in their order; none of a model with one label.

    Args:
        config: a model's configuration.
    """
    count = int(getattr(config, "num_labels", 1) or 1)
    if count < 2:
        return []
    return [str(config.id2label[i]) for i in range(count)]


def name_attributes(config: Any, attributes: Sequence[str]) -> None:
    """Makes a configuration that of a model with one regression head an attribute."""
    config.num_labels = len(attributes)
    config.id2label = dict(enumerate(attributes))
    config.label2id = {name: i for i, name in enumerate(attributes)}
    config.problem_type = "regression"


def vector_of(weights: Mapping[str, float], attributes: Sequence[str]) -> np.ndarray:
    """``weight_K`` in the order of the heads."""
    return np.array([weights.get(name, 0.0) for name in attributes], dtype=np.float64)


def chosen_mixture(config: Any, given: str | None, name: str) -> dict[str, float]:
    """The mixture by which a model is a reward: the one behind its name, else that of its configuration.

    Raises:
        UsageError: there is none, or it names other attributes.
    """
    attributes = attributes_of(config)
    if given is not None:
        return parse_mixture(given, attributes, f"the mixture of '{name}'")
    kept = getattr(config, "reward_mixture", None)
    if not kept and config.problem_type != "regression":
        first, last = attributes[0], attributes[-1]
        raise UsageError(
            f"'{name}' is a classifier of {len(attributes)} labels ({', '.join(attributes)}) and does not "
            f"say which of them is good; name the label, as '{name}#1*{last}', or a difference, as "
            f"'{name}#1*{last}-1*{first}'"
        )
    if not kept:
        raise UsageError(
            f"'{name}' has {len(attributes)} scores ({', '.join(attributes)}) and no reward_mixture that "
            f"makes one reward of them; name it as '{name}#{_example(attributes).replace(' ', '')}', with "
            f"weights of your own"
        )
    return {str(attribute): float(weight) for attribute, weight in kept.items()}


def scale_of_mixture(config: Any, weights: Mapping[str, float]) -> tuple[float, float]:
    """Mean and standard deviation of w . logits on reference samples; 0 and 1 where the model has none."""
    attributes = attributes_of(config)
    weight_K = vector_of(weights, attributes)
    mean_K, covariance_KK = (getattr(config, f"reference_{kind}", None) for kind in ("mean", "covariance"))
    if mean_K is None or covariance_KK is None:
        return 0.0, 1.0
    variance = float(weight_K @ np.array(covariance_KK) @ weight_K)
    if not variance > 0:
        raise UsageError(
            f"the mixture {mixture_text(weights)} is the same number for every reference sample: no reward"
        )
    return float(weight_K @ np.array(mean_K)), math.sqrt(variance)


@torch.no_grad()
def collapse(model: PreTrainedModel, head: torch.nn.Linear, weights: Mapping[str, float]) -> None:
    """Makes the last layer of a model with K labels the single head that scores by a mixture, in place.

    Args:
        model: what is changed.
        head: its last linear layer.
        weights: of the attributes.
    """
    attributes = attributes_of(model.config)
    mean, sd = scale_of_mixture(model.config, weights)
    weight_K = torch.tensor(vector_of(weights, attributes), dtype=torch.float64, device=head.weight.device)
    combined = (weight_K @ head.weight.double()) / sd
    head.weight = torch.nn.Parameter(combined[None].to(head.weight.dtype))
    model.config.reward_mean = mean / sd
    if head.bias is not None:
        bias = (weight_K @ head.bias.double() - mean) / sd
        head.bias = torch.nn.Parameter(bias[None].to(head.bias.dtype))
        model.config.reward_mean = 0.0
    head.out_features = 1
    model.config.num_labels = 1
    if hasattr(model, "num_labels"):
        model.num_labels = 1
    for name in ("reward_mixture", "reference_mean", "reference_covariance", "rating_mean"):
        if hasattr(model.config, name):
            delattr(model.config, name)


def attribute_logits(model: PreTrainedModel, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """``logits_BK`` (float32) of right-padded rows; gradients flow.

    A decoder's head is read at the last real token.
    """
    if isinstance(model, MeanPooledRewardModel) or not isinstance(
        getattr(model, "score", None), torch.nn.Linear
    ):
        return model(input_ids=ids_BS, attention_mask=mask_BS, **segments(model, ids_BS)).logits.float()
    hidden_BSD = model.base_model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).last_hidden_state
    rows = torch.arange(len(ids_BS), device=ids_BS.device)
    return model.score(hidden_BSD[rows, mask_BS.sum(-1) - 1]).float()
