"""Downloads: resumed, checked, refused in words, and never half there under the final name. The server is local."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from wanlab import weights
from wanlab.catalog import Definition
from wanlab.errors import WanlabError
from wanlab.weights import _fetch
from wanlab.weights._http import Remote, fetch
from wanlab.workspace import Workspace

DATA = save({"a": torch.arange(800_000, dtype=torch.float32)})  # three pieces of 1 MiB and a bit
SHA = hashlib.sha256(DATA).hexdigest()
NAME = "wan/weights.safetensors"
URL = f"https://files.test/{NAME}"


class Server(ThreadingHTTPServer):
    """Serves `DATA`; its attributes say how it misbehaves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.etag = DATA, '"v1"'
        self.cuts: list[int] = []
        self.hold: threading.Event | None = None
        self.redirect: str | None = None
        self.headers: dict[str, str] = {}
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{NAME}"

    def stand_in(self, url: str) -> str:
        """Where an address of files.test is really asked for."""
        return url.replace("https://files.test", self.url.removesuffix(f"/{NAME}"))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        if server.redirect is not None and self.path == f"/{NAME}":
            self.answer(302, {"Location": server.redirect, **server.headers}, b"")
            return
        server.ranges.append(asked)
        valid = self.headers.get("If-Range") in (None, server.etag)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and valid else 0
        if start >= len(server.data) and start:
            self.answer(416, {"Content-Range": f"bytes */{len(server.data)}"}, b"")
            return
        headers = {"ETag": server.etag} if server.etag else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(server.data) - 1}/{len(server.data)}"
        self.answer(206 if start else 200, headers, server.data[start:])

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            if self.server.cuts and body:
                self.wfile.write(body[: self.server.cuts.pop(0)])
                self.wfile.flush()
                if self.server.hold is not None:
                    self.server.hold.wait(30)
                self.close_connection = True
                return
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    with Server() as server:
        remote = _fetch.Remote
        stand_in = lambda url, *rest: remote(server.stand_in(url), *rest)  # noqa: E731
        monkeypatch.setattr(_fetch, "Remote", stand_in)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def definition(server: Server, **known: Any) -> Definition:
    source = {"variants": [{"path": NAME, "url": URL, **known}]}
    return Definition.of({"id": "mine", "family": "wan", "weights": {"components": {"transformer": source}}})


def left(folder: Path) -> set[str]:
    return {p.name for p in folder.rglob("*") if p.is_file()}


def test_a_file_arrives_whole_with_progress(server: Server, tmp_path: Path) -> None:
    workspace, seen = Workspace(tmp_path), []
    what = definition(server, size=len(DATA), sha256=SHA)
    with pytest.raises(WanlabError, match="not on this machine") as caught:
        weights.locate(what, workspace)
    target = tmp_path / "checkpoints" / NAME
    command, *by_hand = caught.value.remedy.splitlines()
    assert command == "`wanlab models --download mine` fetches them."
    assert by_hand[:2] == ["Or bring these files", f"  {target} from {URL}"]
    found = weights.download(what, workspace, progress=seen.append)
    assert found.components["transformer"].files == (target,)
    assert target.read_bytes() == DATA
    assert left(tmp_path) == {"weights.safetensors"}
    assert [t.done for t in seen] == sorted(t.done for t in seen)
    assert (seen[-1].fraction, seen[-1].total, seen[-1].stage) == (1.0, len(DATA), "1/1 weights.safetensors")
    assert "3.2 of 3.2 MB" in str(seen[-1])
    weights.download(what, workspace)
    assert len(server.ranges) == 1, "what is there is not asked for again"
    assert weights.locate(what, workspace).fingerprint() == found.fingerprint()


def test_a_broken_connection_is_continued(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_500_000, 100_000]
    weights.download(definition(server, sha256=SHA), Workspace(tmp_path))
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == DATA
    assert server.ranges == [None, "bytes=1500000-", "bytes=1600000-"]


def test_a_connection_that_brings_nothing_ends_it_and_the_part_stays(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_500_000, 0]
    what = definition(server)
    with pytest.raises(WanlabError, match=r"broke off .*1,500,000 bytes are kept"):
        weights.download(what, Workspace(tmp_path))
    assert left(tmp_path) == {"weights.safetensors.part", "weights.safetensors.part.json"}
    weights.download(what, Workspace(tmp_path))
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == DATA
    assert server.ranges[-1] == "bytes=1500000-"


