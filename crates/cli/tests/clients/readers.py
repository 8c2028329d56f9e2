"""Reads one exec's events over many WebSockets at once and tells what each has seen, as one JSON object.

When every reader has its first event, a line `open` is printed. With --again a reader that is cut off
comes back and asks for what follows its last event.
"""

import argparse
import asyncio
import hashlib
import json
import os
import time

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, InvalidMessage, WebSocketException

# Longest time for a handshake, and for a daemon to come back, on a busy machine.
PATIENCE_S = 60

# Time between two looks for a daemon that went away.
LOOK_S = 0.05


class Reader:
    def __init__(self, options, opened):
        self.options = options
        self.opened = opened
        self.last = 0
        self.wrong = []
        self.connections = 0
        self.ended = False
        self.hash = hashlib.sha256()

    def take(self, message):
        event = json.loads(message)
        if "error" in event:
            # The daemon says that it ends; the stream does so next.
            return
        if event["seq"] != self.last + 1:
            self.wrong.append([self.last, event["seq"], event["type"]])
        self.last = event["seq"]
        self.hash.update(event.get("data", "").encode())
        self.ended = event["type"] == "exit"
        if self.last == 1:
            self.opened()

    async def read(self):
        async with connect(
            f"{self.options.url}&from_seq={self.last + 1}",
            additional_headers=self.options.headers,
            proxy=None,
            open_timeout=PATIENCE_S,
            ping_interval=None,
        ) as stream:
            self.connections += 1
            async for message in stream:
                self.take(message)

    async def run(self):
        deadline = time.monotonic() + PATIENCE_S
        while not self.ended:
            before = self.last
            try:
                await self.read()
            except (OSError, EOFError, WebSocketException, InvalidHandshake, InvalidMessage):
                pass
            if self.last > before:
                deadline = time.monotonic() + PATIENCE_S
            if not self.options.again or time.monotonic() > deadline:
                return
            await asyncio.sleep(LOOK_S)


async def main(options):
    left = options.count

    def opened():
        nonlocal left
        left -= 1
        if left == 0:
            print("open", flush=True)

    readers = [Reader(options, opened) for _ in range(options.count)]
    await asyncio.gather(*(reader.run() for reader in readers))
    print(
        json.dumps(
            {
                "ended": sum(reader.ended for reader in readers),
                "wrong": [reader.wrong for reader in readers if reader.wrong],
                "events": sorted({reader.last for reader in readers}),
                "digests": sorted({reader.hash.hexdigest() for reader in readers}),
                "connections": sum(reader.connections for reader in readers),
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    options.headers = {"Authorization": f"Bearer {os.environ['KEY']}"}
    asyncio.run(main(options))
