"""A stub of the Hub at 127.0.0.1: what libraries ask for of data sets and models, from memory.

with serving({"org/name": {"main": {"README.md": b"…", "data/train.jsonl": b"…"}, "v1": {…}}}) as url:
    …HF_ENDPOINT=url…
"""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator

Files = dict[str, bytes]


def commit_of(files: Files) -> str:
    """A name for a revision that depends on its content."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def entry(path: str, content: bytes) -> dict:
    return {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": path}


def tree(files: Files, below: str, deep: bool) -> list[dict]:
    """Files and folders below a folder."""
    start = f"{below}/" if below else ""
    found: dict[str, dict] = {}
    for path, content in files.items():
        if not path.startswith(start):
            continue
        first, *more = path.removeprefix(start).split("/")
        if more:
            folder = start + first
            found[folder] = {"type": "directory", "oid": "d" * 40, "size": 0, "path": folder}
        if deep or not more:
            found[path] = entry(path, content)
    return list(found.values())


def handler_for(repositories: dict[str, dict[str, Files]], asked: list[str]) -> type:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def give(self, value: object) -> None:
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urllib.parse.urlsplit(self.path)
            path = urllib.parse.unquote(url.path)
            asked.append(path)
            for name, revisions in repositories.items():
                for start in places(name):
                    if path == start or path.startswith(f"{start}/"):
                        rest = path.removeprefix(start).lstrip("/")
                        self.of_repository(name, revisions, rest, url.query, body)
                        return
            self.answer(404, b"{}", X_Error_Code="RepoNotFound")

        def of_repository(self, name: str, revisions: dict[str, Files], rest: str, query: str, body: bytes):
            verb, _, place = rest.partition("/")
            names = {commit_of(files): files for files in revisions.values()} | revisions
            if verb == "refs":
                refs = [
                    {"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit_of(f)}
                    for n, f in revisions.items()
                ]
                self.give({"branches": refs, "converts": [], "tags": []})
                return
            place = place or "main"
            revision = next((n for n in names if place == n or place.startswith(f"{n}/")), None)
            if revision is None:
                self.answer(404, b'{"error":"Revision not found"}', X_Error_Code="RevisionNotFound")
                return
            files, inside = names[revision], place.removeprefix(revision).lstrip("/")
            if verb in ("", "revision"):
                siblings = [{"rfilename": file} for file in files]
                info = {"_id": "1", "id": name, "sha": commit_of(files), "siblings": siblings, "tags": []}
                self.give(info | {"private": False, "gated": False, "disabled": False, "downloads": 0})
            elif verb == "paths-info":
                self.give([entry(p, files[p]) for p in paths_in(body) if p in files])
            elif verb == "tree" and tree(files, inside, False):
                self.give(tree(files, inside, "recursive=true" in query.lower()))
            elif verb in ("resolve", "raw") and inside in files:
                self.file(files[inside], commit_of(files))
            else:
                self.answer(404, b'{"error":"Entry not found"}', X_Error_Code="EntryNotFound")

        def file(self, data: bytes, commit: str) -> None:
            more = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": commit}
            wanted = self.headers.get("Range")
            if not wanted or self.command != "GET":
                self.answer(200, data, **more)
                return
            first, last = wanted.split("=")[1].split("-")
            part = data[int(first) : int(last) + 1 if last else None]
            span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self.answer(206, part, Content_Range=span, **more)

        do_GET = do_HEAD = do_POST = serve

    return Handler


def places(name: str) -> tuple[str, ...]:
    """Where a data set, or a model, of this name lies."""
    return (f"/api/datasets/{name}", f"/datasets/{name}", f"/api/models/{name}", f"/{name}")


def paths_in(body: bytes) -> list[str]:
    try:
        return json.loads(body)["paths"]
    except ValueError:
        return urllib.parse.parse_qs(body.decode()).get("paths", [])


@contextlib.contextmanager
def serving(repositories: dict[str, dict[str, Files]], asked: list[str] | None = None) -> Iterator[str]:
    """Serves repositories (name -> revision -> files) while the block runs; gives the address."""
    handler = handler_for(repositories, [] if asked is None else asked)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
