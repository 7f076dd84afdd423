"""Google Cloud Storage in memory, by its XML API as it is documented: no cloud runs here.

What it does follows the reference pages of the XML API ("PUT Object", "GET Object", "HEAD Object",
"DELETE Object", "GET Bucket (List Objects)", multipart uploads), "Request preconditions" and
"Object versioning": every write gives an object another generation, whatever its content;
`x-goog-if-generation-match` writes only over that generation, 0 only where there is no object, else
412; to delete or read what is not there is a 404; a second write of an object within the same
moment may be turned away with 429 (`BUSY`), which a client is to try again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from running import running

BUCKET = "models"
KEY = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
ENVIRONMENT = {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(KEY)}
PAGE = 20
"""Objects per answer to a listing, of 1,000 in earnest: larger ones have several."""
BUSY = 5
"""Every so many conditional writes, one is turned away first."""


@dataclass
class Kept:
    """An object."""

    content: bytes
    generation: int
    tag: str


@dataclass
class Bucket:
    """All objects, and the parts of uploads that are under way."""

    objects: dict[str, Kept] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    generation: int = 1_700_000_000_000_000
    conditional: int = 0

    def put(self, name: str, content: bytes) -> Kept:
        self.generation += 1
        tag = hashlib.md5(content, usedforsecurity=False).hexdigest()
        self.objects[name] = Kept(content, self.generation, f'"{tag}"')
        return self.objects[name]


class Refused(Exception):
    """A status and the code that its answer names."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    bucket: Bucket

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer(lambda: self._read() if self.name else self._list())

    def do_HEAD(self) -> None:
        self._answer(self._read)

    def do_PUT(self) -> None:
        self._answer(self._write)

    def do_POST(self) -> None:
        self._answer(self._upload)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, act) -> None:
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        bucket, _, name = url.path.lstrip("/").partition("/")
        self.name = urllib.parse.unquote(name)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if bucket != BUCKET:
                raise Refused(404, "NoSuchBucket")
            with self.bucket.lock:
                status, headers, content = act()
        except Refused as refused:
            status, code = refused.args
            headers = {"Content-Type": "application/xml"}
            content = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self.send_response(status)
        for header, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _kept(self, name: str) -> Kept:
        if name not in self.bucket.objects:
            raise Refused(404, "NoSuchKey")
        return self.bucket.objects[name]

    def _hold(self) -> None:
        """Refuse a write on a condition that does not hold."""
        wanted = self.headers.get("x-goog-if-generation-match")
        if wanted is None:
            return
        self.bucket.conditional += 1
        if self.bucket.conditional % BUSY == 0:
            raise Refused(429, "SlowDown")
        found = self.bucket.objects.get(self.name)
        if int(wanted) != (found.generation if found else 0):
            raise Refused(412, "PreconditionFailed")

    def _read(self):
        kept = self._kept(self.name)
        return 200, {**told(kept), "Content-Length": str(len(kept.content))}, kept.content

    def _write(self):
        if "uploadId" in self.query:
            parts = self._parts()
            parts[int(self.query["partNumber"])] = self.body
            return 200, {"ETag": f'"{self.query["partNumber"]}"'}, b""
        self._hold()
        source = self.headers.get("x-goog-copy-source")
        if source is None:
            return 200, told(self.bucket.put(self.name, self.body)), b""
        place = urllib.parse.unquote(source).partition("/")[2]
        kept = self.bucket.put(self.name, self._kept(place).content)
        return 200, told(kept), xml("CopyObjectResult", f"<ETag>{kept.tag}</ETag>")

    def _upload(self):
        if "uploads" in self.query:
            upload = f"upload{len(self.bucket.uploads)}"
            self.bucket.uploads[upload] = {}
            named = f"<Bucket>{BUCKET}</Bucket><Key>{escape(self.name)}</Key>"
            named += f"<UploadId>{upload}</UploadId>"
            return 200, {}, xml("InitiateMultipartUploadResult", named)
        parts = self._parts()
        asked = [int(e.text) for e in ElementTree.fromstring(self.body).iter() if "Numb" in e.tag]
        kept = self.bucket.put(self.name, b"".join(parts[number] for number in asked))
        named = f"<Bucket>{BUCKET}</Bucket><Key>{escape(self.name)}</Key><ETag>{kept.tag}</ETag>"
        return 200, told(kept), xml("CompleteMultipartUploadResult", named)

    def _parts(self) -> dict[int, bytes]:
        if self.query["uploadId"] not in self.bucket.uploads:
            raise Refused(404, "NoSuchUpload")
        return self.bucket.uploads[self.query["uploadId"]]

    def _delete(self):
        if "uploadId" in self.query:
            self.bucket.uploads.pop(self.query["uploadId"], None)
            return 204, {}, b""
        self._kept(self.name)
        del self.bucket.objects[self.name]
        return 204, {}, b""

    def _list(self):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        after = self.query.get("continuation-token", "")
        rows: dict[str, str] = {}
        for name, kept in sorted(self.bucket.objects.items()):
            if not name.startswith(prefix):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folder = prefix + rest.partition(delimiter)[0] + delimiter
                rows[folder] = "<CommonPrefixes>" + element("Prefix", folder) + "</CommonPrefixes>"
            else:
                date = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                sizes = element("Size", str(len(kept.content))) + element("ETag", kept.tag)
                rows[name] = f"<Contents>{element('Key', name)}{date}{sizes}</Contents>"
        names = [name for name in rows if name > after]
        more = element("NextContinuationToken", names[PAGE - 1]) if len(names) > PAGE else ""
        listed = "".join(rows[name] for name in names[:PAGE])
        return 200, {}, xml("ListBucketResult", element("Name", BUCKET) + more + listed)


def told(kept: Kept) -> dict[str, str]:
    """The headers that say which object it is."""
    return {
        "ETag": kept.tag,
        "x-goog-generation": str(kept.generation),
        "Last-Modified": formatdate(1.77e9, usegmt=True),
    }


def element(tag: str, text: str) -> str:
    return f"<{tag}>{escape(text)}</{tag}>"


def xml(tag: str, content: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><{tag}>{content}</{tag}>'.encode()


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """A server with the bucket `models`; its address."""
    handler = type("Handler", (Handler,), {"bucket": Bucket()})
    with running(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as port:
        yield f"http://127.0.0.1:{port}"
