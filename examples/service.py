#!/usr/bin/env python3
"""A service of the examples: `service.py NAME PORT`. It answers each request with its name and
with whom the gateway says is calling."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together

    def do_GET(self):
        caller = self.headers.get("x-forwarded-client-cert", "nobody verified")
        body = f"{sys.argv[1]}, called by {caller}\n".encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_DELETE = do_GET

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Answer).serve_forever()
