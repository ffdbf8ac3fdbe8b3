"""A package index as a company has one: a folder of packages, served over TLS in the form that pip reads (PEP 503).

``python3 package_index.py PACKAGES CERTIFICATE_FOLDER PORT``
"""

import re
import ssl
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """``/simple/<name>/`` lists the files of a package, ``/<file>`` is one."""

    def do_GET(self) -> None:
        found = re.fullmatch(r"/simple/([a-z0-9-]+)/", self.path)
        if not found:
            super().do_GET()
            return
        files = [file.name for file in Path(self.directory).iterdir() if package(file.name) == found[1]]
        page = "".join(f'<a href="/{name}">{name}</a>\n' for name in files).encode()
        self.send_response(200 if files else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)


def package(file: str) -> str:
    """The normalised name of the package in a file's name."""
    return re.sub(r"[-_.]+", "-", file.partition("-")[0]).lower()


def main() -> None:
    folder, certificates, port = sys.argv[1:]
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(Path(certificates) / "tls.crt", Path(certificates) / "tls.key")
    with ThreadingHTTPServer(("", int(port)), lambda *arguments: Handler(*arguments, directory=folder)) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.serve_forever()


if __name__ == "__main__":
    main()
