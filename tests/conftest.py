"""Small real models, made from configurations with the real libraries; nothing is downloaded."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from environment import missing
from preferl.models import tiny
from small_models import TEXTS, make_language_model

# What is ignored here, as in the background of a script, would be ignored in every program that tests start;
# what is handled is not.
for name in ("SIGINT", "SIGHUP"):
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda number, frame: None)

LONG = ("test_verdicts.py", "test_demo.py", "test_optimum.py", "test_tutorial.py", "test_exercises.py")


def pytest_collection_modifyitems(items):
    """The longest tests first, so that the other processes have something to do beside them."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small models gain nothing from threads, and results repeat."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.train_tokenizer(TEXTS, 300)


@pytest.fixture(scope="session", params=["llama", "gpt2", "qwen3"])
def language_model(request, tokenizer):
    return make_language_model(request.param, tokenizer)


@pytest.fixture(scope="session")
def policy_directory(tmp_path_factory, tokenizer) -> Path:
    """A saved Llama with its tokenizer."""
    path = tmp_path_factory.mktemp("policy")
    make_language_model("llama", tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def encoder_directory(tmp_path_factory) -> Path:
    """A saved BERT classifier with a WordPiece tokenizer of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
        pad_token_id=0,
        **{tiny.ORIGIN: tiny.NEW},
    )
    path = tmp_path_factory.mktemp("encoder")
    BertForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder PREFERL_DATA; tests that need it skip where it is not set."""
    root = os.environ.get("PREFERL_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("PREFERL_DATA names no folder with real data")
    return Path(root)


@pytest.fixture(scope="session")
def browser():
    """Debian's chromium, without a window."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        missing("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
