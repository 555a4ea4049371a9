#!/usr/bin/env python3
"""Sends GET requests to orders until it is told to stop, and writes who answered each, one a line:
`client.py PORT ANSWERS`. A request that got no good answer is a line `lost`."""

import http.client
import sys
import time

with open(sys.argv[2], "w", buffering=1) as answers:
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
            connection.request("GET", "/", headers={"Host": "orders.shop.svc.clusterset.local"})
            response = connection.getresponse()
            name = response.read().decode().split(",")[0]
            answers.write(f"{name if response.status == 200 else f'lost {response.status}'}\n")
            connection.close()
        except OSError as error:
            answers.write(f"lost {error}\n")
        time.sleep(0.01)
