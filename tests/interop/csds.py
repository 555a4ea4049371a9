"""Asks a control plane what its clients have, by gRPC's own client and Envoy's own messages.

ADDRESS     prints `NODE TYPE SERVER'S-STATUS CLIENT'S-STATUS` for each, of one call and of a stream
"""

import sys

import grpc
from envoy.admin.v3 import config_dump_shared_pb2 as shared
from envoy.service.status.v3 import csds_pb2, csds_pb2_grpc


def main(address):
    with grpc.insecure_channel(address) as channel:
        stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(channel)
        request = csds_pb2.ClientStatusRequest()
        once = stub.FetchClientStatus(request, timeout=30)
        streamed = next(stub.StreamClientStatus(iter([request]), timeout=30))
    if [one.node.id for one in once.config] != [one.node.id for one in streamed.config]:
        sys.exit(f"a call says {once}, and a stream says {streamed}")
    for config in once.config:
        for one in config.generic_xds_configs:
            server = csds_pb2.ConfigStatus.Name(one.config_status)
            client = shared.ClientResourceStatus.Name(one.client_status)
            print(config.node.id, one.type_url.rsplit(".", 1)[1], server, client)


main(*sys.argv[1:])
