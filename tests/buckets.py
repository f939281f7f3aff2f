"""Object stores on loopback, for tests."""

import base64
import contextlib
import hashlib
import hmac
import http.client
import http.server
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Self

from batchgen.output.store import Store

LATE = 3.0  # seconds, after which an answer is late

MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), sep=":", flush=True)
sys.stdin.read()
"""


def environment(endpoint: str) -> dict[str, str]:
    """What leads to an S3 server, and no key of anybody's."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "of-nobody",
        "AWS_REGION": "us-east-1",
    }


def dataset(out: Store) -> dict[str, bytes]:
    """All that a user reads of an output, by name (processes.dataset)."""
    names = ["_SUCCESS", *out.listed("", "part-")]
    names += [f"{folder}/{name}" for folder in ("_rejects", "_segments") for name in out.listed(folder, "part-")]
    return {name: out.read(name, 1 << 30) for name in names}


@contextlib.contextmanager
def listing_server(lines: Iterable[str], folder: Path, seconds: float = 0) -> Iterator[str]:
    """The endpoint of a server that has many objects (listing_server.py). lines: `SIZE KEY`, in any order."""
    (folder / "keys").write_text("\n".join(sorted(lines, key=lambda line: line.split(" ", 1)[1])))
    command = [sys.executable, Path(__file__).with_name("listing_server.py"), folder / "keys", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


class Proxy:
    """Stands before a server and does harm.

    fault: of a request by its method and path, what becomes of it: an empty text lets it pass, a status such as `503`
    refuses it, `lost` does it but closes the connection without an answer, `late` does it and answers when nobody waits
    any more, `gone` closes the connection before anything is done.
    """

    def __init__(self, endpoint: str, fault: Callable[[str, str], str]):
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self.fault, self.asked = fault, Counter[str]()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def answer(self) -> None:
                proxy.asked[self.command] += 1
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = proxy.fault(self.command, self.path)
                if fault.isdigit():
                    self.send_response(int(fault))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if fault == "gone":
                    self.close_connection = True
                    return
                inner = http.client.HTTPConnection(host, int(port))
                inner.request(self.command, self.path, body, dict(self.headers))
                answer = inner.getresponse()
                content = answer.read()
                if fault == "late":
                    time.sleep(LATE)
                if fault in ("lost", "late"):
                    self.close_connection = True
                    return
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding"):
                        self.send_header(name, value)
                if "Content-Length" not in answer.headers:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


# --- Azurite, with the account that is in its documentation

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def azure(endpoint: str) -> dict[str, str]:
    """What leads to Azurite."""
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_STORAGE_ENDPOINT": f"{endpoint}/{ACCOUNT}",
    }


def make_container(endpoint: str, name: str) -> None:
    """obstore makes none."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03"}
    signed = "".join(f"{header}:{value}\n" for header, value in sorted(headers.items()))
    text = f"PUT{chr(10) * 12}{signed}/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    url = f"{endpoint}/{ACCOUNT}/{name}?restype=container"
    request = urllib.request.Request(url, method="PUT", headers=headers | {"Content-Length": "0"})
    urllib.request.urlopen(request).close()
