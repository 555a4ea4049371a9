"""A service of HTTP/1.1 over TLS, whose certificate nobody need believe.

NAME CERTIFICATE KEY   prints `listening PORT`, answers `NAME` and the server name until it is killed
"""

import http.server
import ssl
import sys


def main(name, certificate, key):
    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = f"{name} {self.connection.asked_for}".encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    def note(connection, server_name, context):
        connection.asked_for = server_name

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.sni_callback = note
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print("listening", server.server_address[1], flush=True)
    server.serve_forever()


main(*sys.argv[1:])
