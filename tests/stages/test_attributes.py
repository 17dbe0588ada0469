"""Reward models with one head an attribute: from ratings, with a mixture given or fitted, as a reward."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from preferl import world
from preferl.data.records import DataError, Rated
from preferl.data.sources import load_source
from preferl.data.world_files import world_message
from preferl.evaluation.attributes import attribute_measures
from preferl.judging.scorers import load_scorer
from preferl.learning.attributes import attributes_in, to_rating_scale
from preferl.maths.preference import rating_loss
from preferl.models.attributes import (
    attribute_logits,
    collapse,
    mixture_text,
    parse_mixture,
    split_mixture,
)
from preferl.models.critic import critic_from_reward_model
from preferl.models.reward import (
    RewardModel,
    load_attribute_model,
    load_reward_model,
    new_attribute_model,
    scalar_head,
)
from preferl.runs.devices import derived_seed
from preferl.runs.errors import UsageError
from preferl.stages import audit, report, reward, rl
from preferl.statistics.calibration import logistic_coefficients
from seeds import SEEDS, require_at_least

CPU = torch.device("cpu")
NOUNS = ("apple", "river", "house", "stone", "cloud", "table")


def rated(number: int, split: str) -> list[dict]:
    """Two responses to a prompt: kindness and length are rated apart, kindness of one in five is missing."""
    noun, rows = NOUNS[number % len(NOUNS)], []
    for kind in (0, 1):
        long = (number + kind * (number % 3)) % 2
        text = (f"Thanks, the {noun} is nice." if kind else f"Shut up! The {noun} is bad.") + " It is." * long
        ratings = {"kind": 1.0 + 3 * kind, "brief": 2.0 - 1.5 * long, "always": 5}
        if number % 5 == 4:
            ratings["kind"] = None
        rows.append({"prompt": f"Tell me {number}.", "completion": text, "ratings": ratings, "split": split})
    return rows


def pair(number: int, split: str) -> dict:
    """Kind wins over rude, and where both are kind the brief one, each four times in five."""
    noun = NOUNS[number % len(NOUNS)]
    kind, rude = f"Thanks, the {noun} is nice.", f"Shut up! The {noun} is bad."
    better, worse = (kind, rude) if number % 2 else (kind, kind + " It is.")
    if number % 5 == 0:
        better, worse = worse, better
    return {"prompt": f"And {number}?", "chosen": better, "rejected": worse, "split": split}


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("ratings")
    splits = ["train"] * 60 + ["dev"] * 15 + ["eval"] * 15
    ratings = [row for i, split in enumerate(splits) for row in rated(i, split)]
    pairs = [pair(i, split) for i, split in enumerate(splits)]
    return write(place / "ratings.jsonl", ratings), write(place / "pairs.jsonl", pairs)


@pytest.fixture(scope="module")
def base_config(policy_directory, files, tmp_path_factory):
    return reward.RewardConfig(
        output_dir=str(tmp_path_factory.mktemp("stage") / "reward"),
        model_name_or_path=str(policy_directory),
        dataset_name=files[0],
        train_batch_size=8,
        num_train_epochs=8.0,
        learning_rate=3e-3,
        num_evals=4,
        num_threads=1,
        device="cpu",
    )


@pytest.fixture(scope="module")
def trained(base_config):
    """A stage with a mixture that was given."""
    return reward.run(dataclasses.replace(base_config, reward_mixture="0.7*kind - 0.3*brief"))


def summary_of(stage) -> dict:
    return json.loads((stage / "summary.json").read_text())


# ------------------------------------------------------------------------------------------------ mixtures


def test_mixtures_are_written_and_read():
    names = ["helpfulness", "correctness", "safe-ish words"]
    for text, expected in (
        ("0.7*helpfulness + 0.3*correctness", {"helpfulness": 0.7, "correctness": 0.3}),
        ("-1*correctness+2e-1*helpfulness", {"correctness": -1.0, "helpfulness": 0.2}),
        (" .5 * safe-ish words - 0.25*helpfulness", {"safe-ish words": 0.5, "helpfulness": -0.25}),
    ):
        assert parse_mixture(text, names) == expected
        assert parse_mixture(mixture_text(expected), names) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("helpfulness", "no weighted sum"),
        ("0.5*helpfulness 0.5*correctness", "no weighted sum"),
        ("0.5*helpfulness + correctness", "none of the attributes|no weighted sum"),
        ("1*truth", "'truth', which is none of the attributes"),
        ("1*helpfulness + 1*helpfulness", "twice"),
        ("0*helpfulness", "weight 0"),
        ("", "weight 0"),
    ],
)
def test_what_is_no_mixture_names_the_attributes_and_the_form(text, words):
    with pytest.raises(UsageError, match=words) as found:
        parse_mixture(text, ["helpfulness", "correctness"])
    assert "0.7*helpfulness + 0.3*correctness" in str(found.value)


def test_a_mixture_stands_behind_a_models_name(tmp_path):
    assert split_mixture("runs/rm#0.7*a+0.3*b") == ("runs/rm", "0.7*a+0.3*b")
    assert split_mixture("judge:http://host/v1#model") == ("judge:http://host/v1#model", None)
    (tmp_path / "odd#1").mkdir()
    assert split_mixture(str(tmp_path / "odd#1")) == (str(tmp_path / "odd#1"), None)


# ---------------------------------------------------------------------------------------------- regression


def test_the_loss_is_least_squares_over_the_ratings_there_are():
    """At the exact least-squares solution of each attribute's own rated rows (NumPy) the gradient is 0, and
    the loss is the sum of the residuals there; what stands in a masked cell changes nothing."""
    rng = np.random.default_rng(0)
    x_ND, rating_NK = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    mask_NK = rng.random((40, 2)) < 0.7
    weight_KD, residuals = [], 0.0
    for k in range(2):
        there_N = mask_NK[:, k]
        solution_D, residual, *_ = np.linalg.lstsq(x_ND[there_N], rating_NK[there_N, k], rcond=None)
        weight_KD.append(solution_D)
        residuals += float(residual[0])
    head_KD = torch.tensor(np.array(weight_KD), requires_grad=True)
    holes_NK = torch.tensor(np.where(mask_NK, rating_NK, np.nan))
    loss_N = rating_loss(torch.tensor(x_ND) @ head_KD.T, holes_NK, torch.tensor(mask_NK))
    loss_N.sum().backward()
    loss_N = loss_N.detach()
    assert float(loss_N.sum()) == pytest.approx(residuals, rel=1e-12)
    assert float(head_KD.grad.abs().max()) < 1e-10
    with torch.no_grad():
        moved = rating_loss(torch.tensor(x_ND) @ (head_KD + 0.01).T, holes_NK, torch.tensor(mask_NK))
    assert float(moved.sum()) > residuals
    assert rating_loss(torch.ones(1, 2), torch.full((1, 2), torch.nan), torch.zeros(1, 2)).tolist() == [0]
    with pytest.raises(ValueError, match="rating_BK"):
        rating_loss(torch.ones(2, 2), torch.ones(2, 3), torch.ones(2, 2))


def test_attributes_are_standardised_by_their_training_ratings_and_constants_left_out(files):
    found = attributes_in(load_source(files[0]))
    assert found.names == ["kind", "brief"]
    assert found.mean_K[0] == pytest.approx(2.5)
    assert found.sd_K[0] == pytest.approx(1.5)
    assert any("left out the attribute always" in note for note in found.notes)
    assert any("24 of 120 training rows have no rating of kind" in note for note in found.notes)
    rows = [Rated("p", "r", {"kind": 4.0}), Rated("p", "s", {"brief": 2.0})]
    standardised = found.standardised(rows)
    assert standardised[0, 0] == pytest.approx(1.0)
    assert np.isnan(standardised).tolist() == [[False, True], [True, False]]


def test_ratings_that_never_differ_are_refused(tmp_path, base_config):
    rows = [
        {"prompt": f"p{i}", "completion": "c", "ratings": {"kind": 1}, "split": split}
        for i, split in enumerate(["train", "dev", "eval"] * 4)
    ]
    name = write(tmp_path / "flat.jsonl", rows)
    with pytest.raises(DataError, match="rates kind, and never differently"):
        reward.run(dataclasses.replace(base_config, dataset_name=name, output_dir=str(tmp_path / "out")))


@pytest.mark.parametrize("kind", ["decoder", "encoder", "mean"])
def test_heads_on_the_scale_of_the_ratings_and_their_mixture_as_one_head(
    kind, policy_directory, encoder_directory, tmp_path, files
):
    """A head with and without bias, and a mean-pooled one: what transformers loads gives the ratings, and the
    collapsed model (w . logits - w . m) / sqrt(w . C w) of them."""
    place = str(encoder_directory if kind == "encoder" else policy_directory)
    pooling = "mean" if kind == "mean" else "last"
    attributes = attributes_in(load_source(files[0]))
    model, tokenizer = new_attribute_model(place, CPU, attributes.names, pooling)
    ids = torch.randint(5, 60, (6, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 5:], ids[0, 5:] = 0, tokenizer.pad_token_id
    with torch.no_grad():
        standard_NK = attribute_logits(model, ids, mask).double().numpy()
        to_rating_scale(model, attributes)
        logits_NK = attribute_logits(model, ids, mask).double().numpy()
    ratings_NK = logits_NK + np.array(model.config.rating_mean)
    np.testing.assert_allclose(ratings_NK, standard_NK * attributes.sd_K + attributes.mean_K, atol=1e-4)

    mean_K, root_KK = np.array([0.3, -0.2]), np.array([[0.5, 0.1], [0.0, 0.4]])
    covariance_KK = root_KK @ root_KK.T
    model.config.reference_mean, model.config.reference_covariance = mean_K.tolist(), covariance_KK.tolist()
    weight_K = np.array([0.7, -0.3])
    model.config.reward_mixture = dict(zip(attributes.names, weight_K.tolist(), strict=True))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert plain.config.problem_type == "regression"
    assert plain.config.id2label == {0: "kind", 1: "brief"}
    assert plain.config.reward_mixture == {"kind": 0.7, "brief": -0.3}
    with torch.no_grad():
        plain_NK = plain(input_ids=ids, attention_mask=mask).logits.double().numpy()
    assert plain_NK.shape == (6, 2)
    np.testing.assert_allclose(plain_NK, logits_NK, atol=1e-4)

    scorer = RewardModel(*load_reward_model(str(tmp_path / "model"), CPU))
    assert scalar_head(scorer.model).weight.shape[0] == 1
    with torch.no_grad():
        raw_N = scorer.model(input_ids=ids, attention_mask=mask).logits
    assert raw_N.shape == (6, 1)
    ours = raw_N[:, 0].double().numpy() - scorer.model.config.reward_mean
    expected = (plain_NK - mean_K) @ weight_K / np.sqrt(weight_K @ covariance_KK @ weight_K)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    other, _ = load_attribute_model(str(tmp_path / "model"), CPU)
    collapse(other, scalar_head(other), {"kind": -2.0})
    with torch.no_grad():
        turned = other(input_ids=ids, attention_mask=mask).logits[:, 0].double().numpy()
    expected = -2 * (plain_NK[:, 0] - mean_K[0]) / (2 * np.sqrt(covariance_KK[0, 0]))
    np.testing.assert_allclose(turned - other.config.reward_mean, expected, atol=1e-4)


# --------------------------------------------------------------------------------------------------- stage


def test_the_stage_rates_and_keeps_its_mixture(trained, capsys):
    """config.json, unit scale on the reference samples, and each attribute's measures."""
    config = json.loads((trained / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "kind", "1": "brief"}
    assert config["reward_mixture"] == {"kind": 0.7, "brief": -0.3}
    assert config["problem_type"] == "regression"
    summary = summary_of(trained)
    assert summary["attributes"] == ["kind", "brief"]
    assert summary["eval/kind_correlation"] > 0.7
    assert summary["eval/kind_correlation_low"] <= summary["eval/kind_correlation"]
    audit = json.loads((trained / "audit.json").read_text())
    assert [row["attribute"] for row in audit["attributes"]] == ["kind", "brief"]
    assert audit["attributes"][0]["responses"] == 24
    assert audit["attributes"][0]["agreement"]["value"] > 0.8
    assert audit["accuracy"]["pairs"] == summary["eval/pairs"] == 12
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["dev/loss"] < 0.7 < 1.3
    assert "dev/kind_correlation" in rows[-1]

    train = load_source(summary_config(trained)["dataset_name"]).train.rated
    scorer = load_scorer(str(trained), CPU)
    scores = scorer([row.prompt for row in train], [row.response for row in train])
    assert np.mean(scores) == pytest.approx(0, abs=1e-3)
    assert np.std(scores) == pytest.approx(1, abs=1e-3)
    # By hand, from what plain transformers loads.
    model = AutoModelForSequenceClassification.from_pretrained(trained / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    own = RewardModel(model, tokenizer).encode(train[0].prompt, train[0].response)
    with torch.no_grad():
        logits_K = model(input_ids=torch.tensor([own])).logits[0].double().numpy()
    weight_K = np.array([0.7, -0.3])
    variance = weight_K @ np.array(config["reference_covariance"]) @ weight_K
    by_hand = weight_K @ (logits_K - np.array(config["reference_mean"])) / np.sqrt(variance)
    assert scores[0] == pytest.approx(by_hand, abs=1e-3)


def summary_config(stage) -> dict:
    import yaml

    return yaml.safe_load((stage / "config.yaml").read_text())


def test_another_mixture_is_named_behind_the_directory(trained):
    texts = ["Thanks, the apple is nice.", "Shut up! The apple is bad.", "Thanks, the apple is nice. It is."]
    prompts = ["Tell me 0."] * 3
    kind, rude, _ = load_scorer(f"{trained}#1*kind", CPU)(prompts, texts)
    assert kind > rude + 1
    turned = load_scorer(f"{trained}#-1*kind", CPU)(prompts, texts)
    assert turned[0] == pytest.approx(-kind, abs=1e-4)
    spaced = load_scorer(f"{trained}#0.7*kind - 0.3*brief", CPU)(prompts, texts)
    assert spaced == pytest.approx(load_scorer(str(trained), CPU)(prompts, texts), abs=1e-5)
    # Spaces around the plus are the attributes' too, and a weighted sum of scorers takes one without.
    both = load_scorer(f"{trained}#0.5*kind + 0.5*brief", CPU)(prompts, texts)
    summed = load_scorer(f"2*{trained}#0.5*kind+0.5*brief + 0.01*length", CPU)(prompts, texts)
    lengths = load_scorer("length", CPU)(prompts, texts)
    expected = [2 * score + 0.01 * length for score, length in zip(both, lengths, strict=True)]
    assert summed == pytest.approx(expected, abs=1e-4)
    with pytest.raises(UsageError, match=r"'truth', which is none of the attributes.*kind, brief"):
        load_scorer(f"{trained}#1*truth", CPU)


def test_without_a_mixture_it_rates_and_is_no_reward(base_config, tmp_path, capsys):
    out = str(tmp_path / "rates")
    stage = reward.run(dataclasses.replace(base_config, output_dir=out, max_steps=2))
    said = capsys.readouterr().out
    assert "no mixture" in said
    assert "kind: correlation with 24 held-out ratings" in said
    config = json.loads((stage / "model" / "config.json").read_text())
    assert "reward_mixture" not in config
    with pytest.raises(UsageError, match=r"2 scores \(kind, brief\).*#0.7\*kind\+0.3\*brief"):
        load_scorer(str(stage), CPU)
    assert load_scorer(f"{stage}#1*kind", CPU)(["p"], ["c"])


def test_the_fitted_mixture_is_the_maximum_of_the_likelihood(base_config, files, tmp_path):
    """Against scipy on the logits that transformers gives, float64, from the pairs as they are."""
    from scipy.optimize import minimize

    out = str(tmp_path / "bt")
    config = dataclasses.replace(
        base_config, output_dir=out, reward_mixture="bt", mixture_dataset_name=files[1], num_train_epochs=2.0
    )
    stage = reward.run(config)
    summary = summary_of(stage)
    model, tokenizer = load_attribute_model(str(stage), CPU)
    scorer = RewardModel(model, tokenizer)
    gaps = []
    for one in load_source(files[1]).train.pairs:
        logits = []
        for text in (one.chosen, one.rejected):
            ids = torch.tensor([scorer.encode(one.prompt, text)])
            with torch.no_grad():
                logits.append(model(input_ids=ids).logits[0].double().numpy())
        gaps.append(logits[0] - logits[1])
    gap_NK = np.array(gaps)
    best = minimize(lambda w: np.logaddexp(0, -gap_NK @ w).sum(), np.zeros(2), tol=1e-12)
    fitted = [summary["reward_mixture"][name] for name in ("kind", "brief")]
    np.testing.assert_allclose(fitted, best.x, rtol=2e-2, atol=1e-3)
    assert summary["mixture/kind_low"] < summary["mixture/kind"] < summary["mixture/kind_high"]
    assert (
        json.loads((stage / "model" / "config.json").read_text())["reward_mixture"]
        == summary["reward_mixture"]
    )
    # Its scale is that of the pairs' log-odds, and it is measured on their eval split.
    assert summary["eval/pairs"] == 15
    manifest = json.loads((stage / "manifest.json").read_text())
    assert set(manifest["parents"]) == {"model_name_or_path", "dataset_name", "mixture_dataset_name"}


def test_logistic_regression_does_not_see_which_response_stands_first():
    rng = np.random.default_rng(derived_seed(0, "pairs") % 2**32)
    gap_NK = rng.normal(size=(200, 3))
    won_N = rng.random(200) < 1 / (1 + np.exp(-gap_NK @ np.array([1.0, -0.5, 0.2])))
    gap_NK = np.where(won_N[:, None], gap_NK, -gap_NK)
    found = []
    for seed in range(2):
        first_N = np.random.default_rng(seed).random(200) < 0.5
        x_NK = np.where(first_N[:, None], gap_NK, -gap_NK)
        found.append([c.value for c in logistic_coefficients(x_NK, first_N.astype(float), np.arange(200))])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "bradley_terry"}, "loss is bradley_terry.*ratings by attribute"),
        ({"lora_r": 4}, "lora_r is 4"),
        ({"num_members": 2}, "num_members is 2"),
        ({"reward_mixture": "bt"}, "mixture_dataset_name go together"),
        ({"reward_mixture": "1*kind", "mixture_dataset_name": "x.jsonl"}, "go together"),
        ({"reward_mixture": "1*truth"}, "'truth', which is none of the attributes"),
        (
            {"reward_mixture": "1*always"},
            "left out the attribute always: all its training.*'always', which is none",
        ),
    ],
)
def test_options_that_do_not_fit_ratings_are_refused(base_config, tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        reward.run(dataclasses.replace(base_config, output_dir=str(tmp_path / "out"), **changes))
    assert not (tmp_path / "out").exists()


def test_a_mixture_of_pairs_is_refused(base_config, files, tmp_path):
    out = str(tmp_path / "out")
    config = dataclasses.replace(base_config, dataset_name=files[1], reward_mixture="1*kind", output_dir=out)
    with pytest.raises(UsageError, match="reward_mixture is of ratings by attribute"):
        reward.run(config)


def test_the_heads_learn_their_attributes(base_config, tmp_path):
    """Correlation with held-out ratings, of eight seeds."""
    kind, brief = [], []
    for seed in SEEDS:
        out = str(tmp_path / f"seed-{seed}")
        summary = summary_of(reward.run(dataclasses.replace(base_config, seed=seed, output_dir=out)))
        kind.append(summary["eval/kind_correlation"])
        brief.append(summary["eval/brief_correlation"])
    require_at_least(0.9, 0.8, kind)
    require_at_least(0.7, 0.5, brief)


# ---------------------------------------------------------------------------------------------- as a reward


def test_measures_by_hand():
    rows = [Rated("p", "a", {"x": 1.0}), Rated("p", "b", {"x": 3.0}), Rated("q", "c", {"x": 2.0})]
    rows += [Rated(f"r{i}", "d", {"x": float(i)}) for i in range(4)]
    rating = np.array([[row.ratings["x"]] for row in rows])
    predicted = np.array([[2.0], [1.0], [2.0], [0.0], [1.0], [2.0], [3.0]])
    (found,) = attribute_measures(["x"], predicted, rating, rows)
    assert (found["responses"], found["pairs"]) == (7, 1)
    assert found["agreement"]["value"] == 0
    assert found["correlation"]["value"] == pytest.approx(np.corrcoef(predicted[:, 0], rating[:, 0])[0, 1])
    assert found["root_mean_squared_error"] == pytest.approx(np.sqrt(5 / 7))
    (none,) = attribute_measures(["x"], predicted[:1], np.array([[np.nan]]), rows[:1])
    assert none["correlation"]["value"] is None
    assert none["agreement"]["value"] is None


def test_a_mixture_makes_a_critic(trained):
    model, tokenizer = load_reward_model(str(trained), CPU)
    critic = critic_from_reward_model(model, tokenizer, tokenizer)
    assert critic is not None
    assert scalar_head(critic).weight.shape[0] == 1


def test_rl_trains_on_a_mixture_of_the_worlds_aspects(policy_directory, tmp_path):
    """Ratings by gold features: what each aspect of the true reward says of responses of the world. A reward
    model rates them, and rl takes the mixture that its directory names."""
    rows = []
    for split in ("train", "dev", "eval"):
        for prompt, response in world.sft_corpus(0, split, per_prompt=2)[:120]:
            ratings = {aspect: world.gold_reward(prompt.text, response, aspect) for aspect in world.ASPECTS}
            rows.append(
                {
                    "prompt": world_message(prompt.text),
                    "completion": response,
                    "ratings": ratings,
                    "split": split,
                }
            )
    name = write(tmp_path / "world.jsonl", rows)
    stage = reward.run(
        reward.RewardConfig(
            output_dir=str(tmp_path / "reward"),
            model_name_or_path=str(policy_directory),
            dataset_name=name,
            reward_mixture="0.6*helpful + 0.4*honest",
            max_steps=12,
            num_threads=1,
            device="cpu",
        )
    )
    config = rl.RlConfig(
        output_dir=str(tmp_path / "rl"),
        model_name_or_path=str(policy_directory),
        reward_model=f"{stage}#0.6*helpful+0.3*honest+0.1*concise",
        dataset_name=name,
        num_iterations=2,
        batch_size=8,
        num_mini_batches=2,
        response_length=8,
        eval_prompts=4,
        num_threads=1,
        device="cpu",
    )
    done = rl.run(config)
    rows = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["train/reward"]) for row in rows if "train/reward" in row)
    parents = json.loads((done / "manifest.json").read_text())["parents"]
    assert parents["reward_model"]["path"] == "../reward"
    samples = [json.loads(line) for line in (done / "samples.jsonl").read_text().splitlines()]
    again = load_scorer(config.reward_model, CPU)([samples[0]["prompt"]], [samples[0]["response"]])
    assert len(again) == 1


