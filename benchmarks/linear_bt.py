"""How close the reward trainer comes to the limit of statistics on a problem whose limit is known.

Preferences come from Bradley-Terry on a linear utility of d features. The excess log-loss of maximum
likelihood over the truth tends to d / (2n) with n pairs, so 2n * excess / d tends to 1; what the trainer of
``preferl reward`` reaches is printed beside it. The model is a table of frozen features, one token a
response, under the trainable head; batches, loss, optimiser, schedule and averaging are the stage's.

python benchmarks/linear_bt.py [--replications 20]
"""

import argparse
import tempfile
from types import SimpleNamespace

import numpy as np
import torch
from scipy.optimize import minimize
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from preferl.data.records import Comparison
from preferl.learning.comparisons import optimise
from preferl.models.reward import RewardModel
from preferl.runs.stage import Stage
from preferl.stages import reward

D, N, SD = 16, 1000, 2.0  # features, pairs, standard deviation of the utility difference
SETTINGS = {
    "1 epoch": {"num_train_epochs": 1, "learning_rate": 0.05, "weight_average": 0.0},
    "3 epochs": {"num_train_epochs": 3, "learning_rate": 0.05, "weight_average": 0.0},
    "1 epoch, averaged": {"num_train_epochs": 1, "learning_rate": 0.05, "weight_average": 0.15},
    "3 epochs, averaged": {"num_train_epochs": 3, "learning_rate": 0.05, "weight_average": 0.15},
    "10 epochs, averaged": {"num_train_epochs": 10, "learning_rate": 0.02, "weight_average": 0.15},
}


class FeatureConfig(PretrainedConfig):
    model_type = "linear-features"


class FeatureModel(PreTrainedModel):
    """A frozen feature vector for each token and a linear head: a reward model without a trunk."""

    config_class = FeatureConfig
    base_model_prefix = "features"

    def __init__(self, feature_VD: np.ndarray):
        super().__init__(FeatureConfig(num_labels=1))
        self.features = torch.nn.Embedding.from_pretrained(torch.tensor(feature_VD, dtype=torch.float32))
        self.score = torch.nn.Linear(feature_VD.shape[1], 1, bias=False)
        torch.nn.init.zeros_(self.score.weight)

    @property
    def base_model(self):
        return lambda input_ids, **_: SimpleNamespace(last_hidden_state=self.features(input_ids))

    def get_input_embeddings(self):
        return self.features


def tokenizer_of(size: int) -> PreTrainedTokenizerFast:
    vocab = {"[PAD]": 0, "[EOS]": 1} | {f"r{i}": i for i in range(2, size)}
    core = Tokenizer(models.WordLevel(vocab, unk_token="[EOS]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", eos_token="[EOS]")


def replication(seed: int) -> dict[str, float]:
    """2n * excess / d of maximum likelihood and of the trainer under each setting."""
    rng = np.random.default_rng(seed)
    truth_D = rng.normal(size=D)
    truth_D *= SD / np.sqrt(2) / np.linalg.norm(truth_D)
    feature_VD = rng.normal(size=(2 + 2 * N, D))
    first_N, second_N = np.arange(2, 2 + N), np.arange(2 + N, 2 + 2 * N)
    gap_ND = feature_VD[first_N] - feature_VD[second_N]
    z_N = rng.random(N) < 1 / (1 + np.exp(-gap_ND @ truth_D))
    fresh_MD = rng.normal(size=(200_000, D)) * np.sqrt(2)

    def score(weight_D: np.ndarray) -> float:
        t, s = fresh_MD @ truth_D, fresh_MD @ weight_D
        p = 1 / (1 + np.exp(-t))
        excess = p * (np.logaddexp(0, -s) - np.logaddexp(0, -t))
        excess += (1 - p) * (np.logaddexp(0, s) - np.logaddexp(0, t))
        return 2 * N * float(excess.mean()) / D

    sign_N = np.where(z_N, 1.0, -1.0)

    def loss(weight_D: np.ndarray) -> tuple[float, np.ndarray]:
        x = sign_N * (gap_ND @ weight_D)
        slope_N = -sign_N / (1 + np.exp(x))
        return np.logaddexp(0, -x).sum(), slope_N @ gap_ND

    out = {"maximum likelihood": score(minimize(loss, np.zeros(D), jac=True).x)}
    comparisons, pairs = [], []
    for i in range(N):
        texts = [f"r{first_N[i]}", f"r{second_N[i]}"]
        columns = {"finished": [False, False]}  # the score is read at the response's only token
        comparisons.append(Comparison("", texts, [1, 2] if z_N[i] else [2, 1], None, columns))
        pairs += comparisons[-1].pairs()
    for name, options in SETTINGS.items():
        model = FeatureModel(feature_VD).eval()
        scorer = RewardModel(model, tokenizer_of(len(feature_VD)))
        with tempfile.TemporaryDirectory() as folder:
            config = reward.RewardConfig(
                output_dir=folder,
                seed=seed,
                train_batch_size=16,
                adam_beta2=0.999,
                weight_decay=0.0,
                patience=10**6,
                save_every=0,
                **options,
            )
            with Stage("reward", config) as stage:
                stage.begin({})
                # No pairs beyond the n: the training pairs themselves choose the weights that are kept.
                optimise(scorer, "bradley_terry", comparisons, pairs, config, stage)
        out[name] = score(scorer.model.score.weight[0].detach().double().numpy())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replications", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [replication(seed) for seed in range(options.replications)]
    print(f"2n * excess / d, d = {D}, n = {N}, {len(rows)} replications; the limit is 1")
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        print(f"{name:>22}  {values.mean():6.3f} ± {error:.3f}")


if __name__ == "__main__":
    main()
