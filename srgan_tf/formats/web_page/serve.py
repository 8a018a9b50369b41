"""Serves this folder to this computer's browsers: python serve.py [PORT]."""

import functools
import http.server
import sys
from pathlib import Path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Adds the two headers without which browsers do not let a page use several threads."""

    # The system's table may be wrong, and browsers refuse other types.
    extensions_map = {".html": "text/html", ".js": "text/javascript", ".css": "text/css",
                      ".wasm": "application/wasm", "": "application/octet-stream"}  # fmt: skip

    def end_headers(self):
        """Sends the two headers with every file."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


if __name__ == "__main__":
    port = sys.argv[1] if sys.argv[1:] else "8000"
    handler = functools.partial(Handler, directory=Path(__file__).parent)
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), handler)
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"error: cannot serve at port {port} ({error}): run python serve.py with another")
    with server:
        print(f"Open http://localhost:{server.server_port}/ (Ctrl+C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
