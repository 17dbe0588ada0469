"""``preferl chat``: which model answers, how it is sampled, what is scored, what becomes of a preference."""

import copy
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from io import StringIO

import pytest
import torch

from preferl import chat, cli
from preferl.data import sources
from preferl.models import load
from preferl.models.reward import RewardModel, load_reward_model
from preferl.options.chat import ChatConfig
from preferl.options.shared import SamplingOptions
from preferl.runs import devices
from preferl.runs.errors import UsageError
from preferl.runs.mark import claim
from preferl.runs.pair_files import append_pair, check_pair_file
from preferl.runs.policies import FoundPolicy, find_policy
from preferl.sampling.policy import Policy
from preferl.sampling.streaming import TextStream
from small_models import make_language_model

PROMPT = "Name two colours."
SHORT = {"response_length": 12, "temperature": 0.9}


@pytest.fixture(scope="module")
def instruct_directory(tmp_path_factory, tokenizer):
    """A language model whose prompts are dialogues."""
    own = copy.deepcopy(tokenizer)
    own.init_kwargs[load.AS_DIALOGUE] = True
    path = tmp_path_factory.mktemp("instruct")
    make_language_model("llama", own).save_pretrained(path)
    own.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reward_directory(tmp_path_factory, policy_directory):
    path = tmp_path_factory.mktemp("reward")
    torch.manual_seed(1)
    load.save(
        *load_reward_model(str(policy_directory), torch.device("cpu"), new_head_allowed=True), path / "model"
    )
    return path


def make_stage(run, name, kind, model=None, done=True, **options):
    """A stage of a run, as its directory says what it is."""
    stage = run / name
    stage.mkdir(parents=True)
    (stage / "manifest.json").write_text(json.dumps({"stage": kind}))
    (stage / "config.yaml").write_text(json.dumps(options))
    os.utime(stage / "manifest.json", ns=(len(list(run.iterdir())) * 10**9,) * 2)
    if model is not None:
        shutil.copytree(model, stage / "model")
    if done:
        (stage / "DONE").write_text("{}")
    return stage


@pytest.fixture
def run(tmp_path, policy_directory, reward_directory):
    """A run that ended, as far as chat looks at it."""
    run = tmp_path / "runs" / "mine"
    claim(run, "run", "mine")
    sampled = {"temperature": 0.7, "response_length": 9, "stop_sequences": []}
    make_stage(run, "sft", "sft", policy_directory, **sampled)
    make_stage(run, "reward", "reward", reward_directory / "model")
    make_stage(run, "rl", "rl", policy_directory, reward_model="length", **sampled)
    make_stage(run, "evaluate", "evaluate", **sampled | {"response_length": 10})
    return run


def dialogue_with(*models, scorers=None, show=None, **options):
    config = ChatConfig(device="cpu", **SHORT | options)
    speakers = [chat.Speaker(find_policy(str(model)), config) for model in models]
    return chat.Dialogue(speakers, scorers or {}, config, show or (lambda text: None))


