"""A real OpenAI-compatible server on this machine, for tests of judges."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from preferl.judging.juries import load_pairwise_judge, load_pointwise_judge
from preferl.options.judging import JudgeConfig

CPU = torch.device("cpu")
QUICK = JudgeConfig(backoff=0.01, timeout=5.0, seed=0)
Body = dict[str, Any]
# A server's behaviour: the request's JSON and its number -> status, headers, body.
Behaviour = Callable[[Body, int], tuple[int, dict[str, str], Any]]


class Server:
    """A real OpenAI-compatible server on this machine; remembers what it was sent."""

    def __init__(self, behaviour: Behaviour):
        outer = self
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.active = self.most_active = self.gets = 0
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    n = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                    outer.active += 1
                    outer.most_active = max(outer.most_active, outer.active)
                status, headers, answer = behaviour(body, n)
                with lock:
                    outer.active -= 1
                if status == 0:  # hang up without an answer
                    self.close_connection = True
                    return
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(data)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except ConnectionError:
                    pass  # the client has given up

            def do_GET(self) -> None:
                outer.gets += 1
                self.send_error(404)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def judge(self, pairwise: bool = True, config: JudgeConfig = QUICK, options: str = "") -> Any:
        load = load_pairwise_judge if pairwise else load_pointwise_judge
        return load(f"judge:{self.url}#test-model{options}", CPU, config)


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[Server]:
    server = Server(behaviour)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def reply(
    text: str | None, finish: str = "stop", logprobs: Any = None, **more: Any
) -> tuple[int, dict[str, str], Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}
    return 200, {}, {"object": "chat.completion", "choices": [choice], **more}


def top(**logprobs: float) -> Any:
    """The first token's likeliest alternatives; ``_`` in a name is a space."""
    alternatives = [{"token": t.replace("_", " "), "logprob": v, "bytes": None} for t, v in logprobs.items()]
    return {"content": [alternatives[0] | {"top_logprobs": alternatives}]}


def parts_of(content: str) -> dict[str, str]:
    """The judged texts, as a judge that honours the code reads them."""
    nonce = re.search(r"lines that carry the code ([0-9a-f]{16})\.", content)[1]
    found = re.findall(rf"^<<<([A-Z ]+) {nonce}>>>\n(.*?)\n<<<END \1 {nonce}>>>$", content, re.M | re.S)
    assert content.count(f"<<<END PROMPT {nonce}>>>") == 1
    return dict(found)


def outside(content: str) -> str:
    """What stands outside the delimiters: the instructions."""
    nonce = re.search(r"lines that carry the code ([0-9a-f]{16})\.", content)[1]
    return re.sub(rf"^<<<([A-Z ]+) {nonce}>>>\n.*?\n<<<END \1 {nonce}>>>$", "", content, flags=re.M | re.S)


def more_good(body: Body, n: int) -> Any:
    """Prefers the response with more 'good' in it: a judge without bias."""
    parts = parts_of(body["messages"][0]["content"])
    a, b = parts["RESPONSE A"].count("good"), parts["RESPONSE B"].count("good")
    return reply(f"A has {a}, B has {b}.\n\nVERDICT: {'TIE' if a == b else 'A' if a > b else 'B'}\n")
