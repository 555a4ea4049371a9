#!/usr/bin/env python3
"""A service that counts: `counting.py NAME PORT`. POST /hold makes it keep every request it gets from
then on, and never answer; GET /counts tells how many requests it has got and how many it has answered.
What it is told by these two is not counted."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.Lock()
counts = {"got": 0, "copies": 0, "answered": 0}
is_held = False


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together

    def do_GET(self):
        with lock:
            if self.path == "/counts":
                return self.answer(json.dumps(counts))
            counts["got"] += 1
            counts["copies"] += "x-zeugma-mirror" in self.headers
            if not is_held:
                counts["answered"] += 1
                return self.answer(sys.argv[1])
        threading.Event().wait()

    def do_POST(self):
        global is_held
        with lock:
            is_held = True
        self.answer("held")

    def answer(self, text):
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


Server(("127.0.0.1", int(sys.argv[2])), Answer).serve_forever()
