"""Agreement against published examples, and Dawid and Skene's model against what made the data."""

import itertools

import numpy as np
import pytest

from preferl.statistics.agreement import Undefined, cohen_kappa, dawid_skene, fleiss_kappa, krippendorff_alpha

_ = np.nan
# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units.
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_is_that_of_krippendorffs_example(level, alpha):
    assert krippendorff_alpha(OBSERVERS, level) == pytest.approx(alpha, abs=5e-4)


def test_fleiss_kappa_is_that_of_his_example():
    # Fleiss (1971): 14 raters put ten subjects into five categories; kappa .210.
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    answer_AU = np.array([np.repeat(np.arange(5), row) for row in counts], dtype=float).T
    assert fleiss_kappa(answer_AU) == pytest.approx(0.210, abs=5e-4)
    # Units with another number of answers are left out.
    odd = np.full((14, 1), np.nan)
    odd[:2] = 1
    assert fleiss_kappa(np.hstack([answer_AU, odd])) == pytest.approx(0.210, abs=5e-4)


def test_cohen_kappa_by_hand():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = .7, p_e = .5, kappa = .4.
    first = [1] * 25 + [0] * 25 + [np.nan, 1]
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15 + [1, np.nan]
    assert cohen_kappa(first, second) == pytest.approx(0.4, abs=1e-12)


@pytest.mark.parametrize(
    ("estimate", "reason"),
    [
        (lambda: krippendorff_alpha([[1, _], [_, 0]], "nominal"), "no item has two"),
        (lambda: krippendorff_alpha([[1, 1, 0], [1, 1, _]], "ordinal"), "same answer"),
        (lambda: krippendorff_alpha(np.zeros((0, 0)), "nominal"), "no item has two"),
        (lambda: fleiss_kappa([[1, _], [_, 0]]), "no item has two"),
        (lambda: fleiss_kappa([[1, 1], [1, 1]]), "same answer"),
        (lambda: cohen_kappa([1, _], [_, 1]), "share no item"),
        (lambda: cohen_kappa([1, 1], [1, 1]), "same answer"),
        (lambda: dawid_skene([[_, _]]), "no judgements"),
    ],
)
def test_what_is_undefined_says_why(estimate, reason):
    with pytest.raises(Undefined, match=reason):
        estimate()


# ----------------------------------------------------------------------------------------- Dawid and Skene


def made(confusion_ACC, prior_C, units, seed, share=1.0):
    rng = np.random.default_rng(seed)
    C = len(prior_C)
    truth_U = rng.choice(C, units, p=prior_C)
    answer_AU = np.stack(
        [[float(rng.choice(C, p=confusion_CC[c])) for c in truth_U] for confusion_CC in confusion_ACC]
    )
    answer_AU[rng.random(answer_AU.shape) >= share] = np.nan
    return truth_U, answer_AU


GOOD, FAIR = [[0.95, 0.05], [0.1, 0.9]], [[0.7, 0.3], [0.3, 0.7]]
CONTRARY = [[0.1, 0.9], [0.9, 0.1]]


def test_it_finds_who_is_good_and_beats_the_majority():
    confusion_ACC = np.array([GOOD, FAIR, FAIR, FAIR, [[0.5, 0.5], [0.5, 0.5]]])
    truth_U, answer_AU = made(confusion_ACC, [0.6, 0.4], 20_000, 0, share=0.8)
    fit = dawid_skene(answer_AU)
    assert np.abs(fit.confusion_ACC - confusion_ACC).max() < 0.06
    assert np.abs(fit.prior_C - [0.6, 0.4]).max() < 0.03
    found = (fit.posterior_UC.argmax(-1) == truth_U).mean()
    majority = ((np.nan_to_num(answer_AU - 0.5).sum(0) > 0).astype(int) == truth_U).mean()
    assert found > majority + 0.05
    # The posterior is what it says: where it claims 80 to 90 %, it is right in 80 to 90 %.
    sure_U = fit.posterior_UC.max(-1)
    some = (sure_U > 0.8) & (sure_U < 0.9)
    assert (fit.posterior_UC.argmax(-1) == truth_U)[some].mean() == pytest.approx(0.85, abs=0.06)


def test_somebody_who_always_says_the_opposite_is_worth_as_much():
    truth_U, answer_AU = made(np.array([GOOD, GOOD, FAIR, CONTRARY]), [0.5, 0.5], 2000, 1)
    fit = dawid_skene(answer_AU)
    assert fit.confusion_ACC[3][0, 1] > 0.8
    assert (fit.posterior_UC.argmax(-1) == truth_U).mean() > 0.96


def test_three_answers_are_ties_too():
    good = np.full((3, 3), 0.05) + 0.85 * np.eye(3)
    truth_U, answer_AU = made(np.array([good] * 3), [0.4, 0.2, 0.4], 600, 2)
    fit = dawid_skene(answer_AU - 1)
    assert fit.values_C.tolist() == [-1, 0, 1]
    assert (fit.posterior_UC.argmax(-1) == truth_U).mean() > 0.95


def test_the_posterior_is_bayes_rule_by_enumeration():
    _, answer_AU = made(np.array([GOOD, FAIR, FAIR]), [0.5, 0.5], 40, 3)
    fit = dawid_skene(answer_AU, rounds=2000, tolerance=1e-14)
    total = 0.0
    for u, column in enumerate(answer_AU.T):
        joint = [
            fit.prior_C[c] * np.prod([fit.confusion_ACC[a, c, int(said)] for a, said in enumerate(column)])
            for c in range(2)
        ]
        total += np.log(sum(joint))
        assert fit.posterior_UC[u] == pytest.approx(np.array(joint) / sum(joint), abs=1e-6)
    assert fit.log_likelihood == pytest.approx(total, abs=1e-4)


def test_the_fit_is_a_maximum_of_the_penalised_likelihood():
    _, answer_AU = made(np.array([GOOD, FAIR, FAIR]), [0.5, 0.5], 60, 4)
    fit = dawid_skene(answer_AU, rounds=5000, tolerance=1e-15)
    extra_CC = 0.5 * np.eye(2) + 0.25

    def penalised(prior_C, confusion_ACC):
        joint_UC = np.log(prior_C) + sum(
            np.log(confusion_ACC[a][:, answer_AU[a].astype(int)]).T for a in range(3)
        )
        own = np.log(np.exp(joint_UC).sum(-1)).sum()
        return own + (extra_CC * np.log(confusion_ACC)).sum() + 0.5 * np.log(prior_C).sum()

    best = penalised(fit.prior_C, fit.confusion_ACC)
    for a, c, sign in itertools.product(range(3), range(2), (-1, 1)):
        moved = fit.confusion_ACC.copy()
        moved[a, c] += sign * 0.01 * np.array([1, -1])
        assert penalised(fit.prior_C, moved) < best
    for sign in (-1, 1):
        assert penalised(fit.prior_C + sign * 0.01 * np.array([1, -1]), fit.confusion_ACC) < best


def test_annotators_who_said_nothing_change_nothing():
    _, answer_AU = made(np.array([GOOD, FAIR, FAIR]), [0.5, 0.5], 50, 5)
    fit = dawid_skene(answer_AU)
    more = dawid_skene(np.vstack([answer_AU, np.full((1, 50), np.nan)]))
    assert more.posterior_UC == pytest.approx(fit.posterior_UC, abs=1e-9)
