"""KL divergence between policy and reference: estimates, exact values, controllers. All in nats."""

import math

import torch

from preferl.maths.checks import require_same_shape

ESTIMATORS = {
    "k1": lambda d: d,
    "k2": lambda d: d**2 / 2,
    "k3": lambda d: torch.expm1(-d) + d,
}


def kl_estimate(logp: torch.Tensor, ref_logp: torch.Tensor, kind: str) -> torch.Tensor:
    """Estimates of KL(pi || pi_ref) from samples of pi, elementwise (Schulman 2020, "Approximating KL").

    With d = log pi - log pi_ref: k1 = d, unbiased; k2 = d^2 / 2, biased; k3 = exp(-d) - 1 + d, unbiased and
    never negative. As rewards, detached, k1 gives the gradient of the KL. As a loss only k2 of whole
    responses does: k1's expected gradient is 0, k3's is that of KL(pi_ref || pi), and k2 or k3 of single
    tokens leaves out what a token changes about later ones.

    Raises:
        ValueError: another kind, shapes differ, or a tensor is empty.
    """
    if kind not in ESTIMATORS:
        raise ValueError(f"KL estimator '{kind}' is unknown; use k1, k2 or k3")
    require_same_shape(logp=logp, ref_logp=ref_logp)
    return ESTIMATORS[kind](logp - ref_logp)


def kl_exact(logits_BTV: torch.Tensor, ref_logits_BTV: torch.Tensor) -> torch.Tensor:
    """``kl_BT``: KL(pi || pi_ref) of the two next-token distributions, summed over the whole vocabulary.

    Logits are at the sampling temperature already; tokens of probability 0 contribute 0.

    Raises:
        ValueError: shapes differ or a tensor is empty.
    """
    require_same_shape(logits_BTV=logits_BTV, ref_logits_BTV=ref_logits_BTV)
    logp_BTV = logits_BTV.log_softmax(-1)
    p_BTV = logp_BTV.exp()
    gap_BTV = (logp_BTV - ref_logits_BTV.log_softmax(-1)).masked_fill(p_BTV == 0, 0.0)
    return (p_BTV * gap_BTV).sum(-1)


def best_of_n_kl_bound(n: int) -> float:
    """log n - (n - 1) / n: upper bound of KL(best-of-n || pi) (Stiennon et al. 2020; Beirami et al. 2024).

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; best-of-n chooses from at least 1 response")
    return math.log(n) - (n - 1) / n


def best_objective(score_N: torch.Tensor, coef: float) -> tuple[float, float, float]:
    """The best E[score] - coef * KL(pi || pi_ref) that any policy can reach, from the scores of
    samples of pi_ref.

    It is coef * log E_ref[exp(score / coef)] (the log-partition function of the optimum pi_ref exp(score /
    coef); Rafailov et al. 2023, appendix A.1). Over several prompts it bounds their mean from above.

    Returns:
        The estimate, its standard error by the delta method, and the effective sample size of the weights
        exp(score / coef): below a few dozen the estimate is too low and says nothing.

    Raises:
        ValueError: there are fewer than two scores, or the coefficient is not above 0.
    """
    if not coef > 0 or score_N.numel() < 2:
        raise ValueError(f"coefficient {coef} must be above 0, and {score_N.numel()} scores at least 2")
    # Relative to the largest, which is added back to the logarithm: exp(score / coef) itself overflows.
    scaled_N = score_N.double() / coef
    top = scaled_N.max()
    weight_N = (scaled_N - top).exp()
    mean, n = weight_N.mean(), len(weight_N)
    error = coef * weight_N.std() / (mean * n**0.5)
    size = weight_N.sum() ** 2 / (weight_N**2).sum()
    return float(coef * (top + mean.log())), float(error), float(size)


class FixedKL:
    """A KL coefficient that stays as it is.

    Raises:
        ValueError: the coefficient is negative.
    """

    def __init__(self, coef: float):
        if not coef >= 0:
            raise ValueError(f"KL coefficient is {coef}; a negative one would pay for leaving the reference")
        self.coef = coef

    def update(self, kl: float, n_samples: int) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]


class AdaptiveKL:
    """Ziegler et al. 2019, section 2.2: coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon.

    ``target`` is in nats per response, ``horizon`` in responses.

    Raises:
        ValueError: coefficient, target or horizon is not above 0.
    """

    LIMIT = 0.2

    def __init__(self, coef: float, target: float, horizon: float):
        if not (coef > 0 and target > 0 and horizon > 0):
            raise ValueError(
                f"adaptive KL: coefficient {coef}, target {target} and horizon {horizon} must be above 0; "
                f"the coefficient moves by factors and never leaves 0"
            )
        self.coef, self.target, self.horizon = coef, target, horizon

    def update(self, kl: float, n_samples: int) -> None:
        """Moves the coefficient after a batch of ``n_samples`` responses of mean KL ``kl``.

        Raises:
            ValueError: the KL is not a finite number, or the batch is so large that the factor could reach 0.
        """
        if not math.isfinite(kl):
            raise ValueError(f"the mean KL of the batch is {kl}; the KL coefficient cannot follow it")
        if n_samples * self.LIMIT >= self.horizon:
            raise ValueError(
                f"a batch of {n_samples} with horizon {self.horizon} could turn the KL coefficient negative; "
                f"the horizon must be above {n_samples * self.LIMIT:g}"
            )
        error = min(max(kl / self.target - 1, -self.LIMIT), self.LIMIT)
        self.coef *= 1 + error * n_samples / self.horizon

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]
