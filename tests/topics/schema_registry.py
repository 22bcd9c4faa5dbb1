"""A small stand-in for a schema registry: the part of Confluent's HTTP interface that registers and finds schemas."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import avro.schema
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType


class SchemaRegistry(ThreadingHTTPServer):
    """Keeps schemas by subject, in the order of their registration; takes only what is backward compatible.

    `status`, when it is set, answers everything, and so does a `redirect` to another address; `login` is
    `user:password` when it asks for one.
    """

    daemon_threads = True

    def __init__(self, login=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.subjects = {}
        self.ids = {}
        self.login = login
        self.status = None
        self.redirect = ""
        self.asked = 0

    def find(self, subject, schema):
        """What is known of a schema under a subject."""
        if subject not in self.subjects:
            return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
        if schema not in self.subjects[subject]:
            return 404, {"error_code": 40403, "message": "Schema not found"}
        versions = self.subjects[subject]
        return 200, {
            "subject": subject,
            "version": versions.index(schema) + 1,
            "id": self.ids[schema],
            "schema": schema,
        }

    def register(self, subject, schema):
        """Keep a schema; a registry's default is that it must read what the last version wrote."""
        try:
            parsed = avro.schema.parse(schema)
        except avro.errors.SchemaParseException as error:
            return 422, {"error_code": 42201, "message": str(error)}
        versions = self.subjects.setdefault(subject, [])
        if versions and schema not in versions:
            last = avro.schema.parse(versions[-1])
            compatible = ReaderWriterCompatibilityChecker().get_compatibility(parsed, last).compatibility
            if compatible is not SchemaCompatibilityType.compatible:
                return 409, {"error_code": 409, "message": "Schema being registered is incompatible"}
        if schema not in versions:
            versions.append(schema)
        return 200, {"id": self.ids.setdefault(schema, len(self.ids) + 1)}


class _Handler(BaseHTTPRequestHandler):
    server: SchemaRegistry

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Content-Type"] == "application/vnd.schemaregistry.v1+json"
        self.server.asked += 1
        status, answer = self.answer(body)
        told = json.dumps(answer).encode()
        self.send_response(302 if self.server.redirect else status)
        if self.server.redirect:
            self.send_header("Location", self.server.redirect)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def do_GET(self):
        """Nobody asks so; a client that follows a redirect would."""
        self.server.asked += 1
        self.send_error(404)

    def answer(self, body):
        login = self.server.login
        if login and self.headers["Authorization"] != "Basic " + base64.b64encode(login.encode()).decode():
            return 401, {"error_code": 401, "message": "Unauthorized"}
        if self.server.status:
            return self.server.status, {"error_code": self.server.status, "message": "no"}
        match [unquote(part) for part in self.path.split("/")]:
            case ["", "subjects", subject]:
                return self.server.find(subject, body["schema"])
            case ["", "subjects", subject, "versions"]:
                return self.server.register(subject, body["schema"])
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def schema_registry(**options):
    """A registry that answers for the length of the block."""
    with SchemaRegistry(**options) as registry:
        threading.Thread(target=registry.serve_forever, daemon=True).start()
        try:
            yield registry
        finally:
            registry.shutdown()
