"""``preferl design-reward``: documents for known behaviours, for a free text, and from a language model."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from preferl.cli import COMMANDS, main
from preferl.design import designer
from preferl.design.designer import DOCUMENTS, EXAMPLES, DesignConfig, behaviours, drafts, sections
from preferl.runs.errors import UsageError


@pytest.mark.parametrize("behaviour", ["helpfulness", "coding ability", "Safety", "honesty", "Brevity"])
def test_the_documents_are_about_the_behaviour(behaviour, tmp_path, capsys):
    folder = tmp_path / "design"
    assert main(["design-reward", behaviour, "--output_dir", str(folder)]) == 0
    assert len(capsys.readouterr().out.split()) == 4
    title = {"coding ability": "coding", "Safety": "safety", "Brevity": "conciseness"}.get(
        behaviour, behaviour
    )
    for name in DOCUMENTS:
        text = (folder / name).read_text()
        assert title in text.splitlines()[0]
        assert "{{" not in text
        assert "{%" not in text
        assert "\n\n\n" not in text
    assert EXAMPLES in (folder / "guidelines.md").read_text()
    prompt = (folder / "prompt.md").read_text()
    assert all(f"=== {name}" in prompt for name in DOCUMENTS)


def test_known_behaviours_say_what_others_do_not():
    texts = {name: drafts(name)["guidelines.md"] for name in behaviours() if name != "general"}
    assert "median" in texts["coding"]
    assert "median" not in texts["safety"]
    assert "refusing what is harmless is a fault" in texts["safety"]
    assert len({text.split("\n", 1)[1] for text in texts.values()}) == len(texts) == 5


def test_an_unknown_behaviour_asks_for_a_model_that_writes_about_it(tmp_path, capsys):
    command = ["design-reward", "speaks like a pirate", "--output_dir", str(tmp_path)]
    assert main(command) == 2
    said = capsys.readouterr().err
    for words in ("helpfulness, coding, safety", "speaks like a pirate", "--model", "prompt.md", "--answer"):
        assert words in said
    # Nothing that is about nothing is written; what a model is asked is.
    assert [path.name for path in tmp_path.iterdir()] == ["prompt.md"]
    assert "> speaks like a pirate" in (tmp_path / "prompt.md").read_text()
    # The answer of a model that was asked by hand has to be whole, and has to have examples.
    answer = tmp_path / "answer.txt"
    parts = {"protocol.md": "# Ships", "guidelines.md": "# Arr", "criteria.md": "# Parrots"}
    for texts, missing in (
        ({"protocol.md": "# Ships"}, "=== guidelines.md, === criteria.md"),
        (parts, EXAMPLES),
    ):
        answer.write_text("".join(f"=== {name}\n{text}\n" for name, text in texts.items()))
        assert main([*command, "--answer", str(answer)]) == 2
        assert missing in capsys.readouterr().err
    parts["guidelines.md"] += f"\n\n{EXAMPLES}\n\n**Prompt:** Good day!"
    answer.write_text("".join(f"=== {name}\n{text}\n" for name, text in parts.items()))
    assert main([*command, "--answer", str(answer)]) == 0
    assert {name: (tmp_path / name).read_text() for name in DOCUMENTS} == {
        name: text + "\n" for name, text in parts.items()
    }
    assert main([*command, "--answer", str(answer)]) == 2  # they are there
    assert main([*command, "--answer", str(tmp_path / "absent"), "--fresh"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_commands_in_the_protocol_exist():
    text = "".join(drafts("helpfulness").values())
    for word in ("label", "reward", "rl", "evaluate", "audit"):
        assert f"preferl {word}" in text
        assert word in COMMANDS


def test_documents_are_not_overwritten(tmp_path, capsys):
    command = ["design-reward", "helpfulness", "--output_dir", str(tmp_path)]
    assert main(command) == 0
    (tmp_path / "guidelines.md").write_text("mine")
    assert main(command) == 2
    assert "--fresh" in capsys.readouterr().err
    assert (tmp_path / "guidelines.md").read_text() == "mine"
    assert main([*command, "--fresh"]) == 0
    assert (tmp_path / "guidelines.md").read_text() != "mine"


@pytest.mark.parametrize("behaviour", ["", "   ", "x" * 2001])
def test_no_behaviour_is_refused(tmp_path, behaviour):
    with pytest.raises(UsageError, match="describe it"):
        designer.write(behaviour, DesignConfig(output_dir=str(tmp_path)))
    assert main(["design-reward", "--output_dir", str(tmp_path)]) == 2


@pytest.fixture
def endpoint(monkeypatch):
    """A server that speaks the chat API and answers with ``endpoint.answer``."""
    monkeypatch.setenv("no_proxy", "*")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.asked.append(asked["messages"][-1]["content"])
            choice = {"index": 0, "message": {"role": "assistant", "content": server.answer}}
            choice["finish_reason"] = server.finish
            body = json.dumps({"object": "chat.completion", "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answer, server.finish, server.asked = "", "stop", []
    server.spec = f"judge:http://127.0.0.1:{server.server_address[1]}/v1#writer"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_language_model_rewrites_the_drafts(tmp_path, endpoint, capsys):
    endpoint.answer = "Here:\n=== protocol.md\n# New protocol\n\n=== guidelines.md\n# New guidelines\n"
    config = DesignConfig(output_dir=str(tmp_path), model=endpoint.spec)
    designer.write("helpfulness", config)
    assert (tmp_path / "protocol.md").read_text() == "# New protocol\n"
    assert (tmp_path / "guidelines.md").read_text() == "# New guidelines\n"
    assert (tmp_path / "criteria.md").read_text() == drafts("helpfulness")["criteria.md"]
    assert "wrote no criteria.md" in capsys.readouterr().out
    assert endpoint.asked == [drafts("helpfulness")["prompt.md"]]


def test_an_answer_that_was_cut_off_keeps_what_is_whole(tmp_path, endpoint):
    endpoint.answer, endpoint.finish = "=== protocol.md\n# New\n=== guidelines.md\n# Half a", "length"
    designer.write("helpfulness", DesignConfig(output_dir=str(tmp_path), model=endpoint.spec))
    assert (tmp_path / "protocol.md").read_text() == "# New\n"
    assert (tmp_path / "guidelines.md").read_text() == drafts("helpfulness")["guidelines.md"]


def test_a_language_model_writes_about_a_behaviour_that_nobody_knows(tmp_path, endpoint):
    config = DesignConfig(output_dir=str(tmp_path), model=endpoint.spec)
    endpoint.answer = "=== protocol.md\n# New\n=== criteria.md\n# New"
    with pytest.raises(UsageError, match=r"without the lines === guidelines\.md"):
        designer.write("kindness", config)
    assert not list(tmp_path.iterdir())
    endpoint.answer += f"\n=== guidelines.md\n# New\n{EXAMPLES}\n"
    assert len(designer.write("kindness", config)) == 4
    assert EXAMPLES in (tmp_path / "guidelines.md").read_text()


def test_an_answer_without_documents_is_refused(tmp_path, endpoint):
    endpoint.answer = "I would be happy to help!"
    with pytest.raises(UsageError, match="without the lines"):
        designer.write("kindness", DesignConfig(output_dir=str(tmp_path / "new"), model=endpoint.spec))
    assert not (tmp_path / "new").exists()


def test_no_other_file_can_be_named_by_an_answer():
    assert sections("=== ../../x.md\nbad\n=== criteria.md\ngood") == {"criteria.md": "good\n"}
