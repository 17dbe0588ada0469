"""Replies on disk: what was paid for is never asked again, also after kill -9, by all who share a folder."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from equal_runs import equal_runs
from judge_server import Body, more_good, parts_of, reply, serving
from preferl.judging.juries import keep_replies
from preferl.judging.replies import FOLDER, ReplyStore, key_of
from preferl.options.judging import JudgeConfig

N = 30  # pairs
ANSWERED = 23  # requests before the kill
ROWS = [{"prompt": f"Name fruit {i}.", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(N)]
CANDIDATES = [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]} for row in ROWS]
USAGE = {"prompt_tokens": 90, "completion_tokens": 4}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def judge(body: Body, n: int) -> Any:
    """Of pairs the better one, of single responses a score, with what it cost; of one of them nothing."""
    parts = parts_of(body["messages"][0]["content"])
    if parts["PROMPT"] == "Name fruit 7.":
        return reply("I would rather not say.", usage=USAGE)
    if "RESPONSE B" in parts:
        status, headers, answer = more_good(body, n)
        return status, headers, answer | {"usage": USAGE}
    return reply(f"SCORE: {9 if 'good' in parts['RESPONSE'] else 2}", usage=USAGE)


class Till:
    """A judge that answers so many requests, and says nothing to others until it is asked no more of them."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.answered: Counter[str] = Counter()
        self.lock, self.released = threading.Lock(), threading.Event()

    def __call__(self, body: Body, n: int) -> Any:
        with self.lock:
            pays = self.left is None or self.left > 0
            if pays:
                self.answered[json.dumps(body, sort_keys=True)] += 1
                self.left = None if self.left is None else self.left - 1
        if not pays:
            self.released.wait(60)
            return 0, {}, b""
        return judge(body, n)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def command(folder: Path, words: list[str]):
    """The command in a folder of its own, with the data beside it."""
    folder.mkdir(exist_ok=True)
    write(folder / "pairs.jsonl", ROWS)
    write(folder / "candidates.jsonl", CANDIDATES)
    with open(folder / "log.txt", "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "preferl", *words, "--output_dir", "out"],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def ended(folder: Path, words: list[str]) -> str:
    with command(folder, words) as process:
        code = process.wait(120)
    text = (folder / "log.txt").read_text()
    assert code == 0, text
    return text


def kept(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*/*.json"))


COLLECT = ["collect", "--responses_file", "candidates.jsonl", "--annotator"]
AUDIT = ["audit", "--dataset_name", "pairs.jsonl", "--reward_model"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [COLLECT, AUDIT], ids=["collect", "audit"])
def test_after_kill_9_only_what_is_missing_is_asked_and_the_bytes_are_the_same(tmp_path, words):
    till = Till()
    with serving(till) as server:
        words = [*words, f"judge:{server.url}#m?unparsable=skip&prices=1,2"]
        whole = ended(tmp_path / "whole", words)
        assert "unreadable, for example: no verdict or score in its last line" in whole
        asked = dict(till.answered)
        assert set(asked.values()) == {1}

        till.answered.clear()
        till.left = ANSWERED
        killed = tmp_path / "killed"
        with command(killed, words) as process:
            limit = time.monotonic() + 60
            while kept(killed / "out" / FOLDER) < ANSWERED:
                assert time.monotonic() < limit, (killed / "log.txt").read_text()
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
        till.released.set()
        till.left = None
        text = ended(killed, words)
        assert f"{ANSWERED} replies had been kept before" in text
        assert dict(till.answered) == asked  # the same requests, each answered and paid once
        equal_runs(killed / "out", tmp_path / "whole" / "out")
        summary = json.loads((killed / "out" / "summary.json").read_text())
        (report,) = summary["judges"].values()
        assert report["prompt_tokens"] == 90 * len(asked)
        assert report["cost"] == pytest.approx((90 + 2 * 4) * len(asked) / 1e6)

        if "audit" in words:
            return
        # A redo reads them too: to pay again has to be asked for.
        till.answered.clear()
        ended(killed, [*words, "--fresh"])
        assert not till.answered
        equal_runs(killed / "out", tmp_path / "whole" / "out")


@pytest.mark.slow
def test_several_commands_share_a_folder_and_no_key_lies_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    till, shared = Till(), tmp_path / "shared"
    with serving(till) as server:
        name = f"judge:{server.url}#m?unparsable=skip&api_key_env=JUDGE_KEY"
        words = [*AUDIT, name, "--judge_replies", str(shared)]
        ended(tmp_path / "one", words)
        asked = len(till.answered)
        ended(tmp_path / "other", words)
        ended(tmp_path / "seed", [*words, "--seed", "1"])  # another seed is another question
    assert set(till.answered.values()) == {1}
    assert len(till.answered) == 2 * asked
    assert kept(shared) == 2 * asked
    assert not (tmp_path / "one" / "out" / FOLDER).exists()
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"very-secret" in path.read_bytes() for path in everything)


def test_equal_seeds_ask_the_same_and_others_something_else():
    asked = []
    for seed in (3, 3, 4):
        with serving(judge) as server:
            server.judge(False, JudgeConfig(seed=seed))(["p", "q"], ["a", "b"])
            asked.append({json.dumps(body, sort_keys=True) for body in server.bodies})
    assert asked[0] == asked[1]
    assert not asked[0] & asked[2]


def test_what_is_kept_is_the_question_and_the_answer(tmp_path):
    with serving(judge) as server:
        scorer = server.judge(False)
        keep_replies([scorer], tmp_path)
        assert scorer(["p", "p"], ["good", "bad"]) == pytest.approx([8 / 9, 1 / 9])
        one, _ = sorted((tmp_path / FOLDER).glob("*/*.json"))
        content = json.loads(one.read_text())
        assert content["asked"] in server.bodies
        assert content["answer"]["usage"] == USAGE
        assert content["answer"]["content"].startswith("SCORE: ")
        assert content["key"] == key_of(scorer.backend.url, content["asked"], 0) == one.stem

        # What is damaged is asked again; what a kill left half-written goes.
        one.write_text(one.read_text()[:40])
        stray = one.with_name("stray.tmp")
        stray.write_text("{")
        again = server.judge(False)
        keep_replies([again], tmp_path)
        assert again(["p", "p"], ["good", "bad"]) == pytest.approx([8 / 9, 1 / 9])
        assert len(server.bodies) == 3
        assert again.backend.usage.kept == 1
        assert not stray.exists()

        nowhere = server.judge(False, options="?replies=none")
        keep_replies([nowhere], tmp_path)
        nowhere(["p"], ["good"])
        assert len(server.bodies) == 4

        for _ in range(2):  # from Python, without a stage
            server.judge(False, options=f"?replies={tmp_path / 'there'}")(["p"], ["good"])
        assert len(server.bodies) == 5
        assert kept(tmp_path / "there") == 1


def test_other_parameters_are_another_question(tmp_path):
    with serving(judge) as server:
        for options in ("", "?temperature=0.5", "?max_tokens=7", '?parameters={"top_p":0.9}', "?seed=1"):
            for _ in range(2):
                scorer = server.judge(False, options=options)
                keep_replies([scorer], tmp_path)
                scorer(["p"], ["good"])
        assert len(server.bodies) == 5


def test_many_may_write_the_same_reply_at_once(tmp_path):
    store = ReplyStore(tmp_path)

    def put(i: int) -> Any:
        store.put("ab12", {"n": 1}, {"content": "x" * 100_000})
        return store.get("ab12")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(put, range(64)))
    assert all(answer == {"content": "x" * 100_000} for answer in found)
    assert [path.name for path in (tmp_path / "ab").iterdir()] == ["ab12.json"]
