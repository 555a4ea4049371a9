"""A SPIFFE Workload API by gRPC's own implementation, without generated code.

SOCKET ID CERTIFICATE KEY DOMAIN=ANCHORS ...   prints `listening`, answers until it is killed

The files are PEM; the first domain is the SVID's own. What changed in them is said at once. The
messages and their numbers are those of workloadapi.proto in the SPIFFE standards.
"""

import base64
import re
import sys
import time
from concurrent import futures

import grpc

SERVICE = "SpiffeWorkloadAPI"
LOOK_SECONDS = 0.05


def der(path):
    with open(path) as file:
        blocks = re.findall(r"-----BEGIN [^-]+-----([^-]+)-----END", file.read())
    return b"".join(base64.b64decode(block) for block in blocks)


def field(number, content):
    length, head = len(content), bytes([number << 3 | 2])
    while length >= 0x80:
        head += bytes([length & 0x7F | 0x80])
        length >>= 7
    return head + bytes([length]) + content


def answer(spiffe_id, certificate, key, bundles):
    (_, own), *others = bundles
    svid = field(1, spiffe_id.encode())
    svid += field(2, der(certificate)) + field(3, der(key)) + field(4, der(own))
    message = field(1, svid)
    for domain, anchors in others:
        name = f"spiffe://{domain}".encode()
        message += field(3, field(1, name) + field(2, der(anchors)))
    return message


def main(socket, spiffe_id, certificate, key, *trusted):
    bundles = [one.split("=", 1) for one in trusted]

    def fetch(request, context):
        metadata = dict(context.invocation_metadata())
        if metadata.get("workload.spiffe.io") != "true":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing")
        said = None
        while context.is_active():
            now = answer(spiffe_id, certificate, key, bundles)
            if now != said:
                yield now
                said = now
            time.sleep(LOOK_SECONDS)

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    handlers = {"FetchX509SVID": grpc.unary_stream_rpc_method_handler(fetch)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    print("listening", flush=True)
    server.wait_for_termination()


main(*sys.argv[1:])
