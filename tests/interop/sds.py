"""A secret discovery service by gRPC's own implementation and Envoy's own messages (PyPI: xds-protos).

ADDRESS METHOD CERTIFICATE KEY DOMAIN=ANCHORS ...   prints `listening PORT`, answers until it is killed

ADDRESS is `unix:PATH` or `127.0.0.1:0`; METHOD is `sotw` or `delta`, and the other one is not there. The
files are PEM. `default` is the certificate; `ROOTCA` has the anchors of all domains as Envoy's SPIFFE
validator takes them, and `spiffe://DOMAIN` those of one as its `trusted_ca`. What changed in a file is
said at once. What a client says of it is printed: `ack NAME VERSION`, `nack NAME WHY`.
"""

import hashlib
import queue
import sys
import threading
from concurrent import futures

import grpc
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_spiffe_validator_config_pb2 as spiffe
from envoy.service.discovery.v3 import discovery_pb2

SERVICE = "envoy.service.secret.v3.SecretDiscoveryService"
LOOK_SECONDS = 0.05


def source(path):
    with open(path, "rb") as file:
        return {"inline_bytes": file.read()}


def secret(name, certificate, key, bundles):
    made = secret_pb2.Secret(name=name)
    if name == "default":
        made.tls_certificate.CopyFrom(
            common_pb2.TlsCertificate(certificate_chain=source(certificate), private_key=source(key))
        )
    elif name == "ROOTCA":
        validator = spiffe.SPIFFECertValidatorConfig()
        for domain, anchors in bundles.items():
            validator.trust_domains.add(name=domain, trust_bundle=source(anchors))
        config = made.validation_context.custom_validator_config
        config.name = "envoy.tls.cert_validator.spiffe"
        config.typed_config.Pack(validator)
    else:
        anchors = bundles[name.removeprefix("spiffe://")]
        with open(anchors, "rb") as file:
            made.validation_context.trusted_ca.inline_bytes = file.read()
    return made


def main(address, method, certificate, key, *trusted):
    bundles = dict(one.split("=", 1) for one in trusted)

    def heard(request, names):
        if not request.response_nonce:
            return
        name = ",".join(names)
        if request.HasField("error_detail"):
            print(f"nack {name} {request.error_detail.message}", flush=True)
        else:
            print(f"ack {name} {request.response_nonce}", flush=True)

    def discover(requests, context, respond, names_of):
        asked = queue.Queue()

        def listen():
            try:
                for request in requests:
                    asked.put(request)
            except grpc.RpcError:
                pass

        threading.Thread(target=listen, daemon=True).start()
        names, said = [], None
        while context.is_active():
            try:
                request = asked.get(timeout=LOOK_SECONDS)
                names = names_of(request) or names
                heard(request, names)
            except queue.Empty:
                pass
            try:
                secrets = [secret(name, certificate, key, bundles) for name in names]
            except (OSError, KeyError):
                continue
            content = b"".join(one.SerializeToString(deterministic=True) for one in secrets)
            version = hashlib.sha256(content).hexdigest()[:12]
            if secrets and version != said:
                said = version
                yield respond(version, secrets)

    def whole(version, secrets):
        response = discovery_pb2.DiscoveryResponse(version_info=version, nonce=version)
        response.type_url = "type.googleapis.com/" + secret_pb2.Secret.DESCRIPTOR.full_name
        for one in secrets:
            response.resources.add().Pack(one)
        return response

    def changes(version, secrets):
        response = discovery_pb2.DeltaDiscoveryResponse(nonce=version)
        response.type_url = "type.googleapis.com/" + secret_pb2.Secret.DESCRIPTOR.full_name
        for one in secrets:
            resource = response.resources.add(name=one.name, version=version)
            resource.resource.Pack(one)
        return response

    def stream_secrets(requests, context):
        return discover(requests, context, whole, lambda request: list(request.resource_names))

    def delta_secrets(requests, context):
        return discover(requests, context, changes, lambda request: list(request.resource_names_subscribe))

    handlers = {
        "sotw": {
            "StreamSecrets": grpc.stream_stream_rpc_method_handler(
                stream_secrets,
                request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
                response_serializer=discovery_pb2.DiscoveryResponse.SerializeToString,
            )
        },
        "delta": {
            "DeltaSecrets": grpc.stream_stream_rpc_method_handler(
                delta_secrets,
                request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
                response_serializer=discovery_pb2.DeltaDiscoveryResponse.SerializeToString,
            )
        },
    }
    # Each stream keeps a thread: an Envoy opens one for each secret of each worker's context.
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers[method])])
    port = server.add_insecure_port(address)
    server.start()
    print(f"listening {port}", flush=True)
    server.wait_for_termination()


main(*sys.argv[1:])
