"""A WebSocket service and client (RFC 6455) by the `websockets` package.

serve                     prints `listening PORT`, echoes every message until it is killed
call PORT HOST TEXT ...   sends each text and a binary message of 256 KiB, one line of JSON
"""

import json
import socket
import sys

from websockets.sync.client import connect
from websockets.sync.server import serve


def echo(connection):
    for message in connection:
        connection.send(message)


def run_service():
    with serve(echo, "127.0.0.1", 0) as server:
        print(f"listening {server.socket.getsockname()[1]}", flush=True)
        server.serve_forever()


def call(port, host, texts):
    stream = socket.create_connection(("127.0.0.1", port), timeout=20)
    answers = []
    with connect(f"ws://{host}/chat", sock=stream, open_timeout=20, max_size=None) as ws:
        for text in texts:
            ws.send(text)
            answers.append(ws.recv(timeout=20))
        large = bytes(range(256)) * 1024
        ws.send(large)
        same = ws.recv(timeout=20) == large
        ws.close(1000, "done")
    print(json.dumps({"answers": answers, "large": same, "closed": ws.close_code}))


if sys.argv[1] == "serve":
    run_service()
else:
    call(int(sys.argv[2]), sys.argv[3], sys.argv[4:])
