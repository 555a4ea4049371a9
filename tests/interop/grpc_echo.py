"""A gRPC service and client of bytes, without generated code.

serve                                   prints `listening PORT`, answers until it is killed
call TARGET AUTHORITY METHOD TEXT ...   one call, the outcome as one line of JSON; the text
                                        `N x T` stands for T repeated N times
follow TARGET                           calls over and over on one channel, and prints `served PORT` or
                                        `failed CODE` whenever that is not as before

Methods of /zeugma.test.Echo: Unary answers its request, Fail ends with RESOURCE_EXHAUSTED,
Chat answers each message of a stream as it comes, Turn has gRPC's own health service say its request
(SERVING or NOT_SERVING) of it. Every answer's initial metadata tells what the service saw: the
authority and x-forwarded-client-cert, and which port served it.
"""

import json
import sys
import time
from concurrent import futures

import grpc

SERVICE = "zeugma.test.Echo"
PORT = 0


def saw(context):
    metadata = dict(context.invocation_metadata())
    seen = [("x-saw-xfcc", metadata.get("x-forwarded-client-cert", ""))]
    seen.append(("x-served-by", str(PORT)))
    context.send_initial_metadata(seen)


def unary(request, context):
    saw(context)
    context.set_trailing_metadata([("x-end", "reached")])
    return request


def fail(request, context):
    saw(context)
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, request.decode())


def chat(requests, context):
    saw(context)
    for request in requests:
        yield request


def serve():
    # Only who serves needs protobuf.
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    statuses = health_pb2.HealthCheckResponse.ServingStatus
    checks = health.HealthServicer()
    checks.set(SERVICE, statuses.SERVING)

    def turn(request, context):
        checks.set(SERVICE, statuses.Value(request.decode()))
        return request

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                SERVICE,
                {
                    "Unary": grpc.unary_unary_rpc_method_handler(unary),
                    "Fail": grpc.unary_unary_rpc_method_handler(fail),
                    "Turn": grpc.unary_unary_rpc_method_handler(turn),
                    "Chat": grpc.stream_stream_rpc_method_handler(chat),
                },
            )
        ]
    )
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    global PORT
    PORT = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening {PORT}", flush=True)
    server.wait_for_termination()


def spell(text):
    count, by, what = text.partition(" x ")
    return (what * int(count) if by else text).encode()


def call(target, authority, method, texts):
    options = [("grpc.default_authority", authority), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(target, options) as channel:
        path = f"/{SERVICE}/{method}"
        messages = [spell(text) for text in texts]
        try:
            if method == "Chat":
                started = channel.stream_stream(path)(iter(messages), timeout=20)
                answers = [answer.decode() for answer in started]
            else:
                answer, started = channel.unary_unary(path).with_call(messages[0], timeout=20)
                answers = [answer.decode()]
            outcome = {"code": "OK", "answers": answers}
        except grpc.RpcError as error:
            started = error
            outcome = {"code": error.code().name, "details": error.details(), "answers": []}
    metadata = [*(started.initial_metadata() or []), *(started.trailing_metadata() or [])]
    outcome["metadata"] = {key: value for key, value in metadata if isinstance(value, str)}
    print(json.dumps(outcome))


def follow(target):
    last = None
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        unary = channel.unary_unary(f"/{SERVICE}/Unary")
        while True:
            try:
                _, call = unary.with_call(b"", timeout=20)
                outcome = "served " + dict(call.initial_metadata())["x-served-by"]
            except grpc.RpcError as error:
                outcome = f"failed {error.code().name} {error.details()}"
            if outcome != last:
                print(outcome, flush=True)
            last = outcome
            time.sleep(0.02)


if sys.argv[1] == "serve":
    serve()
elif sys.argv[1] == "follow":
    follow(sys.argv[2])
else:
    call(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
