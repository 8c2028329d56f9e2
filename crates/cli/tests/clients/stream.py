"""Prints an exec's events as they come over a WebSocket, one JSON object per line.

It is a client that knows nothing of pinfold but the address of a stream.
"""

import argparse
import os
import ssl
import sys

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

# Longest time for the handshake on a busy machine.
OPEN_MAX_S = 60


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--ca", help="file with the certificate that is trusted")
    arguments = parser.parse_args()
    headers = {}
    if key := os.environ.get("KEY"):
        headers["Authorization"] = f"Bearer {key}"
    context = None
    if arguments.ca:
        context = ssl.create_default_context(cafile=arguments.ca)
    try:
        with connect(
            arguments.url,
            additional_headers=headers,
            ssl=context,
            proxy=None,
            open_timeout=OPEN_MAX_S,
        ) as stream:
            for message in stream:
                print(message, flush=True)
    except InvalidStatus as refused:
        print(f"status {refused.response.status_code}", file=sys.stderr)
        return 3
    except ConnectionClosed as closed:
        print(f"cut off: {closed}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