def test_another_version_starts_over(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_500_000, 0]
    with pytest.raises(WanlabError, match="broke off"):
        weights.download(definition(server), Workspace(tmp_path))
    server.etag, server.data = '"v2"', save({"a": torch.ones(900_000)})
    weights.download(definition(server), Workspace(tmp_path))
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == server.data


@pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"size": 5}], ids=["hash", "size"])
def test_what_is_not_expected_is_refused_and_removed(server: Server, known: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(WanlabError, match=r"has the SHA-256|has 3,200,\d+ bytes, and 5 are expected"):
        weights.download(definition(server, **known), Workspace(tmp_path))
    assert left(tmp_path) == set()


def test_the_hub_s_own_hash_is_checked(server: Server, tmp_path: Path) -> None:
    """Large files: the hub redirects to a store, and names size and SHA-256 in that answer."""
    server.redirect = server.url.replace(NAME, "store")
    server.headers = {"X-Linked-Etag": f'"{"0" * 64}"', "X-Linked-Size": str(len(DATA))}
    with pytest.raises(WanlabError, match=f"has the SHA-256 {SHA}"):
        weights.download(definition(server), Workspace(tmp_path))
    server.headers["X-Linked-Etag"] = f'"{SHA}"'
    weights.download(definition(server), Workspace(tmp_path))
    assert left(tmp_path) == {"weights.safetensors"}


def test_a_page_in_place_of_weights_is_refused(server: Server, tmp_path: Path) -> None:
    server.data = b"<!DOCTYPE html><html>Sign in</html>"
    with pytest.raises(WanlabError, match="HTML page"):
        weights.download(definition(server), Workspace(tmp_path))
    assert left(tmp_path) == set()


@pytest.mark.parametrize("to", ["http://example.com/x", "file:///etc/passwd", "ftp://example.com/x"])
def test_only_https_is_followed(server: Server, to: str, tmp_path: Path) -> None:
    server.redirect = to
    with pytest.raises(WanlabError, match="is not https"):
        weights.download(definition(server), Workspace(tmp_path))
    with pytest.raises(WanlabError, match="is not https"):
        fetch(Remote("http://example.com/x", tmp_path / "x"), lambda _: None, lambda: None)


def test_headers_for_one_host_are_not_sent_to_another() -> None:
    import urllib.request

    from wanlab.weights._http import _Redirects

    request = urllib.request.Request("https://hub.example/x", headers={"Authorization": "Bearer x"})
    for host, sent in (("store.example", False), ("hub.example", True)):
        new = _Redirects().redirect_request(request, None, 302, "Found", {}, f"https://{host}/y")
        assert new.has_header("Authorization") is sent


def test_a_refusal_names_the_code(server: Server, tmp_path: Path) -> None:
    server.redirect = server.url.replace(NAME, "gone")
    Handler_ = type("Gone", (Handler,), {"do_GET": lambda self: self.send_error(404)})
    server.RequestHandlerClass = Handler_
    with pytest.raises(WanlabError, match="is refused: 404"):
        weights.download(definition(server), Workspace(tmp_path))


def test_a_full_disk_is_told_before_and_during(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(WanlabError, match="GB free"):
            weights.download(definition(server), Workspace(tmp_path))
    import errno

    with monkeypatch.context() as patch:

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("os.fsync", full)
        with pytest.raises(WanlabError, match="Disk full"):
            weights.download(definition(server), Workspace(tmp_path))
    assert not (tmp_path / "checkpoints" / NAME).exists()


def test_check_stops_it_and_the_part_is_continued(server: Server, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    with pytest.raises(Stop):
        weights.download(definition(server), Workspace(tmp_path), check=check)
    weights.download(definition(server), Workspace(tmp_path))
    assert server.ranges[1] == f"bytes={2 << 20}-"
    assert left(tmp_path) == {"weights.safetensors"}


CHILD = """
import sys, json
import huggingface_hub.constants as constants
constants.is_offline_mode = lambda: False
from pathlib import Path
from wanlab import weights
from wanlab.catalog import Definition
from wanlab.workspace import Workspace
from wanlab.weights import _fetch
remote = _fetch.Remote
_fetch.Remote = lambda url, *rest: remote(url.replace("https://files.test", sys.argv[3]), *rest)
weights.download(Definition.of(json.loads(sys.argv[1])), Workspace(Path(sys.argv[2])),
                 progress=lambda t: print(t.done, flush=True))
"""


def test_kill_9_leaves_a_part_that_is_continued(server: Server, tmp_path: Path) -> None:
    """And while the first process lives, a second one is told so."""
    server.cuts, server.hold = [(1 << 20) + 5], threading.Event()
    what = definition(server, sha256=SHA)
    words = [sys.executable, "-c", CHILD, json.dumps(what.model_dump(mode="json", by_alias=True)), str(tmp_path)]
    words.append(server.stand_in("https://files.test"))
    root = str(Path(weights.__file__).parents[2])
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root})
    assert child.stdout is not None
    assert int(child.stdout.readline()) == 1 << 20
    with pytest.raises(WanlabError, match="Another process is downloading"):
        weights.download(what, Workspace(tmp_path))
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    child.stdout.close()
    server.hold.set()
    assert not (tmp_path / "checkpoints" / NAME).exists()
    weights.download(what, Workspace(tmp_path))
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == DATA
    asked = server.ranges[-1]
    assert asked is not None
    assert int(asked.removeprefix("bytes=").rstrip("-")) >= 1 << 20
    assert left(tmp_path) == {"weights.safetensors"}


def test_offline_names_the_file_and_the_folder(server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    with pytest.raises(WanlabError, match="HF_HUB_OFFLINE") as caught:
        weights.download(definition(server), Workspace(tmp_path))
    assert URL in str(caught.value)
    assert str(tmp_path / "checkpoints" / NAME) in str(caught.value)
    assert server.ranges == []


def test_the_command_downloads_and_shows_how_far(
    server: Server, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wanlab.cli import main

    (tmp_path / "wanlab.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text(definition(server).model_dump_json(by_alias=True))
    assert main(["models", "mine.json", "--download"]) == 0
    assert "weights.safetensors" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == DATA
    assert main(["models", "--download"]) == 2
    assert "--download needs a MODEL" in capsys.readouterr().err


# --- single files on this machine


def many(**components: Any) -> Definition:
    return Definition.of({"id": "mine", "family": "wan", "weights": {"components": components}})


def put(path: Path, data: bytes = DATA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("wan.safetensors", "checkpoints/wan.safetensors"),
        ("split_files/vae/wan_2.1_vae.safetensors", "elsewhere/vae/wan_2.1_vae.safetensors"),
        ("split_files/diffusion_models/wan.safetensors", "elsewhere/unet/wan.safetensors"),
        ("umt5-xxl/models_t5.safetensors", "elsewhere/umt5-xxl/models_t5.safetensors"),
        ("models_t5.safetensors", "gp/ckpts/models_t5.safetensors"),
        ("wan.safetensors", "comfy/models/diffusion_models/wan/wan.safetensors"),
        ("a/model.safetensors", "elsewhere/owner/name/a/model.safetensors"),
        ("a/model.safetensors", "elsewhere/models--owner--name/snapshots/01/a/model.safetensors"),
    ],
)
def test_files_are_found_where_tools_keep_them(path: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "wanlab.toml").write_text('[checkpoints]\npaths = ["elsewhere"]\nwangp = "gp"\ncomfyui = "comfy"\n')
    file = put(tmp_path / place)
    what = many(vae={"variants": [{"path": path, "repo": "owner/name"}]})
    assert weights.locate(what, Workspace(tmp_path)).components["vae"].files == (file,)


def test_a_common_name_is_not_taken_from_another_folder(tmp_path: Path) -> None:
    put(tmp_path / "checkpoints" / "vae" / "model.safetensors")
    with pytest.raises(WanlabError, match="not on this machine"):
        weights.locate(many(vae={"variants": [{"path": "wan/model.safetensors"}]}), Workspace(tmp_path))


def test_an_absolute_path_wins_and_a_wrong_size_is_named(tmp_path: Path) -> None:
    mine = put(tmp_path / "mine.safetensors")
    put(tmp_path / "checkpoints" / "mine.safetensors", DATA + b"x")
    what = many(vae={"variants": [{"path": str(mine)}]})
    assert weights.locate(what, Workspace(tmp_path)).components["vae"].files == (mine,)
    short = many(vae={"variants": [{"path": "mine.safetensors", "size": len(DATA)}]})
    with pytest.raises(WanlabError, match=r"has 3,200,\d+ bytes, not 3,200,\d+: it is another or cut short"):
        weights.locate(short, Workspace(tmp_path))


def test_the_variant_is_chosen_by_kind_and_dtype(tmp_path: Path) -> None:
    names = {"a": ("float", "float16"), "b": ("float", "bfloat16"), "d": ("fp8", None), "c": ("int8", "bfloat16")}
    variants = [{"path": f"{n}.safetensors", "stored_as": kind, "dtype": d} for n, (kind, d) in names.items()]
    what, root = many(transformer={"variants": variants}), tmp_path / "checkpoints"

    def chosen(stored_as: str, dtype: str = "auto") -> str:
        found = weights.locate(what, Workspace(tmp_path), stored_as=stored_as, dtype=dtype)
        return found.components["transformer"].files[0].stem

    put(root / "c.safetensors")
    assert chosen("auto") == chosen("int8") == "c"
    put(root / "d.safetensors")
    assert chosen("auto") == "d"
    put(root / "a.safetensors")
    put(root / "b.safetensors")
    assert chosen("auto", "bfloat16") == "b"
    assert chosen("float", "float16") == "a"
    assert chosen("fp8") == "d"
    with pytest.raises(WanlabError, match=r"no transformer that is stored as gguf. Choices: auto, float, fp8, int8"):
        chosen("gguf")


def test_modules_and_tokenizers_are_part_of_a_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    base, module = put(root / "base.safetensors"), put(root / "vace.safetensors", DATA + b"")
    put(root / "umt5-xxl" / "tokenizer.json", b"{}")
    source = {"variants": [{"path": base.name}], "modules": [[{"path": module.name}]]}
    what = many(transformer=source, tokenizer={"variants": [{"path": "umt5-xxl/tokenizer.json"}]})
    found = weights.locate(what, Workspace(tmp_path))
    assert found.components["transformer"].files == (base, module)
    assert found.tokenizers == {"tokenizer": root / "umt5-xxl"}
    assert found.folder is None
    before = found.fingerprint()
    put(module, DATA[:-1] + b"x")
    assert weights.locate(what, Workspace(tmp_path)).fingerprint() != before


def test_shards_of_an_index_are_fetched(server: Server, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "s-1.safetensors", "b": "s-2.safetensors"}}).encode()
    answers = {"/w/s.safetensors.index.json": index, "/w/s-1.safetensors": DATA, "/w/s-2.safetensors": DATA}
    get = lambda self: self.answer(200, {}, answers[self.path])  # noqa: E731
    server.RequestHandlerClass = type("Shards", (Handler,), {"do_GET": get})
    path = "w/s.safetensors.index.json"
    what = many(transformer={"variants": [{"path": path, "url": f"https://files.test/{path}"}]})
    found = weights.download(what, Workspace(tmp_path))
    names = [file.name for file in found.components["transformer"].files]
    assert names == ["s-1.safetensors", "s-2.safetensors"]
    found.components["transformer"].files[1].unlink()
    with pytest.raises(WanlabError, match=r"s-2\.safetensors is missing"):
        weights.locate(what, Workspace(tmp_path))
    assert weights.download(what, Workspace(tmp_path)).components["transformer"].files[1].is_file()


def test_locating_needs_no_torch() -> None:
    code = "import sys; from wanlab import weights; weights.locate, weights.download, weights.recognise; "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_switch_for_pickles_survives_a_download(server: Server, tmp_path: Path) -> None:
    for number, allowed in enumerate((False, True)):
        workspace = Workspace(tmp_path / str(number))
        found = weights.locate(definition(server), workspace, download=True, allow_pickle=allowed)
        assert found.components["transformer"].allow_pickle == allowed
