"""Serves a rating kit and collects what raters send.

  python -m srgan_tf.evaluation.collect --kit=kit --port=8000

Each rater's file is taken once, validated and written to KIT/ratings before it is acknowledged.
The key, kit.json, is not served, and nothing is recorded about a visitor. Ctrl-C stops the server;
start it again at any time.
"""

import os
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from absl import app, flags

from srgan_tf import command_line, files
from srgan_tf.evaluation import mos_kit, ratings

FLAGS = flags.FLAGS

flags.DEFINE_string("kit", None, "Folder that evaluate.py --mos wrote.")
flags.DEFINE_string(
    "host",
    "localhost",
    "Address to listen on. The default is this machine only; 0.0.0.0 is every network that the "
    "machine is on.",
)
flags.DEFINE_integer(
    "port", 8000, "Port to listen on; 0 is any free one.", lower_bound=0, upper_bound=65535
)

_LARGEST = 1_000_000  # bytes of a rating file; the paper's test makes 20,000
_PATIENCE = 30  # seconds that a connection may be silent


class Collector(ThreadingHTTPServer):
    """A server of one kit. After `read_collected()`, `serve_forever()` runs it."""

    daemon_threads = True
    request_queue_size = 128  # raters who press Send at the same moment

    def __init__(self, folder: Path, host: str, port: int):
        """Reads the kit and binds the port.

        Raises:
            ValueError, OSError: The folder is not a kit or not writable, or the port is taken.
        """
        self.kit = mos_kit.read_kit(folder)
        self.folder = folder
        self.collected = folder / mos_kit.RATINGS
        files.make_folder(self.collected)
        path = folder / mos_kit.PAGE
        with files.naming(path, "cannot be read"):
            page = path.read_text(encoding="utf-8")
        self.page = page.replace("<html ", "<html data-collected ", 1).encode()
        self._lock = threading.Lock()
        self._received: list[tuple[ratings.Ratings, bytes]] = []
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise ValueError(f"--host={host} --port={port}: {error.strerror}") from error

    def read_collected(self) -> None:
        """Reads the kit's ratings; names those that cannot be counted on stderr."""
        for path in ratings.files_in(self.collected):  # not a killed server's partial files
            try:
                content = path.read_bytes()
                self._received.append((ratings.parse(content, self.kit), content))
            except ValueError as error:
                print(f"skipped: {path}: {error}", file=sys.stderr)

    def take(self, content: bytes) -> tuple[HTTPStatus, str]:
        """Keeps a rating file.

        Returns:
            The status and the text of the answer. If the status is OK, the file is on disk.
        """
        try:
            sent = ratings.parse(content, self.kit)
        except ValueError as error:
            return HTTPStatus.BAD_REQUEST, f"Your ratings were not accepted: {error}."
        with self._lock:
            for earlier, kept in self._received:
                if earlier.seed == sent.seed:
                    if kept == content:  # sent again, because the answer was lost
                        return HTTPStatus.OK, "Your ratings have arrived. Thank you!"
                    return HTTPStatus.CONFLICT, "Other ratings of this session arrived before."
                if ratings.is_same_alias(earlier.alias, sent.alias):
                    text = f"The alias {sent.alias} is taken. Choose another one and send again."
                    return HTTPStatus.CONFLICT, text
            with (
                files.replacing(self.collected / f"{sent.seed}.json") as temporary,
                temporary.open("wb") as file,
            ):
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self._received.append((sent, content))
            print(f"{sent.alias}: {len(self._received)} collected", flush=True)
        return HTTPStatus.OK, "Your ratings have arrived. Thank you!"

    def handle_error(self, request, client_address) -> None:
        """Reports a failure, such as a full disk, in one line without the visitor's address."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"error: {error}", file=sys.stderr, flush=True)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: Collector
    timeout = _PATIENCE

    def do_GET(self) -> None:  # noqa: N802  (the library's name)
        """Serves the page and its pictures; nothing else exists."""
        path = self.path.partition("?")[0]
        name = path.removeprefix(f"/{mos_kit.PICTURES}/")
        if path in ("/", f"/{mos_kit.PAGE}"):
            self._answer(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
        elif path != name and name in self.server.kit.files:
            content = (self.server.folder / mos_kit.PICTURES / name).read_bytes()
            self._answer(HTTPStatus.OK, content, "image/png")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"Not found.")

    def do_POST(self) -> None:  # noqa: N802
        """Takes a rating file."""
        size = self.headers.get("Content-Length", "")
        if self.path != f"/{mos_kit.RATINGS}":
            self._answer(HTTPStatus.NOT_FOUND, b"Not found.")
        elif not size.isascii() or not size.isdecimal():
            self._answer(HTTPStatus.LENGTH_REQUIRED, b"The length is missing.")
        elif len(size) > 9 or int(size) > _LARGEST:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"Too large for ratings.")
        else:
            content = self.rfile.read(int(size))
            status, text = self.server.take(content)
            self._answer(status, text.encode())

    def _answer(self, status: HTTPStatus, content: bytes, kind="text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        """Keeps no log: it would record addresses."""


def main(argv):
    """Serves until Ctrl-C."""
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}: use --kit")
    if not FLAGS.kit:
        raise ValueError("--kit is missing: the folder that evaluate.py --mos wrote")
    with (
        Collector(Path(FLAGS.kit), FLAGS.host, FLAGS.port) as server,
        files.locked(server.collected, "another collector writes there"),
    ):
        server.read_collected()
        print(
            f"http://{FLAGS.host}:{server.server_port} serves {FLAGS.kit}; ratings are written to "
            f"{server.collected}. Ctrl-C stops it.",
            flush=True,
        )
        server.serve_forever()


def run(argv):
    """Runs `main`; a user's mistake is one line and exit code 1."""
    return command_line.exit_code(main, argv, "stopped: the same command continues")


if __name__ == "__main__":
    app.run(run)