# --------------------------------------------------------------------------------------- audit and report


def test_the_audit_measures_every_attribute_on_pairs(trained, files, tmp_path, capsys):
    config = audit.AuditConfig(
        output_dir=str(tmp_path / "audit"), dataset_name=files[1], reward_model=str(trained), device="cpu"
    )
    found = json.loads((audit.run(config) / "audit.json").read_text())
    rows = {row["attribute"]: row for row in found["attributes"]}
    assert set(rows) == {"kind", "brief"}
    assert rows["kind"]["pairs"] == found["accuracy"]["pairs"] == 90
    by_kind = load_scorer(f"{trained}#1*kind", CPU)
    right = 0.0
    for one in load_source(files[1]).named["all"]().pairs:
        chosen, rejected = by_kind([one.prompt] * 2, [one.chosen, one.rejected])
        right += chosen > rejected
    assert rows["kind"]["agreement"]["value"] == pytest.approx(right / 90)
    assert "attribute kind" in capsys.readouterr().out


def test_the_audit_orders_ratings_by_the_mixture(trained, files, tmp_path):
    """Responses with ratings are pairs where their mixed ratings differ; each attribute has its ratings."""
    config = audit.AuditConfig(
        output_dir=str(tmp_path / "audit"),
        dataset_name=files[0],
        reward_model=f"{trained}#1*kind",
        split="eval",
        device="cpu",
    )
    found = json.loads((audit.run(config) / "audit.json").read_text())
    assert found["accuracy"]["pairs"] == 12
    assert found["accuracy"]["accuracy"]["value"] > 0.8
    assert [row["responses"] for row in found["attributes"]] == [24, 30]
    saved = json.loads((trained / "audit.json").read_text())
    assert found["attributes"] == saved["attributes"]


def test_pages_show_the_attributes(trained, base_config, tmp_path):
    """Of a mixture, and of a model that only rates: a page of its own with every section that it has."""
    rates = reward.run(
        dataclasses.replace(
            base_config, output_dir=str(tmp_path / "run" / "reward"), max_steps=4, num_evals=2
        )
    )
    for stage, weighed in ((trained, True), (rates, False)):
        page = report.write(stage.parent).read_text(encoding="utf-8")
        for words in ("Attributes", "kind", "brief", "correlation", "mean squared error"):
            assert words in page
        assert ("weight in the reward" in page) == weighed
        assert ("Correlations with held-out ratings" in page) != weighed
