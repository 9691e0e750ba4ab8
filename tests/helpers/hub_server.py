"""A small Hugging Face Hub on the loopback interface, for tests and for trying things out without an account.

Speaks the parts of the HTTP API that huggingface_hub uses for model repositories: create, commit, LFS upload, list,
resolve, branches, private repositories. It can be told to fail: drop a connection in the middle of a request, answer
with an error, or hold a request for as long as a test wants.

    python tests/hub_server.py        # prints the two variables to export, and serves until interrupted
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopback"
USER = "me"
GIT_ATTRIBUTES = b"*.bin filter=lfs\n*.pt filter=lfs\n*.pth filter=lfs\n*.safetensors filter=lfs\n*.png filter=lfs\n"
_LFS_NAME = re.compile(r"\.(bin|pt|pth|safetensors|png)$|tfevents")
_LFS_SIZE = 10 * 1024**2  # larger files are stored as LFS whatever their name


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """Git's name for the content, whether it is stored as LFS or not."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def entry(self, path: str) -> dict:
        lfs = {"lfs": {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}} if self.lfs else {}
        return {"type": "file", "path": path, "size": len(self.content), "oid": self.oid, **lfs}


@dataclass(frozen=True)
class Commit:
    oid: str
    message: str
    files: dict[str, File]


