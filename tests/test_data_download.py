"""Downloads: whole or not at all, from the addresses of the table alone; nothing here leaves this machine."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_checkpoints import disk_of
from test_cli import triptych
from test_data_idx import IMAGES, LABELS, idx

from triptych.data import cifar, download
from triptych.data.download import SETS, RemoteFile, download_data
from triptych.data.load import load_data
from triptych.errors import InputError
from triptych.spaces import ImageSpace

Answer = Callable[["Handler"], None]
CONTENT = np.random.default_rng(0).bytes(300_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the test's server says, and notes what it was asked for."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        self.close_connection = True
        answer = self.server.answers.get(self.path)
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if answer is None:
            self.reply(404)
        elif isinstance(answer, bytes):
            self.whole_or_rest(answer)
        else:
            answer(self)

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(content))} | headers).items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def whole_or_rest(self, content: bytes, n_sent: int | None = None) -> None:
        """What an orderly server sends; of its body only the first `n_sent` bytes, if given."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if start >= len(content):
            self.reply(416, Content_Range=f"bytes */{len(content)}")
            return
        place = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else {}
        length = str(len(content) - start)
        self.reply(206 if asked else 200, content[start:][:n_sent], Content_Length=length, **place)

    def log_message(self, *_: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """A web server of this machine."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, bytes | Answer | list[bytes | Answer]] = {}
        self.asked: list[tuple[str, str | None]] = []

    def handle_error(self, *_: Any) -> None:  # Connections that we cut.
        pass

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def offer(self, content: bytes = CONTENT, *, mirrors: int = 1, name: str = "a.bin") -> RemoteFile:
        """A file of the table that lies in the folders `0`, `1`, ... of this server."""
        urls = tuple(f"http://{self.host}/{mirror}/{name}" for mirror in range(mirrors))
        return RemoteFile(name, len(content), hashlib.sha256(content).hexdigest(), urls)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "SCHEMES", ("https", "http"))
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.001)
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.3)
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a set into the table."""

    def put(*files: RemoteFile, name: str = "small") -> None:
        monkeypatch.setitem(SETS, name, files)

    return put


def refusal(name: str = "small", to: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        download_data(name, to)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".download.lock")


class TestTable:
    def test_every_address_is_safe_and_every_file_is_described(self) -> None:
        assert set(SETS) == {"mnist", "fashion_mnist", "cifar10", "cifar100", "binarized_mnist"}
        for files in SETS.values():
            for file in files:
                assert re.fullmatch("[0-9a-f]{64}", file.sha256)
                assert re.fullmatch(r"[a-z0-9_.-]+", file.name)
                assert 4000 < file.n_bytes < 2**28
                assert file.urls
                assert all(url.startswith("https://") and url.endswith(f"/{file.name}") for url in file.urls)
        sums = [file.sha256 for files in SETS.values() for file in files]
        assert len(set(sums)) == len(sums)

    def test_the_sums_of_the_binary_set_are_those_of_its_images(self) -> None:
        """Another copy of the public draw, written as the published text."""
        copy = Path(__file__).parents[2] / "shared" / "data" / "binarized_mnist.npz"
        if not copy.is_file():
            pytest.skip("needs shared/data")
        with np.load(copy) as arrays:
            for file, part in zip(SETS["binarized_mnist"], ("train", "valid", "test"), strict=True):
                text = amat(arrays[part])
                assert len(text) == file.n_bytes
                assert hashlib.sha256(text).hexdigest() == file.sha256

    def test_http_is_refused(self, server: Server, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download, "SCHEMES", ("https",))
        known(server.offer())
        assert f"{server.host} is not reached by https" in refusal()
        assert server.asked == []


class TestWhole:
    def test_fetched_once_and_found_again(self, server: Server, known: Any, tmp_path: Path) -> None:
        known(server.offer(), server.offer(b"other", name="b.bin"))
        server.answers = {"/0/a.bin": CONTENT, "/0/b.bin": b"other"}
        told: list[tuple[str, int, int]] = []
        folder = download_data("small", progress=lambda *what: told.append(what))
        assert folder == tmp_path / "home" / "small" == download.find_downloaded("small")
        assert (folder / "a.bin").read_bytes() == CONTENT
        assert names(folder) == ["a.bin", "b.bin"]
        assert told[-1] == ("b.bin", 5, 5)
        assert [n for name, n, _ in told if name == "a.bin"] == sorted({n for name, n, _ in told if name == "a.bin"})
        assert server.asked == [("/0/a.bin", None), ("/0/b.bin", None)]
        download_data("small")
        assert len(server.asked) == 2, "what is whole is not fetched again"
        (folder / "b.bin").write_bytes(b"Other")
        download_data("small")
        assert server.asked[2:] == [("/0/b.bin", None)]
        assert (folder / "b.bin").read_bytes() == b"other"

    def test_another_folder(self, server: Server, known: Any, tmp_path: Path) -> None:
        known(server.offer())
        server.answers = {"/0/a.bin": CONTENT}
        assert download_data("small", tmp_path / "mine") == tmp_path / "mine" / "small"
        with pytest.raises(
            InputError, match=r"^small is not here; triptych data download small fetches it \(293 KiB\)"
        ):
            download.find_downloaded("small")

    def test_an_unknown_name(self) -> None:
        assert re.match(
            r"'mnits' cannot be downloaded; these can: mnist, .*\. Did you mean 'mnist'\?$", refusal("mnits")
        )

    def test_a_redirect_to_http_of_this_test_is_followed(self, server: Server, known: Any) -> None:
        known(server.offer())
        server.answers = {"/0/a.bin": lambda to: to.reply(302, Location="/elsewhere"), "/elsewhere": CONTENT}
        assert (download_data("small") / "a.bin").read_bytes() == CONTENT


class TestCut:
    def test_gone_on_with_where_it_was_cut(self, server: Server, known: Any) -> None:
        known(server.offer())
        cut: Answer = lambda to: to.whole_or_rest(CONTENT, 100_000)  # noqa: E731
        server.answers = {"/0/a.bin": [cut, cut, CONTENT]}
        assert (download_data("small") / "a.bin").read_bytes() == CONTENT
        assert [asked for _, asked in server.asked] == [None, "bytes=100000-", "bytes=200000-"]

    def test_on_another_day_and_from_another_address(self, server: Server, known: Any, tmp_path: Path) -> None:
        known(server.offer(mirrors=2))
        server.answers = {"/0/a.bin": [lambda to: to.whole_or_rest(CONTENT, 100_000), lambda to: to.reply(503)]}
        told = refusal()
        assert told == (
            f"a.bin could not be fetched: {server.host} answers with status 503; {server.host} answers with status 404."
            " Try again later. The 98 KiB that came are kept."
        )
        assert names(tmp_path / "home" / "small") == ["a.bin.part"]
        server.answers = {"/1/a.bin": CONTENT}
        server.asked.clear()
        assert (download_data("small") / "a.bin").read_bytes() == CONTENT
        assert server.asked == [("/0/a.bin", "bytes=100000-"), ("/1/a.bin", "bytes=100000-")]

    def test_a_server_that_knows_no_ranges(self, server: Server, known: Any) -> None:
        known(server.offer())
        server.answers = {"/0/a.bin": [lambda to: to.whole_or_rest(CONTENT, 1000), lambda to: to.reply(200, CONTENT)]}
        assert (download_data("small") / "a.bin").read_bytes() == CONTENT
        assert len(server.asked) == 2

    def test_a_server_that_answers_with_another_range(self, server: Server, known: Any) -> None:
        known(server.offer())
        other: Answer = lambda to: to.reply(206, CONTENT[5:], Content_Range="bytes 5-299999/300000")  # noqa: E731
        server.answers = {"/0/a.bin": [lambda to: to.whole_or_rest(CONTENT, 1000), other]}
        assert "answers with another part of the file" in refusal()

    def test_a_file_that_changed_between_tries(self, server: Server, known: Any) -> None:
        """The half that came was of another file: all is fetched anew, once."""
        known(server.offer())
        old = bytes(len(CONTENT))
        server.answers = {"/0/a.bin": [lambda to: to.whole_or_rest(old, 1000), CONTENT]}
        assert (download_data("small") / "a.bin").read_bytes() == CONTENT
        assert [asked for _, asked in server.asked] == [None, "bytes=1000-", None]

    @pytest.mark.parametrize("size", [999, 300_001])
    def test_a_file_that_changed_its_size(self, size: int, server: Server, known: Any, tmp_path: Path) -> None:
        known(server.offer())
        server.answers = {"/0/a.bin": [lambda to: to.whole_or_rest(CONTENT, 1000), bytes(size)]}
        assert f"has a file of {size} bytes, not of 300000" in refusal()
        assert names(tmp_path / "home" / "small") == (["a.bin.part"] if size > 1000 else [])

    def test_it_ends_when_nothing_comes(self, server: Server, known: Any) -> None:
        known(server.offer())
        server.answers = {"/0/a.bin": lambda to: to.whole_or_rest(CONTENT, 10)}
        assert "ended after 30 of 300000 bytes" in refusal()
        assert len(server.asked) == download.N_TRIES

    def test_it_goes_on_while_enough_comes(self, server: Server, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download, "ADVANCE_BYTES", 30_000)
        known(server.offer())
        server.answers = {"/0/a.bin": lambda to: to.whole_or_rest(CONTENT, 30_000)}
        assert (download_data("small") / "a.bin").read_bytes() == CONTENT
        assert len(server.asked) == 10

    def test_a_process_that_died_between_the_last_byte_and_the_name(self, server: Server, known: Any) -> None:
        known(server.offer())
        folder = download.cache_folder() / "small"
        folder.mkdir(parents=True)
        (folder / "a.bin.part").write_bytes(CONTENT)
        download_data("small")
        assert server.asked == []
        assert names(folder) == ["a.bin"]

    def test_chunks_cut_short(self, server: Server, known: Any) -> None:
        def chunks(to: Handler) -> None:
            to.reply(200, Content_Length="", Transfer_Encoding="chunked")
            to.wfile.write(b"3e8\r\n" + CONTENT[:1000] + b"\r\n")

        known(server.offer())
        server.answers = {"/0/a.bin": [chunks, CONTENT]}
        assert (download_data("small") / "a.bin").read_bytes() == CONTENT
        assert [asked for _, asked in server.asked] == [None, "bytes=1000-"]


class TestRefused:
    @pytest.mark.parametrize("status", [403, 404, 410])
    def test_a_status_that_will_not_change_is_asked_for_once(self, status: int, server: Server, known: Any) -> None:
        known(server.offer())
        server.answers = {"/0/a.bin": lambda to: to.reply(status)}
        assert f"{server.host} answers with status {status}. Try again later." in refusal()
        assert len(server.asked) == 1

    def test_a_status_that_may_pass_is_asked_for_again(self, server: Server, known: Any) -> None:
        known(server.offer())
        server.answers = {"/0/a.bin": [lambda to: to.reply(500), lambda to: to.reply(503), CONTENT]}
        assert (download_data("small") / "a.bin").read_bytes() == CONTENT

    @pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:,a", "http://x/a.bin"])
    def test_a_redirect_elsewhere(
        self, where: str, server: Server, known: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        known(server.offer())
        server.answers = {"/0/a.bin": lambda to: to.reply(302, Location=where)}
        if where.startswith("http:"):  # The first address is allowed here, for want of a certificate.
            monkeypatch.setattr(download, "SCHEMES", Once())
        assert f"redirects to {where.split(':')[0]}:, which is not followed" in refusal()
        assert names(tmp_path / "home" / "small") == []

    def test_a_redirect_to_itself(self, server: Server, known: Any) -> None:
        known(server.offer())
        server.answers = {"/0/a.bin": lambda to: to.reply(301, Location="/0/a.bin")}
        assert "answers with status 301" in refusal()

    def test_wrong_bytes_are_removed(self, server: Server, known: Any, tmp_path: Path) -> None:
        known(server.offer(mirrors=2))
        server.answers = {"/0/a.bin": bytes(len(CONTENT)), "/1/a.bin": CONTENT}
        assert (download_data("small") / "a.bin").read_bytes() == CONTENT, "the next address has the right ones"
        (tmp_path / "home" / "small" / "a.bin").unlink()
        server.answers = {"/0/a.bin": bytes(len(CONTENT)), "/1/a.bin": bytes(len(CONTENT))}
        server.asked.clear()
        wrong = f"{server.host} sends something else (its checksum is not the published one); it was removed"
        assert refusal() == f"a.bin could not be fetched: {wrong}; {wrong}. Try again later."
        assert names(tmp_path / "home" / "small") == []
        assert len(server.asked) == 2

    def test_too_much_is_never_written(self, server: Server, known: Any, tmp_path: Path) -> None:
        known(server.offer())
        biggest = 0

        def endless(to: Handler) -> None:
            nonlocal biggest
            to.reply(200, Content_Length="")
            for _ in range(40):
                to.wfile.write(bytes(10_000))
                time.sleep(0.002)
                parts = list((tmp_path / "home" / "small").glob("*.part"))
                biggest = max([biggest, *(part.stat().st_size for part in parts if part.exists())])

        server.answers = {"/0/a.bin": endless}
        assert "sends more than the 300000 bytes of the file; it was removed" in refusal()
        assert 0 < biggest <= 300_000
        assert names(tmp_path / "home" / "small") == []

    def test_silence(self, server: Server, known: Any) -> None:
        known(server.offer())

        def silent(to: Handler) -> None:
            to.reply(200, CONTENT[:50], Content_Length=str(len(CONTENT)))
            time.sleep(1)

        server.answers = {"/0/a.bin": silent}
        began = time.perf_counter()
        assert "sends nothing for 0.3 seconds" in refusal()
        assert time.perf_counter() - began < 3

    def test_a_trickle(self, server: Server, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download, "PACE_SECONDS", 0.2)
        known(server.offer())

        def trickle(to: Handler) -> None:
            to.reply(200, Content_Length=str(len(CONTENT)))
            for _ in range(100):
                to.wfile.write(b"x")
                time.sleep(0.02)

        server.answers = {"/0/a.bin": trickle}
        assert re.search(r"sent \d+ bytes in 0.2 seconds", refusal())

    def test_nobody_listens(self, server: Server, known: Any) -> None:
        known(server.offer())
        server.server_close()
        assert f"{server.host} cannot be reached (Connection refused)" in refusal()


class Once(tuple[str, ...]):
    """Allows http the first time it is asked about, and https always."""

    asked = 0

    def __new__(cls) -> Once:
        return super().__new__(cls, ("https",))

    def __contains__(self, scheme: object) -> bool:
        self.asked += 1
        return scheme == "https" or self.asked == 1


class TestDisk:
    def test_no_room_is_said_before_anything_is_fetched(
        self, server: Server, known: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known(server.offer())
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        assert re.search(r"small has 1000 bytes left and a.bin takes 293 KiB; make room, or give", refusal())
        assert server.asked == []

    def test_a_disk_that_fills_up(self, server: Server, known: Any, tmp_path: Path) -> None:
        known(server.offer())
        server.answers = {"/0/a.bin": CONTENT}
        with disk_of(100_000):
            told = refusal()
        assert told.endswith(
            "a.bin.part cannot be written (there is no room for it); a.bin takes 293 KiB. Make room, or give another"
            " folder with --to."
        )
        assert names(tmp_path / "home" / "small") == []
        assert (download_data("small") / "a.bin").read_bytes() == CONTENT

    def test_a_disk_that_fails_at_the_end(self, server: Server, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        known(server.offer())
        server.answers = {"/0/a.bin": CONTENT}
        monkeypatch.setattr(os, "fsync", failing)
        assert "a.bin.part cannot be written (Input/output error)" in refusal()
        assert names(download.cache_folder() / "small") == []

    def test_links_are_not_written_through(self, server: Server, known: Any, tmp_path: Path) -> None:
        known(server.offer())
        server.answers = {"/0/a.bin": CONTENT}
        mine = tmp_path / "mine"
        mine.write_text("mine")
        folder = tmp_path / "here" / "small"
        folder.mkdir(parents=True)
        (folder / "a.bin.part").symlink_to(mine)
        assert (download_data("small", tmp_path / "here") / "a.bin").read_bytes() == CONTENT
        assert not (folder / "a.bin").is_symlink()
        (folder / "a.bin").unlink()
        (folder / ".download.lock").unlink()
        (folder / ".download.lock").symlink_to(mine)
        assert "small/.download.lock cannot be written" in refusal(to=tmp_path / "here")
        assert mine.read_text() == "mine"

    def test_a_file_in_the_folders_place(self, server: Server, known: Any, tmp_path: Path) -> None:
        known(server.offer())
        (tmp_path / "file").write_text("")
        assert re.search(r"cannot be written \(Not a directory\); give another folder", refusal(to=tmp_path / "file"))


class TestTwoAtOnce:
    def test_the_second_is_refused_and_the_first_goes_on(self, server: Server, known: Any) -> None:
        known(server.offer())
        half, go_on = threading.Event(), threading.Event()

        def slow(to: Handler) -> None:
            to.reply(200, CONTENT[:1000], Content_Length=str(len(CONTENT)))
            half.set()
            go_on.wait(10)
            to.wfile.write(CONTENT[1000:])

        server.answers = {"/0/a.bin": slow}
        download.SILENCE_SECONDS = 10
        first = threading.Thread(target=download_data, args=("small",))
        first.start()
        assert half.wait(10)
        told = refusal()
        assert re.search(
            rf"small is being downloaded into .* by process {os.getpid()} on \S+; wait until it ends", told
        )
        go_on.set()
        first.join()
        assert names(download.cache_folder() / "small") == ["a.bin"]
        assert download_data("small"), "and now it may"

    def test_a_killed_process_holds_nothing(self, server: Server, known: Any, tmp_path: Path) -> None:
        known(server.offer())
        code = (
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from triptych.data import download\n"
            "with download._held(Path(sys.argv[1]), 'small'):\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        folder = download.cache_folder() / "small"
        folder.mkdir(parents=True)
        assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == -9
        server.answers = {"/0/a.bin": CONTENT}
        assert download_data("small")


def offer_mnist(server: Server, known: Any) -> None:
    packed = {
        f"{part}-{kind}-ubyte.gz": gzip.compress(idx(array))
        for part, cut in (("train", slice(0, 20)), ("t10k", slice(20, 30)))
        for kind, array in (("images-idx3", IMAGES[cut]), ("labels-idx1", LABELS[cut]))
    }
    known(*(server.offer(content, name=name) for name, content in packed.items()), name="mnist")
    server.answers = {f"/0/{name}": content for name, content in packed.items()}


class TestCommand:
    def test_download_then_show(
        self,
        server: Server,
        known: Any,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        offer_mnist(server, known)
        show = ["data", "show", "mnist"]
        missing = "triptych: mnist is not here; triptych data download mnist fetches it ("
        code, _, err = triptych(show, capsys, monkeypatch)
        assert (code, err.startswith(missing), err.count("\n")) == (2, True, 1)
        code, _, err = triptych(["fit", "vae", "mnist"], capsys, monkeypatch)
        assert (code, err.startswith(missing)) == (2, True)
        assert server.asked == [], "nothing is fetched that was not asked for"
        code, out, err = triptych(["data", "download", "mnist"], capsys, monkeypatch)
        assert (code, out, err) == (0, f"mnist -> {tmp_path / 'home' / 'mnist'}\n", "")
        code, out, _ = triptych(show, capsys, monkeypatch)
        assert code == 0
        assert out.startswith("name      mnist\n")
        data = load_data("mnist")
        assert data.source == {"source": "mnist"}
        assert np.array_equal(data.test.read()[0][:, 0], IMAGES[20:])
        (tmp_path / "home" / "mnist" / "t10k-images-idx3-ubyte.gz").unlink()
        (tmp_path / "mnist").mkdir()
        _, _, err = triptych(show, capsys, monkeypatch)
        assert err.endswith("For the one in this folder write ./mnist.\n")

    def test_wrong_command_lines(
        self,
        server: Server,
        known: Any,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        offer_mnist(server, known)
        server.answers.pop("/0/train-labels-idx1-ubyte.gz")
        for arguments, told in {
            "data download minst": "'minst' cannot be downloaded",
            "data download mnist": "train-labels-idx1-ubyte.gz could not be fetched: 127.0.0.1:",
            "data download mnist --out x.png": "data download takes --to and nothing else",
            "data download mnist --levels 2": "data download takes --to and nothing else",
            "data show digits --to x": "--to is where data download puts a set",
            "data show cifar10 --size 8": "size applies to folders and zips of images only, not to 'cifar10'",
            "data show cifar10": "cifar10 is not here; triptych data download cifar10 fetches it (162 MiB).",
        }.items():
            code, _, err = triptych(arguments.split(), capsys, monkeypatch)
            assert (code, err.count("\n")) == (2, 1), arguments
            assert told in err
        assert not (tmp_path / "x").exists()

    def test_to(
        self,
        server: Server,
        known: Any,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        offer_mnist(server, known)
        folder = tmp_path / "sets"
        code, out, _ = triptych(["data", "download", "mnist", "--to", str(folder)], capsys, monkeypatch)
        assert code == 0
        assert out == f"mnist -> {folder / 'mnist'}; give this path, or set TRIPTYCH_HOME={folder}\n"
        by_path = load_data(folder / "mnist")
        monkeypatch.setenv("TRIPTYCH_HOME", str(folder))
        assert load_data("mnist").checksum == by_path.checksum

    def test_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRIPTYCH_HOME")
        monkeypatch.setenv("HOME", "/a/home")
        assert download.cache_folder() == Path("/a/home/.cache/triptych")
        assert refusal("mnist", Path("~nobody-of-this-name/x")).startswith("There is no home folder for '~nobody")


Member = tuple[str, bytes]
RNG = np.random.default_rng(1)


def pack(path: Path, members: list[Member]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def rows(n: int, n_classes: int, n_labels: int = 1) -> np.ndarray:
    labels = np.arange(n * n_labels).reshape(n, n_labels) % n_classes
    return np.hstack([labels, RNG.integers(0, 256, (n, 3072))]).astype(np.uint8)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """CIFAR-10 of 20 images a file."""
    layout = cifar.LAYOUTS["10"]
    monkeypatch.setitem(cifar.LAYOUTS, "10", cifar.replace(layout, n_images=dict.fromkeys(layout.n_images, 20)))
    monkeypatch.setattr(cifar, "MAX_OTHER_BYTES", 2**16)
    return {name: rows(20, 10) for name in layout.n_images}


CLASSES = b"airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"


def members_of(files: dict[str, np.ndarray]) -> list[Member]:
    """As the archive has them: not in order, with a page for readers."""
    content = [(f"cifar-10-batches-bin/{name}", array.tobytes()) for name, array in files.items()]
    return [("cifar-10-batches-bin/batches.meta.txt", CLASSES), ("x/readme.html", b"<p>"), *content[::-1]]


class TestCifar:
    def test_by_name_by_path_and_by_folder(
        self, few: dict[str, np.ndarray], server: Server, known: Any, tmp_path: Path
    ) -> None:
        path = pack(tmp_path / "cifar-10-binary.tar.gz", members_of(few))
        known(server.offer(path.read_bytes(), name=path.name), name="cifar10")
        server.answers = {f"/0/{path.name}": path.read_bytes()}
        folder = download_data("cifar10")
        data = load_data("cifar10")
        assert data.space == ImageSpace(3, 32, 32, 256)
        assert [len(split) for split in data.splits.values()] == [90, 10, 20]
        images, labels = data.test.read()
        assert np.array_equal(images.reshape(20, -1), few["test_batch.bin"][:, 1:])
        assert np.array_equal(labels, few["test_batch.bin"][:, 0])
        assert data.class_names == tuple(CLASSES.decode().split())
        everything = np.concatenate([split.read()[0] for split in (data.train, data.valid)])
        source = np.concatenate([few[f"data_batch_{i}.bin"][:, 1:] for i in range(1, 6)])
        assert {row.tobytes() for row in everything} == {row.tobytes() for row in source}
        assert load_data(path).checksum == load_data(folder).checksum == data.checksum
        assert load_data(path, levels=4).space.levels == 4

    def test_fine_labels_of_cifar_100(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        layout = cifar.LAYOUTS["100"]
        small = cifar.replace(layout, n_images={"train.bin": 200, "test.bin": 100})
        monkeypatch.setitem(cifar.LAYOUTS, "100", small)
        train, test = rows(200, 100, 2), rows(100, 100, 2)
        train[:, 1] = np.arange(200) % 100
        names_file = "\n".join(f"class{i}" for i in range(100)).encode()
        path = pack(
            tmp_path / "cifar-100-binary.tar.gz",
            [("a/fine_label_names.txt", names_file), ("a/train.bin", train.tobytes()), ("a/test.bin", test.tobytes())],
        )
        data = load_data(path)
        assert data.n_classes == 100
        assert data.class_names is not None
        assert data.class_names[7] == "class7"
        assert np.array_equal(data.test.labels, test[:, 1])

    def test_bad_archives(self, few: dict[str, np.ndarray], tmp_path: Path) -> None:
        good = members_of(few)
        name, content = good[-1]
        label = bytes([10]) + content[1:]
        bad: dict[str, tuple[list[Member], str]] = {
            "a file less": (good[:-1], "lacks data_batch_1.bin"),
            "a short file": ([*good[:-1], (name, content[:-1])], "is not one file of 61460 bytes"),
            "a long file": ([*good[:-1], (name, content + b"x")], "is not one file of 61460 bytes"),
            "a file twice": ([*good, good[-1]], "is not one file of 61460 bytes"),
            "a label too high": ([*good[:-1], (name, label)], "has a label 10 of 10 classes"),
            "many names": ([("batches.meta.txt", bytes(5000)), *good], "is not one file of a few names"),
            "other things": ([("other", bytes(2**20)), *good], "get a whole copy"),
            "nothing": ([], "lacks data_batch_1.bin"),
        }
        for what, (members, told) in bad.items():
            with pytest.raises(InputError, match=told) as caught:
                load_data(pack(tmp_path / "cifar-10-binary.tar.gz", members))
            assert "\n" not in str(caught.value), what

    def test_a_link_is_not_followed(self, few: dict[str, np.ndarray], tmp_path: Path) -> None:
        path = tmp_path / "cifar-10-binary.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        with pytest.raises(InputError, match="is not one file of 61460 bytes"):
            load_data(path)

    def test_damage_is_always_a_line(self, few: dict[str, np.ndarray], tmp_path: Path) -> None:
        path = pack(tmp_path / "cifar-10-binary.tar.gz", members_of(few))
        whole = path.read_bytes()
        for place in [*range(0, 40, 3), *RNG.integers(0, len(whole), 30), len(whole) - 6]:
            damaged = bytearray(whole)
            damaged[place] ^= 0xFF
            path.write_bytes(damaged)
            if place in range(3, whole.index(b"\0", 10)):  # gzip's own header: flags, time, system and name
                continue
            with pytest.raises(InputError) as caught:
                load_data(path)
            assert "\n" not in str(caught.value)
        for length in (0, 1, 20, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match="get a whole copy"):
                load_data(path)

    def test_a_header_that_claims_the_world_takes_no_memory(self, tmp_path: Path) -> None:
        info = tarfile.TarInfo("x")
        info.size, info.type = 2**40, tarfile.XHDTYPE
        path = tmp_path / "cifar-10-binary.tar.gz"
        path.write_bytes(gzip.compress(info.tobuf(tarfile.USTAR_FORMAT if info.size < 8**11 else tarfile.GNU_FORMAT)))
        with pytest.raises(InputError, match="get a whole copy"):
            load_data(path)


def amat(images: np.ndarray) -> bytes:
    """Binary images as lines of text."""
    bits = images.reshape(len(images), -1)
    text = np.full((len(bits), 2 * bits.shape[1]), ord(" "), np.uint8)
    text[:, ::2], text[:, -1] = bits + ord("0"), ord("\n")
    return text.tobytes()


class TestBinary:
    def test_its_own_splits_and_two_levels(self, server: Server, known: Any) -> None:
        images = {part: RNG.integers(0, 2, (n, 28, 28)) for part, n in (("train", 30), ("valid", 7), ("test", 9))}
        texts = {f"binarized_mnist_{part}.amat": amat(array) for part, array in images.items()}
        known(*(server.offer(text, name=name) for name, text in texts.items()), name="binarized_mnist")
        server.answers = {f"/0/{name}": text for name, text in texts.items()}
        folder = download_data("binarized_mnist")
        data = load_data("binarized_mnist")
        assert data.space.levels == 2
        assert data.class_names is None
        for part, split in data.splits.items():
            assert np.array_equal(split.read()[0][:, 0], images[part])
        assert load_data(folder).checksum == data.checksum

    @pytest.mark.parametrize("wrong", [b"", b"0", b"2", b"\n", b"x"])
    def test_other_text(self, wrong: bytes, tmp_path: Path) -> None:
        text = amat(np.zeros((3, 28, 28), int))
        for part in ("train", "valid", "test"):
            (tmp_path / f"binarized_mnist_{part}.amat").write_bytes(text)
        (tmp_path / "binarized_mnist_valid.amat").write_bytes(text[:101] + wrong + text[102:])
        if wrong:
            (tmp_path / "binarized_mnist_valid.amat").write_bytes(text[:100] + wrong * 2 + text[102:])
        with pytest.raises(InputError, match=r"valid.amat' is not lines of 784 zeros and ones"):
            load_data(tmp_path)
        (tmp_path / "binarized_mnist_valid.amat").unlink()
        with pytest.raises(InputError, match=r"valid.amat' is missing"):
            load_data(tmp_path)
