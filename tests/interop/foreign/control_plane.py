"""A control plane by gRPC's own implementation and Envoy's own messages, of files.

FOLDER [PROTOCOL]   prints `listening PORT`, serves the resources in FOLDER/*.json until it is killed; with
                    the protocol `sotw` it knows no other
FOLDER pack OUT     writes the resources as a `DeltaDiscoveryResponse` to the file OUT

A file holds a list of resources as protobuf's JSON, each with its `@type`. What changed in them is said
at once. What a client says of a response is printed: `ack KIND NONCE`, or `nack KIND NONCE DETAIL`; and
`asked KIND sotw|delta` when it asks for a kind first.
"""

import hashlib
import json
import pathlib
import queue
import sys
import threading
from concurrent import futures

import grpc
from google.protobuf import any_pb2, json_format

# What a file may hold has to be known to protobuf.
from envoy.config.cluster.v3 import cluster_pb2  # noqa: F401
from envoy.config.listener.v3 import listener_pb2  # noqa: F401
from envoy.config.route.v3 import route_pb2  # noqa: F401
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: F401
    http_connection_manager_pb2,
)
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2  # noqa: F401
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2  # noqa: F401
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

LOOK_SECONDS = 0.05
# Whatever these are asked for, all of them are sent.
WILDCARD = {
    "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    "type.googleapis.com/envoy.config.listener.v3.Listener",
}


def say(*words):
    print(*words, flush=True)


def digest(content):
    return hashlib.sha256(content).hexdigest()[:12]


class Folder:
    """What is in the files: of each type the resources by name."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.texts = None
        self.has = {}
        self.lock = threading.Lock()

    def look(self):
        with self.lock:
            texts = [file.read_text() for file in sorted(self.path.glob("*.json"))]
            if texts != self.texts:
                self.has = self.read(texts)
                self.texts = texts
            return self.has

    @staticmethod
    def read(texts):
        has = {}
        for text in texts:
            for resource in json.loads(text):
                name = resource.get("name") or resource.get("clusterName")
                packed = any_pb2.Any()
                json_format.ParseDict(resource, packed)
                has.setdefault(packed.type_url, {})[name] = packed
        return has


class Kind:
    """One type on one stream: what is wanted, what was told, and whether that was answered."""

    def __init__(self, url):
        self.url = url
        self.names = set()
        self.is_wildcard = False
        self.told = {}
        self.is_owed = True
        # Asked for, and not answered yet.
        self.fresh = set()
        self.unanswered = None

    def wanted(self, has):
        all_of_it = has.get(self.url, {})
        if self.is_wildcard:
            return all_of_it
        return {name: all_of_it[name] for name in self.names if name in all_of_it}


class Discovery(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    def __init__(self, folder, protocol):
        self.folder = folder
        self.protocol = protocol

    def StreamAggregatedResources(self, requests, context):
        return self.stream(requests, "sotw", self.asked_in_full, self.in_full)

    def DeltaAggregatedResources(self, requests, context):
        if self.protocol == "sotw":
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "there are no deltas here")
        return self.stream(requests, "delta", self.asked_for_changes, self.changes)

    def stream(self, requests, protocol, asked, answer):
        heard = queue.Queue()

        def hear():
            try:
                for request in requests:
                    heard.put(request)
            except grpc.RpcError:
                pass
            heard.put(None)

        threading.Thread(target=hear, daemon=True).start()
        kinds = {}
        nonces = 0
        while True:
            try:
                request = heard.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                pass
            else:
                if request is None:
                    return
                self.take(kinds, request, protocol, asked)
            has = self.folder.look()
            for kind in kinds.values():
                if kind.unanswered is None:
                    response = answer(kind, has)
                    if response is not None:
                        nonces += 1
                        kind.unanswered = response.nonce = str(nonces)
                        yield response

    @staticmethod
    def take(kinds, request, protocol, asked):
        url = request.type_url
        short = url.rsplit(".", 1)[-1]
        is_first = url not in kinds
        if is_first:
            kinds[url] = Kind(url)
            say("asked", short, protocol)
        kind = kinds[url]
        asked(kind, request, is_first)
        if request.response_nonce:
            if request.HasField("error_detail"):
                detail = request.error_detail.message.replace("\n", " ")
                say("nack", short, request.response_nonce, detail)
            else:
                say("ack", short, request.response_nonce)
            if request.response_nonce == kind.unanswered:
                kind.unanswered = None

    @staticmethod
    def asked_in_full(kind, request, is_first):
        names = set(request.resource_names)
        if names != kind.names:
            kind.is_owed = True
        kind.names = names
        kind.is_wildcard = not names and kind.url in WILDCARD

    @staticmethod
    def in_full(kind, has):
        wanted = kind.wanted(has)
        content = {name: digest(packed.value) for name, packed in wanted.items()}
        if content == kind.told and not kind.is_owed:
            return None
        kind.told, kind.is_owed = content, False
        return discovery_pb2.DiscoveryResponse(
            type_url=kind.url,
            version_info=digest(json.dumps(content, sort_keys=True).encode()),
            resources=wanted.values(),
        )

    @staticmethod
    def asked_for_changes(kind, request, is_first):
        if is_first:
            kind.is_wildcard = not request.resource_names_subscribe
            kind.told = dict(request.initial_resource_versions)
        subscribed = set(request.resource_names_subscribe)
        kind.names = (kind.names | subscribed) - set(request.resource_names_unsubscribe)
        kind.fresh |= subscribed
        for name in subscribed:
            kind.told.pop(name, None)

    @staticmethod
    def changes(kind, has):
        wanted = kind.wanted(has)
        content = {name: digest(packed.value) for name, packed in wanted.items()}
        changed = [name for name, version in content.items() if kind.told.get(name) != version]
        gone = [name for name in kind.fresh | kind.told.keys() if name not in content]
        kind.fresh = set()
        if not changed and not gone and not kind.is_owed:
            return None
        kind.told, kind.is_owed = content, False
        return discovery_pb2.DeltaDiscoveryResponse(
            type_url=kind.url,
            system_version_info=digest(json.dumps(content, sort_keys=True).encode()),
            resources=[
                discovery_pb2.Resource(name=name, version=content[name], resource=wanted[name])
                for name in changed
            ],
            removed_resources=gone,
        )


def pack(has, out):
    every = [(name, packed) for named in has.values() for name, packed in named.items()]
    response = discovery_pb2.DeltaDiscoveryResponse(
        resources=[discovery_pb2.Resource(name=name, resource=packed) for name, packed in every]
    )
    pathlib.Path(out).write_bytes(response.SerializeToString())


def main(path, protocol=None, out=None):
    folder = Folder(path)
    has = folder.look()
    if out is not None:
        pack(has, out)
        return
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(Discovery(folder, protocol), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say("listening", port)
    server.wait_for_termination()


main(*sys.argv[1:])