@dataclass
class Repo:
    """`branches`: name -> its commits, oldest first. `blobs`: sha256 -> content uploaded as LFS, committed or not."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", "initial commit", {".gitattributes": File(GIT_ATTRIBUTES, lfs=False)})

    def commit(self, branch: str, message: str, files: dict[str, File]) -> Commit:
        commits = self.branches.setdefault(branch, [])
        content = json.dumps([len(commits), branch, message, {path: file.oid for path, file in sorted(files.items())}])
        commits.append(Commit(hashlib.sha1(content.encode()).hexdigest(), message, files))
        return commits[-1]

    def find(self, revision: str) -> Commit | None:
        """The newest commit of a branch, or the commit with that id."""
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = (commit for branch in self.branches.values() for commit in branch)
        return next((commit for commit in commits if commit.oid == revision), None)

    @property
    def files(self) -> dict[str, bytes]:
        """What is on main now."""
        return {path: file.content for path, file in self.branches["main"][-1].files.items()}


@dataclass
class Fault:
    """What befalls the `nth` request (counted from 1) that fits, and those after it up to `times`.

    `action`: "drop" reads half of the request and closes the connection; "hold" sets `reached`, waits for `release` and
    goes on as if nothing had happened; a number is answered as the status.
    """

    method: str
    path: re.Pattern
    action: str | int
    nth: int = 1
    times: int = 1
    seen: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def strikes(self, method: str, path: str) -> bool:
        if method != self.method or not self.path.search(path):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


class HubServer:
    """`with HubServer() as hub:` serves at `hub.url`. `hub.log` holds (method, path) of every request."""

    def __init__(self, tokens: dict[str, str] | None = None):
        self.tokens = tokens or {TOKEN: USER}
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str]] = []
        self.errors: list[BaseException] = []
        self.lock = threading.RLock()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.hub = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        # LFS content comes from another host, as on the real Hub: huggingface_hub sends no token there.
        self.cdn_url = self.url.replace("127.0.0.1", "localhost")

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        for fault in self.faults:
            fault.release.set()
        self._http.shutdown()
        self._http.server_close()
        if self.errors:
            raise self.errors[0]

    def fail(self, method: str, path: str, action: str | int, *, nth: int = 1, times: int = 1) -> Fault:
        """Let requests whose method is `method` and whose path matches the pattern `path` fail."""
        self.faults.append(Fault(method, re.compile(path), action, nth, times))
        return self.faults[-1]

    def count(self, method: str, path: str) -> int:
        """How many requests of this kind came in, failed ones included."""
        return sum(m == method and re.search(path, p) is not None for m, p in self.log)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request, client_address) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # a client that was killed, or that a fault cut off
            self.hub.errors.append(error)


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    # ---- Dispatch ----

    def do_GET(self):
        self._answer("GET")

    def do_HEAD(self):
        self._answer("HEAD")

    def do_POST(self):
        self._answer("POST")

    def do_PUT(self):
        self._answer("PUT")

    def log_message(self, *args) -> None:
        pass

    def _answer(self, method: str) -> None:
        hub, path = self.server.hub, urlsplit(self.path).path
        with hub.lock:
            hub.log.append((method, path))
            fault = next(iter([fault for fault in hub.faults if fault.strikes(method, path)]), None)  # each one counts
        action = fault.action if fault is not None else None
        if action == "drop":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if action == "hold":
            fault.reached.set()
            fault.release.wait(60)
        self.body = self._read_body()
        try:
            if isinstance(action, int):
                raise _Refusal(action, "told to fail")
            for verb, pattern, endpoint in _ROUTES:
                if verb == ("GET" if method == "HEAD" else method) and (match := re.fullmatch(pattern, path)):
                    with hub.lock:
                        endpoint(self, *(group and unquote(group) for group in match.groups()))
                    return
            raise _Refusal(404, f"no such endpoint: {method} {path}")
        except _Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self._json({"error": refusal.message}, refusal.status, headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    # ---- Who may do what ----

    @property
    def _user(self) -> str | None:
        return self.server.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _repo(self, repo_id: str, *, write: bool = False) -> Repo:
        """A private or absent repository looks the same to whoever may not see it, as on the real Hub."""
        repo, owner = self.server.hub.repos.get(repo_id), repo_id.split("/")[0]
        if repo is None or ((repo.private or write) and self._user is None) or (repo.private and self._user != owner):
            raise _Refusal(404 if self._user else 401, "Repository not found", "RepoNotFound")
        if write and self._user != owner:
            raise _Refusal(403, f"you have no write access to {repo_id}")
        return repo

    def _commit_of(self, repo_id: str, revision: str) -> Commit:
        commit = self._repo(repo_id).find(revision)
        if commit is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ---- Repositories ----

    def whoami(self) -> None:
        if self._user is None:
            raise _Refusal(401, "Invalid username or password.")
        self._json({"type": "user", "name": self._user, "orgs": []})

    def create_repo(self) -> None:
        if self._user is None:
            raise _Refusal(401, "Invalid username or password.")
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or self._user
        repo_id = f"{owner}/{wanted['name']}"
        if owner != self._user:
            raise _Refusal(403, f"you have no rights to create a model under the namespace {owner}")
        status = 409 if repo_id in self.server.hub.repos else 200
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.server.hub.repos.setdefault(repo_id, Repo(private))
        self._json({"url": f"{self.server.hub.url}/{repo_id}", "name": repo_id}, status)

    def create_branch(self, repo_id: str, branch: str) -> None:
        repo = self._repo(repo_id, write=True)
        if branch in repo.branches:
            raise _Refusal(409, f"reference {branch} exists already")
        start = self._commit_of(repo_id, json.loads(self.body or b"{}").get("startingPoint", "main"))
        repo.branches[branch] = [start]
        self._json({})

    def info(self, repo_id: str, revision: str | None) -> None:
        commit, repo = self._commit_of(repo_id, revision or "main"), self._repo(repo_id)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        tags = _metadata(commit.files["README.md"].content).get("tags", []) if "README.md" in commit.files else []
        self._json({"id": repo_id, "sha": commit.oid, "private": repo.private, "tags": tags, "siblings": siblings})

    def tree(self, repo_id: str, revision: str, folder: str | None) -> None:
        files = self._commit_of(repo_id, revision).files
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise _Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["False"])[0].lower() == "true"
        entries = {}
        for path, file in sorted(inside.items()):
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                name = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    entries[name] = {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha1().hexdigest()}
            if recursive or len(parts) == 1:
                entries[path] = file.entry(path)
        self._json(list(entries.values()))

    def paths_info(self, repo_id: str, revision: str) -> None:
        files = self._commit_of(repo_id, revision).files
        wanted = parse_qs(self.body.decode()).get("paths", []) or json.loads(self.body)["paths"]
        self._json([files[path].entry(path) for path in wanted if path in files])

    # ---- Download ----

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        commit = self._commit_of(repo_id, revision)
        headers = {"X-Repo-Commit": commit.oid}
        file = commit.files.get(path)
        if file is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self._json({"error": "Entry not found"}, 404, headers)
        if not file.lfs:
            return self._content(file.content, headers | {"ETag": f'"{file.oid}"'})
        headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        location = f"{self.server.hub.cdn_url}/cdn/{repo_id}/{file.sha256}"
        return self._send(b"", 302, headers | {"Location": location, "ETag": f'"{file.oid}"'})

    def cdn(self, repo_id: str, sha256: str) -> None:
        """Content-addressed and without authentication, as the signed addresses of the real one."""
        self._content(self.server.hub.repos[repo_id].blobs[sha256], {"ETag": f'"{sha256}"'})

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        headers |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return self._send(content[start : end + 1], 206, headers)
        return self._send(content, 200, headers)

    # ---- Upload ----

    def validate_yaml(self) -> None:
        errors = _card_errors(json.loads(self.body)["content"])
        self._json({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, repo_id: str, revision: str) -> None:
        self._repo(repo_id, write=True)
        present = self._commit_of(repo_id, revision).files
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            lfs = bool(_LFS_NAME.search(path)) or file["size"] > _LFS_SIZE
            oid = present[path].etag if path in present else None
            mode = "lfs" if lfs else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def lfs_batch(self, repo_id: str) -> None:
        repo, answers = self._repo(repo_id, write=True), []
        for blob in json.loads(self.body)["objects"]:
            answer = {"oid": blob["oid"], "size": blob["size"]}
            if blob["oid"] not in repo.blobs:  # one that is here already is not sent again
                answer["actions"] = {"upload": {"href": f"{self.server.hub.url}/lfs/{repo_id}/{blob['oid']}"}}
            answers.append(answer)
        self._json({"transfer": "basic", "objects": answers})

    def lfs_put(self, repo_id: str, sha256: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise _Refusal(400, "the content differs from its announced sha256")
        self.server.hub.repos[repo_id].blobs[sha256] = self.body
        self._json({})

    def commit(self, repo_id: str, branch: str) -> None:
        repo, parent = self._repo(repo_id, write=True), self._commit_of(repo_id, branch)
        if branch not in repo.branches:
            raise _Refusal(412, f"{branch} is no branch")
        files, message = dict(parent.files), None
        for line in self.body.splitlines():
            key, value = (part := json.loads(line))["key"], part["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", parent.oid) != parent.oid:
                    raise _Refusal(412, "a commit has happened since")
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in repo.blobs:
                    raise _Refusal(400, f"LFS pointer of {value['path']} points to a blob that was not uploaded")
                files[value["path"]] = File(repo.blobs[value["oid"]], lfs=True)
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise _Refusal(400, f"unknown operation {key}")
        answer = {"success": True}
        if "create_pr=1" in urlsplit(self.path).query:
            number = sum(name.startswith("refs/pr/") for name in repo.branches) + 1
            branch = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.server.hub.url}/{repo_id}/discussions/{number}"
        new = repo.commit(branch, message, files)
        url = f"{self.server.hub.url}/{repo_id}/commit/{new.oid}"
        self._json(answer | {"commitOid": new.oid, "commitUrl": url})


_REPO, _REVISION = r"([^/]+/[^/]+)", r"([^/]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create_repo),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"/api/models/{_REPO}/branch/{_REVISION}", _Handler.create_branch),
    ("GET", rf"/api/models/{_REPO}(?:/revision/{_REVISION})?", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/tree/{_REVISION}(?:/(.+))?", _Handler.tree),
    ("POST", rf"/api/models/{_REPO}/paths-info/{_REVISION}", _Handler.paths_info),
    ("POST", rf"/api/models/{_REPO}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/{_REVISION}", _Handler.commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", rf"/lfs/{_REPO}/([0-9a-f]{{64}})", _Handler.lfs_put),
    ("GET", rf"/cdn/{_REPO}/([0-9a-f]{{64}})", _Handler.cdn),
    ("GET", rf"/{_REPO}/resolve/{_REVISION}/(.+)", _Handler.resolve),
]


def _metadata(card: bytes | str) -> dict:
    text = card.decode() if isinstance(card, bytes) else card
    block = re.match(r"---\r?\n(.*?)\n---\r?\n", text, re.DOTALL)
    return (yaml.safe_load(block[1]) or {}) if block else {}


def _card_errors(card: str) -> list[str]:
    """What the Hub's own validation says about a model card's metadata, as far as this project uses it."""
    try:
        metadata = _metadata(card)
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if not isinstance(metadata, dict):
        return ["the metadata must be a mapping"]
    errors = []
    for key in ("tags", "datasets", "metrics"):
        value = metadata.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            errors.append(f'"{key}" must be a list of strings')
    for model in metadata.get("model-index", []):
        if not isinstance(model.get("name"), str):
            errors.append('"model-index[0].name" is required')
        for result in model["results"]:
            for group, keys in {"task": ("type",), "dataset": ("type", "name")}.items():
                errors += [f"{group}.{key} is required" for key in keys if not result.get(group, {}).get(key)]
            metrics = result.get("metrics") or [{}]
            errors += ["metrics need type and value" for m in metrics if not {"type", "value"} <= m.keys()]
    return errors


if __name__ == "__main__":
    with HubServer() as hub:
        print(f"export HF_ENDPOINT={hub.url} HF_TOKEN={TOKEN} HF_HUB_DISABLE_XET=1 HF_HUB_OFFLINE=0", flush=True)
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            print("stopped")
