#!/usr/bin/env python3
"""A workload that ends TLS itself: `vault.py PORT CERTIFICATE KEY ANCHORS`. It asks each caller for
an SVID, verifies it against ANCHORS, and answers with the SPIFFE ID it found."""

import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        names = self.connection.getpeercert().get("subjectAltName", ())
        caller = " ".join(value for kind, value in names if kind == "URI")
        body = f"the vault is open for {caller}\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


port, certificate, key, anchors = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.minimum_version = ssl.TLSVersion.TLSv1_3
context.load_cert_chain(certificate, key)
context.load_verify_locations(anchors)
context.verify_mode = ssl.CERT_REQUIRED


class Server(ThreadingHTTPServer):
    # The handshake happens in the connection's own thread: a slow caller holds up nobody else.
    def finish_request(self, request, client_address):
        try:
            with context.wrap_socket(request, server_side=True) as stream:
                self.RequestHandlerClass(stream, client_address, self)
        except OSError as error:  # ssl.SSLError too
            print(f"{client_address}: {error}", flush=True)


Server(("127.0.0.1", int(port)), Answer).serve_forever()
