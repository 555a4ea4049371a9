"""A name server for pod.sh: `dns.py ADDRESS NAME=IPV4...`; no other name exists (RFC 1035 §4)."""

import ipaddress
import socket
import struct
import sys

A, NXDOMAIN = 1, 3
known = dict(pair.split("=") for pair in sys.argv[2:])
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
while True:
    query, caller = server.recvfrom(512)
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
        at += 1 + query[at]
    question = query[12 : at + 5]
    (kind,) = struct.unpack_from(">H", query, at + 1)
    address = known.get(".".join(labels))
    answer = b""
    if address and kind == A:
        answer = struct.pack(">HHHIH", 0xC00C, A, 1, 30, 4) + ipaddress.IPv4Address(address).packed
    flags = 0x8580 | (0 if address else NXDOMAIN)
    head = query[:2] + struct.pack(">HHHHH", flags, 1, 1 if answer else 0, 0, 0)
    server.sendto(head + question + answer, caller)
