"""A stub of the Hub at 127.0.0.1 that takes uploads, as huggingface_hub sends them without Xet: who am I,
create repository, check a card, preupload, LFS batch, PUT, verify, commit.

with serving(Hub()) as (hub, url):
    HfApi(endpoint=url, token=TOKEN)…
    hub.repositories["model", "ann/demo"].files
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

TOKEN = "hf_" + "stubtoken" * 4
LARGE = (".safetensors",)  # ends of names that go through LFS


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)


@dataclass
class Hub:
    """``user`` and ``role`` are what a token says; ``refuse`` is a status by the verb of ``VERBS`` that is
    refused with it. ``bodies`` is all that was sent, ``unauthorised`` what came without the token."""

    user: str = "ann"
    role: str = "write"
    refuse: dict[str, int] = field(default_factory=dict)
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    unauthorised: list[str] = field(default_factory=list)

    def text(self) -> str:
        """All that arrived, decoded: bodies, and the files of commits."""
        files = [content for one in self.repositories.values() for content in one.files.values()]
        return b"\n".join([*self.bodies, *files]).decode(errors="replace")


def handler_for(hub: Hub, address: list[str]) -> type:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def give(self, value: object, status: int = 200, **headers: str) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            length = {"Content-Type": "application/json", "Content-Length": str(len(data))}
            for name, text in (length | headers).items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            self.wfile.write(data)

        def body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        def serve(self) -> None:
            data = self.body()
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            hub.bodies.append(data)
            verb, target = verb_of(path)
            if verb == "other":
                self.give({"error": "Not found"}, 404)
                return
            hub.asked.append(f"{self.command} {path}")
            if verb in hub.refuse:
                self.give({"error": f"{verb} is refused"}, hub.refuse[verb])
                return
            if verb == "put":
                hub.objects[path.rsplit("/", 1)[-1]] = data
                self.give({})
                return
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                hub.unauthorised.append(path)
                self.give({"error": "Invalid credentials"}, 401)
                return
            getattr(self, f"on_{verb}")(target, data)

        def on_whoami(self, _target, _data) -> None:
            self.give({"name": hub.user, "type": "user", "auth": {"accessToken": {"role": hub.role}}})

        def on_create(self, _target, data) -> None:
            said = json.loads(data)
            kind, name = said.get("type", "model"), f"{said['organization'] or hub.user}/{said['name']}"
            if (kind, name) in hub.repositories:
                self.give({"error": "You already created this repo"}, 409)
                return
            hub.repositories[kind, name] = Repository(private=said.get("visibility") == "private")
            self.give({"url": f"{address[0]}/{'datasets/' * (kind == 'dataset')}{name}"})

        def on_validate(self, _target, data) -> None:
            yaml.safe_load(json.loads(data)["content"].split("---")[1])
            self.give({"errors": [], "warnings": []})

        def on_info(self, target, _data) -> None:
            found = hub.repositories.get(target)
            if found is None:
                self.give({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
                return
            siblings = [{"rfilename": name} for name in found.files]
            info = {"_id": "1", "id": target[1], "sha": "a" * 40, "private": found.private, "tags": []}
            self.give(info | {"siblings": siblings, "gated": False, "disabled": False, "downloads": 0})

        def on_preupload(self, target, data) -> None:
            there = hub.repositories[target].files
            rows = []
            for file in json.loads(data)["files"]:
                mode = "lfs" if file["path"].endswith(LARGE) else "regular"
                row = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                old = there.get(file["path"])
                if old is not None:
                    row["oid"] = hashlib.sha256(old).hexdigest() if mode == "lfs" else git_hash(old)
                rows.append(row)
            self.give({"files": rows})

        def on_batch(self, _target, data) -> None:
            objects = []
            for one in json.loads(data)["objects"]:
                found = {"oid": one["oid"], "size": one["size"]}
                if one["oid"] not in hub.objects:
                    places = {"upload": "lfs", "verify": "verify"}
                    found["actions"] = {
                        verb: {"href": f"{address[0]}/{place}/{one['oid']}"} for verb, place in places.items()
                    }
                objects.append(found)
            self.give({"transfer": "basic", "objects": objects})

        def on_verify(self, _target, data) -> None:
            said = json.loads(data)
            content = hub.objects[said["oid"]]
            assert hashlib.sha256(content).hexdigest() == said["oid"]
            assert len(content) == said["size"]
            self.give({})

        def on_commit(self, target, data) -> None:
            repository, changed = hub.repositories[target], []
            for line in data.splitlines():
                row = json.loads(line)
                value = row["value"]
                if row["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif row["key"] == "lfsFile":
                    repository.files[value["path"]] = hub.objects[value["oid"]]
                elif row["key"] != "header":
                    raise AssertionError(f"nothing is to be deleted: {row}")
                changed += [value["path"]] if "path" in value else []
            repository.commits.append(changed)
            self.give({"commitUrl": f"{address[0]}/{target[1]}/commit/{'b' * 40}", "commitOid": "b" * 40})

        do_GET = do_POST = do_PUT = serve

    return Handler


VERBS = {
    "whoami": r"/api/whoami-v2",
    "create": r"/api/repos/create",
    "validate": r"/api/validate-yaml",
    "put": r"/lfs/\w+",
    "verify": r"/verify/\w+",
    "batch": r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
    "preupload": r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)/preupload/main",
    "commit": r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)/commit/main",
    "info": r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)(/revision/main)?",
}


def verb_of(path: str) -> tuple[str, tuple[str, str]]:
    """What is asked for, and of which repository; ``other`` is what no upload needs."""
    for verb, pattern in VERBS.items():
        found = re.fullmatch(pattern, path)
        if found:
            said = found.groupdict()
            return verb, ((said.get("kind") or "model").removesuffix("s/"), said.get("name") or "")
    return "other", ("", "")


def git_hash(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serves it while the block runs; gives the address."""
    address: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_for(hub, address))
    address.append(f"http://127.0.0.1:{server.server_address[1]}")
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield address[0]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
