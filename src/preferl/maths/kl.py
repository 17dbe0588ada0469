"""KL divergence between policy and reference: estimates, exact values, controllers. All in nats."""

import math

import torch


def kl_estimate(logp: torch.Tensor, ref_logp: torch.Tensor, kind: str) -> torch.Tensor:
    """Estimates of KL(pi || pi_ref) from samples of pi, elementwise (Schulman 2020, "Approximating KL").

    With d = logp - ref_logp: k1 = d (unbiased), k2 = d^2 / 2 (biased; its gradient at sequence level is
    exact), k3 = exp(-d) - 1 + d (unbiased, never negative).

    Raises:
        ValueError: another kind, or shapes differ.
    """
    if logp.shape != ref_logp.shape:
        raise ValueError(
            f"shapes differ: {tuple(logp.shape)} and {tuple(ref_logp.shape)}; they must be equal"
        )
    d = logp - ref_logp
    if kind == "k1":
        return d
    if kind == "k2":
        return d**2 / 2
    if kind == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"KL estimator '{kind}' is unknown; use k1, k2 or k3")


def kl_exact(logits_BTV: torch.Tensor, ref_logits_BTV: torch.Tensor) -> torch.Tensor:
    """``kl_BT``: KL of the two next-token distributions, summed over the whole vocabulary.

    Logits are at the sampling temperature already; tokens of probability 0 contribute 0.

    Raises:
        ValueError: shapes differ.
    """
    if logits_BTV.shape != ref_logits_BTV.shape:
        raise ValueError(
            f"shapes differ: {tuple(logits_BTV.shape)} and {tuple(ref_logits_BTV.shape)}; they must be equal"
        )
    logp_BTV = logits_BTV.log_softmax(-1)
    gap_BTV = logp_BTV - ref_logits_BTV.log_softmax(-1)
    p_BTV = logp_BTV.exp()
    return torch.where(p_BTV > 0, p_BTV * gap_BTV, torch.zeros_like(p_BTV)).sum(-1)


def best_of_n_kl_bound(n: int) -> float:
    """log n - (n - 1) / n: upper bound of KL(best-of-n || pi) (Stiennon et al. 2020; Beirami et al. 2024).

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; best-of-n needs at least 1")
    return math.log(n) - (n - 1) / n


class FixedKL:
    """A KL coefficient that stays as it is."""

    def __init__(self, coef: float):
        self.coef = coef

    def update(self, kl: float, n_samples: int) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]


class AdaptiveKL:
    """Ziegler et al. 2019, section 2.2: coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon.

    ``target`` is in nats per response, ``horizon`` in samples.

    Raises:
        ValueError: target or horizon is not above 0.
    """

    def __init__(self, coef: float, target: float, horizon: float):
        if not (target > 0 and horizon > 0):
            raise ValueError(f"KL target {target} and horizon {horizon} must be above 0")
        self.coef, self.target, self.horizon = coef, target, horizon

    def update(self, kl: float, n_samples: int) -> None:
        """Moves the coefficient after a batch of ``n_samples`` responses of mean KL ``kl``."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * n_samples / self.horizon

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]