def call(capsys, *arguments):
    code = cli.main(["chat", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# -------------------------------------------------------------------------------------------- which model


def test_a_run_stands_for_its_rl_with_the_sampling_of_its_evaluation(run):
    found = find_policy(str(run))
    assert found == FoundPolicy(
        given=str(run),
        path=str(run / "rl"),
        why="its rl",
        sampling={"temperature": 0.7, "response_length": 10, "stop_sequences": []},
        sampled_in=str(run / "evaluate"),
        reward=str(run / "reward"),
    )
    assert found.folder == run / "rl" / "model"
    shutil.rmtree(run / "evaluate")
    assert find_policy(str(run)).sampling["response_length"] == 9


def test_else_dpo_else_the_last_sft_and_never_the_reward_models_own(run, policy_directory):
    shutil.rmtree(run / "rl" / "model")
    found = find_policy(str(run))
    assert (found.path, found.why) == (str(run / "sft"), "its sft; rl is not finished")
    make_stage(run, "distil", "sft", policy_directory)
    make_stage(run, "backbone", "sft", policy_directory)
    assert find_policy(str(run)).path == str(run / "distil")
    make_stage(run, "dpo", "dpo", policy_directory)
    assert find_policy(str(run)).path == str(run / "dpo")
    make_stage(run, "rl-2", "rl", policy_directory)
    assert find_policy(str(run)).path == str(run / "rl-2")


def test_of_several_policies_it_is_the_one_that_was_evaluated(run, policy_directory):
    """As `preferl card` and `preferl push` take it."""
    make_stage(run, "dpo", "dpo", policy_directory)
    assert find_policy(str(run)).path == str(run / "rl")
    manifest = {"stage": "evaluate", "parents": {"model_name_or_path": {"path": "../dpo/model"}}}
    (run / "evaluate" / "manifest.json").write_text(json.dumps(manifest))
    found = find_policy(str(run))
    assert (found.path, found.why) == (str(run / "dpo"), "its dpo, which was evaluated")
    # What has no model any more is not talked with.
    shutil.rmtree(run / "dpo" / "model")
    assert find_policy(str(run)).path == str(run / "rl")


def test_a_run_without_a_reward_model_has_what_rl_was_trained_against(run):
    shutil.rmtree(run / "reward")
    assert find_policy(str(run)).reward == "length"


def test_a_stage_and_its_model_are_sampled_as_the_stage_samples(run, policy_directory):
    for name in ("rl", "rl/model"):
        found = find_policy(str(run / name))
        assert (found.why, found.reward) == ("", None)
        assert found.sampling["response_length"] == 9
        assert found.folder == run / "rl" / "model"
    assert find_policy(str(policy_directory)).sampling == {}
    assert find_policy("owner/name") == FoundPolicy("owner/name", "owner/name")


def test_what_is_no_policy_is_refused_by_name(run, reward_directory, tmp_path):
    make_stage(run, "collect", "collect")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    begun = tmp_path / "begun"
    claim(begun, "run", "begun")
    make_stage(begun, "sft", "sft", done=False)
    claim(tmp_path / "grid", "sweep", "grid")
    for name, words in [
        (run / "reward", "is a reward model .* writes none"),
        (reward_directory / "model", "is a reward model .* writes none"),
        (run / "collect", "of the kind collect, which makes no language model"),
        (tmp_path / "notes.txt", "is a file"),
        (tmp_path / "empty", "holds no run, no stage and no model"),
        (begun, "has no finished stage that makes a policy"),
        (begun / "sft", "is not finished"),
        (tmp_path / "grid", "is a sweep of several runs"),
        (tmp_path / "absent", "there is no folder"),
        ("./absent", "there is no folder './absent'"),
    ]:
        with pytest.raises(UsageError, match=words):
            find_policy(str(name))


def test_what_cannot_work_is_refused_before_torch_is_loaded(run, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    cases = [
        (["absent/a/b"], "there is no folder 'absent/a/b'"),
        ([run / "reward"], "it scores texts and writes none"),
        ([run, "--reward_model", "absent/a/b"], "there is no folder 'absent/a/b'"),
        ([run, "--preferences", tmp_path / "pairs.csv"], "ends with .jsonl"),
        ([run, "--preferences", tmp_path / "prompts.jsonl"], "its first row has no prompt, chosen, rejected"),
        ([run, "--temperature", "0"], "temperature"),
        ([], "takes one model"),
        ([run, run], "takes one model"),
        (["--compare", run], "--compare needs two models"),
        ([run, "--prompt", ""], "nothing to answer"),
        ([run], "nothing to answer"),  # standard input is empty here
    ]
    program = (
        "import json, sys, preferl.cli as c\n"
        "codes = []\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try: codes.append(c.main(['chat', *arguments]))\n"
        "    except SystemExit as error: codes.append(error.code)\n"
        "print(json.dumps([codes, 'torch' in sys.modules]))"
    )
    arguments = json.dumps([list(map(str, given)) for given, _ in cases])
    command = [sys.executable, "-c", program, arguments]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert json.loads(done.stdout) == [[2] * len(cases), False]
    for line, (given, words) in zip(done.stderr.splitlines(), cases, strict=True):
        assert words in line, given


# ------------------------------------------------------------------------------------------------ answers


def test_an_answer_is_shown_as_it_is_drawn_and_drawn_as_an_evaluation_draws(policy_directory):
    pieces = []
    dialogue = dialogue_with(policy_directory, show=pieces.append, seed=3)
    dialogue.ask(PROMPT)
    alone = Policy.load(str(policy_directory), "cpu")
    generator = devices.generator(3, "chat")
    expected = [alone.respond([PROMPT], 1, generator, **SHORT).completions[0] for _ in range(2)]
    assert expected[0] != expected[1]
    assert "".join(pieces) == expected[0] + "\n"
    assert len([piece for piece in pieces if piece]) > 3
    pieces.clear()
    dialogue.again()
    assert "".join(pieces) == expected[1] + "\n"


def test_a_character_of_several_tokens_is_shown_when_it_is_whole(policy_directory):
    policy = Policy.load(str(policy_directory), "cpu")
    text = " é 🌍\u200d🌍. Done"
    pieces = []
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text)
    stream = TextStream(policy.tokenizer, policy.sampling(SamplingOptions()), ids[0], pieces.append)
    for token in [*ids, policy.tokenizer.eos_token_id]:
        stream([token])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    stream.end(text)
    assert pieces[-1] == ""
    stream.end("otherwise")  # where a tokenizer writes the whole differently
    assert pieces[-1] == "\notherwise"


def test_a_stop_text_ends_the_drawing(policy_directory):
    dialogue = dialogue_with(policy_directory, seed=3)
    dialogue.ask(PROMPT)
    text = dialogue.answers[0].text
    stop = next(char for char in text if char.isascii() and char.isprintable())
    pieces = []
    dialogue = dialogue_with(policy_directory, seed=3, show=pieces.append)
    speaker = dialogue.speakers[0]
    speaker.options.stop_sequences = [stop]
    speaker.sampling = speaker.policy.sampling(speaker.options)
    dialogue.ask(PROMPT)
    assert dialogue.answers[0] == chat.Answer("".join(pieces).removesuffix("\n"), True)
    assert stop in dialogue.answers[0].text
    assert text.startswith(dialogue.answers[0].text)
    assert dialogue.answers[0].text != text


def test_standard_output_holds_the_answer_alone(capsys, run, policy_directory, monkeypatch):
    """Of a run: with its sampling, and the reward of its reward stage."""
    code, out, err = call(capsys, run, "--prompt", PROMPT, "--device", "cpu")
    assert code == 0
    policy = Policy.load(str(policy_directory), "cpu")
    generator = devices.generator(0, "chat")
    made = policy.respond([PROMPT], 1, generator, temperature=0.7, response_length=10)
    assert out == made.completions[0] + "\n"
    assert f"{run}: its rl ({run / 'rl'})" in err
    assert f"temperature 0.7, at most 10 tokens, as in {run / 'evaluate'}" in err
    assert "no chat template of its own: a prompt is plain text" in err
    scored = RewardModel.load(str(run / "reward"), "cpu")([PROMPT], made.completions, made.finished)[0]
    assert f"reward {scored:.3f}  {run / 'reward'}" in err
    # The same from standard input, where it is no terminal.
    monkeypatch.setattr(sys, "stdin", StringIO(PROMPT + "\n"))
    assert call(capsys, run, "--device", "cpu")[:2] == (0, out)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("chat_rewards:exact", "it asks for answer, which a dialogue does not have"),
        ("absent_rewards:exact", "cannot be imported"),
    ],
)
def test_a_reward_that_nobody_asked_for_is_left_out_with_a_note(
    capsys, run, policy_directory, tmp_path, monkeypatch, reward, said
):
    (tmp_path / "chat_rewards.py").write_text("def exact(completions, answer):\n    return [0.0]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    shutil.rmtree(run / "reward")
    shutil.rmtree(run / "rl")
    make_stage(run, "rl", "rl", policy_directory, reward_model=reward)
    code, out, err = call(capsys, run, "--prompt", PROMPT, "--device", "cpu")
    assert (code, bool(out.strip())) == (0, True)
    assert f"no rewards by {reward}: " in err
    assert said in err
    # Asked for by name it is refused.
    code, _, err = call(capsys, run, "--prompt", PROMPT, "--device", "cpu", "--reward_model", reward)
    assert code == 2
    assert "answer" in err or "cannot be imported" in err


def test_two_models_answer_the_same_with_the_rewards_of_each(
    capsys, policy_directory, run, tokenizer, tmp_path
):
    torch.manual_seed(5)
    other = make_language_model("qwen3", tokenizer)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    code, out, err = call(
        capsys, "--compare", run, tmp_path / "other", "--prompt", PROMPT, "--device", "cpu",
        "--response_length", "11", "--reward_model", "0.5*length + 2*tokens",
    )  # fmt: skip
    assert code == 0
    answers, rewards = [], []
    for name in (policy_directory, tmp_path / "other"):
        policy = Policy.load(str(name), "cpu")
        temperature = 0.7 if name == policy_directory else 1.0
        generator = devices.generator(0, "chat")
        made = policy.respond([PROMPT], 1, generator, temperature=temperature, response_length=11)
        answers.append(made.completions[0])
        words, tokens = len(made.completions[0].split()), made.lengths[0]
        rewards.append((words, tokens))
    assert out == "".join(f"{answer}\n" for answer in answers)
    lines = [line for line in err.splitlines() if line.startswith(("a  ", "b  ", "   reward"))]
    assert lines[0] == f"a  {run / 'rl'}"
    assert lines[2] == f"b  {tmp_path / 'other'}"
    for line, (_, tokens) in zip(lines[1::2], rewards, strict=True):
        assert "0.5*length + 2*tokens (length " in line
        assert f"tokens {tokens / 100:.3f})" in line


def test_a_reward_that_knows_nothing_of_a_prompt_fails_after_the_answer(capsys, policy_directory):
    arguments = [policy_directory, "--prompt", "Hm?", "--device", "cpu", "--reward_model", "world"]
    code, out, err = call(capsys, *arguments, "--response_length", "5")
    assert code == 2
    assert out.endswith("\n")
    assert "is not one of its prompts" in err


# ----------------------------------------------------------------------------------------------- dialogue


def test_turns_are_kept_and_a_preference_goes_on(instruct_directory, tmp_path):
    file = tmp_path / "mine.jsonl"
    dialogue = dialogue_with(instruct_directory, preferences=str(file), system="Be brief.")
    dialogue.ask("Hi")
    first = dialogue.answers[0]
    dialogue.again()
    second = dialogue.answers[1]
    dialogue.again()
    third = dialogue.answers[1]
    assert dialogue.answers == [second, third]
    assert len({first.text, second.text, third.text}) == 3
    dialogue.better("a")
    dialogue.ask("And then?")
    system, hi = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    said = {"role": "assistant", "content": second.text}
    assert dialogue.prompt == [system, hi, said, {"role": "user", "content": "And then?"}]
    dialogue.again()
    a, b = dialogue.answers
    dialogue.better("b")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [
        ([system, hi], second.text, third.text),
        (dialogue.prompt, b.text, a.text),
    ]
    assert rows[1]["finished_chosen"] == b.finished
    dialogue.reset()
    dialogue.ask("Hi")
    assert dialogue.prompt == [system, hi]


def test_of_two_models_the_dialogue_goes_on_with_the_better(instruct_directory, tmp_path):
    dialogue = dialogue_with(instruct_directory, instruct_directory, preferences=str(tmp_path / "p.jsonl"))
    dialogue.speakers[1].generator.manual_seed(99)
    dialogue.ask("Hi")
    a, b = dialogue.answers
    assert dialogue.kept == a
    dialogue.better("b")
    with pytest.raises(UsageError, match="no two answers"):  # the same is not added twice
        dialogue.better("b")
    dialogue.ask("So?")
    assert dialogue.prompt[1] == {"role": "assistant", "content": b.text}


def test_what_was_preferred_is_read_back(capsys, policy_directory, instruct_directory, tmp_path):
    """Prompts of one turn as texts, of several as messages; beside what was there, a torn row too."""
    file = tmp_path / "pairs.jsonl"
    before = json.dumps({"prompt": "Old?", "chosen": "Yes.", "rejected": "No."}) + '\n{"prompt": "torn'
    file.write_text(before)
    check_pair_file(file)
    for model in (policy_directory, instruct_directory):
        dialogue = dialogue_with(model, preferences=str(file))
        dialogue.ask("Tell me.")
        dialogue.again()
        dialogue.better("a")
        dialogue.ask("More.")
        dialogue.again()
        dialogue.better("b")
    assert file.read_text().startswith(before + "\n")
    prompts = [json.loads(line)["prompt"] for line in file.read_text().splitlines()[2:]]
    assert prompts[:3] == ["Tell me.", "More.", "Tell me."]
    assert [message["role"] for message in prompts[3]] == ["user", "assistant", "user"]
    found = sources.load_source(name=str(file), bad_rows="skip")
    pairs = [pair for comparison in found.train.comparisons for pair in comparison.pairs()]
    assert len(pairs) == 5
    assert pairs[-1].columns["finished_chosen"] in (True, False)
    assert cli.main(["data", "describe", str(file), "--bad_rows", "skip"]) == 0
    assert "read as preference by prompt, chosen, rejected" in capsys.readouterr().out


def test_a_pair_that_says_nothing_is_not_added(policy_directory, tmp_path):
    dialogue = dialogue_with(policy_directory, preferences=str(tmp_path / "p.jsonl"))
    with pytest.raises(UsageError, match="no prompt yet"):
        dialogue.again()
    with pytest.raises(UsageError, match="no two answers"):
        dialogue.better("a")
    dialogue.ask(PROMPT)
    with pytest.raises(UsageError, match="no two answers"):
        dialogue.better("a")
    dialogue.again()
    for answers, words in [(["same", "same"], "both answers are the same"), (["", "x"], "is empty")]:
        dialogue.answers = [chat.Answer(text, True) for text in answers]
        with pytest.raises(UsageError, match=words):
            dialogue.better("b")
    with pytest.raises(UsageError, match="say which"):
        dialogue.better("c")
    assert not (tmp_path / "p.jsonl").exists()


def test_a_row_is_one_line_whatever_is_in_it(tmp_path):
    row = {"prompt": "Hi\u2028\n", "chosen": "é", "rejected": "b"}
    for _ in range(2):
        append_pair(tmp_path / "p.jsonl", row)
    lines = (tmp_path / "p.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:2]] == [row, row]
    assert lines[2:] == [b""]


def test_a_dialogue_that_is_too_long_loses_its_beginning_and_that_is_said(capsys, instruct_directory):
    dialogue = dialogue_with(instruct_directory)  # of 128 positions
    dialogue.ask("Hi")
    assert "were cut" not in capsys.readouterr().out
    dialogue.ask("very " * 200)
    assert "1 of 2 prompts were cut" in capsys.readouterr().out
    dialogue.reset()
    dialogue.ask("Hi")
    assert "were cut" not in capsys.readouterr().out


def test_a_plain_model_takes_no_system_message(policy_directory):
    with pytest.raises(UsageError, match="has no chat template of its own, in which --system"):
        dialogue_with(policy_directory, system="Be brief.")


def test_commands_and_errors_end_no_dialogue(capsys, policy_directory, monkeypatch, tmp_path):
    dialogue = dialogue_with(policy_directory, preferences=str(tmp_path / "p.jsonl"))
    lines = iter(
        ["/better a", "", "/rubbish", "/help", PROMPT, "/again", "/better b", "/reset", "/again", "/quit"]
    )
    assert chat.converse(dialogue, lambda prompt: next(lines)) == 0
    said = capsys.readouterr().out
    for words in (
        "no two answers to compare",
        "/rubbish is no command",
        "answers the last prompt again",
        f"b is better: added to {tmp_path / 'p.jsonl'}",
        "the dialogue is forgotten",
        "no prompt yet",
    ):
        assert words in said
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 1


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, command, place):
        self.end, other = pty.openpty()
        environment = os.environ | {"TERM": "dumb"}
        self.process = subprocess.Popen(
            command,
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=place,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # the controlling one
        )
        os.close(other)
        self.seen = ""

    def until(self, words, seconds=90):
        """What came until these words."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.end], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.end, 65536).decode(errors="replace")
                except OSError:  # the program has ended
                    assert words in self.seen, self.seen
        before, _, self.seen = self.seen.partition(words)
        return before

    def type(self, text):
        os.write(self.end, text.encode())


def endless(place, tokenizer):
    """The command of a dialogue with a model whose answers take minutes."""
    torch.manual_seed(0)
    model = make_language_model("llama", tokenizer)
    model.config.max_position_embeddings = 30_000
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] = 0.0  # the largest of 300 logits is above 0
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    command = [sys.executable, "-m", "preferl", "chat", str(place / "model"), "--device", "cpu"]
    return [*command, "--temperature", "0.02", "--response_length", "29000"]


def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends(tmp_path, tokenizer):
    terminal = Terminal(endless(tmp_path, tokenizer), tmp_path)
    try:
        terminal.until("> ")
        terminal.type(PROMPT + "\n")
        terminal.until(PROMPT)
        time.sleep(1.0)
        terminal.type("\x03")
        answer = terminal.until("stopped; this answer is not kept")
        assert len(answer) > 20
        strange = {c for c in answer if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\r\n\t"}
        assert strange <= {"\x03"}
        # Ten seconds after a signal commands that save something are ended; a dialogue is not.
        terminal.until("> ")
        terminal.type("/again\n")
        terminal.until("no prompt yet")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.end)


def test_ctrl_c_ends_an_answer_to_a_script(tmp_path, tokenizer):
    command = [*endless(tmp_path, tokenizer), "--prompt", PROMPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "a prompt is plain text" in line:
                break
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(20) == 75
    assert "Traceback" not in rest
