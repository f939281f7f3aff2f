"""An S3 server that has many objects and answers after a while, as a far one does: LIST, and what a look at a job asks.

    python listing_server.py KEYS SECONDS

KEYS is a file of lines `SIZE KEY`, in order; the folder `content` beside it has the few objects that can be read.
"""

import bisect
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
WHEN = "2026-11-27T08:00:00.000Z"


def listing(keys: list[str], sizes: list[int], asked: dict[str, list[str]]) -> str:
    prefix = asked.get("prefix", [""])[0]
    after = max(asked.get("start-after", [""])[0], asked.get("continuation-token", [""])[0])
    at = max(bisect.bisect_left(keys, prefix), bisect.bisect_right(keys, after) if after else 0)
    found, folders, delimiter = [], [], asked.get("delimiter", [""])[0]
    while at < len(keys) and keys[at].startswith(prefix) and len(found) + len(folders) < PAGE:
        inner, slash, _ = keys[at][len(prefix) :].partition("/")
        if delimiter and slash:
            folders.append(f"{prefix}{inner}/")
            at = bisect.bisect_left(keys, f"{prefix}{inner}0")
        else:
            found.append(at)
            at += 1
    is_cut = at < len(keys) and keys[at].startswith(prefix)
    objects = "".join(
        f"<Contents><Key>{escape(keys[n])}</Key><LastModified>{WHEN}</LastModified><ETag>&quot;{n}&quot;</ETag>"
        f"<Size>{sizes[n]}</Size></Contents>"
        for n in found
    )
    more = "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
    token = f"<NextContinuationToken>{escape(keys[at - 1])}</NextContinuationToken>" if is_cut else ""
    return (
        f"<ListBucketResult><Name>talks</Name><IsTruncated>{str(is_cut).lower()}</IsTruncated>{token}{objects}{more}"
        "</ListBucketResult>"
    )


def main() -> None:
    lines = Path(sys.argv[1]).read_text().splitlines()
    sizes, keys = zip(*((int(size), key) for size, key in (line.split(" ", 1) for line in lines)), strict=True)
    content, seconds = Path(sys.argv[1]).with_name("content"), float(sys.argv[2])
    keys, sizes = list(keys), list(sizes)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(seconds)
            parts = urlsplit(self.path)
            key = unquote(parts.path).removeprefix("/talks").lstrip("/")
            if "list-type" in parse_qs(parts.query):
                self.reply(200, listing(keys, sizes, parse_qs(parts.query)).encode())
            elif self.command == "PUT":
                self.reply(200, b"")
            elif (file := content / key.rpartition("/")[2]).is_file():
                self.reply(200, file.read_bytes())
            else:
                self.reply(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")

        do_GET = do_PUT = do_HEAD = answer

        def reply(self, status: int, body: bytes) -> None:
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Fri, 27 Nov 2026 08:00:10 GMT")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
