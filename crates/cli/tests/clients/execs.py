"""Runs many short programs at once, spread over sandboxes, and tells how many gave what they should.

Arguments are the port, the number of programs and the sandboxes. Every request has a connection of its
own, and all are sent before the first answer is waited for.
"""

import asyncio
import collections
import json
import os
import sys


async def ask(port, sandbox, number, all_open):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await all_open.wait()
    body = json.dumps({"command": ["echo", f"number {number}"]}).encode()
    writer.write(
        f"POST /v1/sandboxes/{sandbox}/exec HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        f"authorization: Bearer {os.environ['KEY']}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await writer.drain()
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    result = json.loads(body)
    if status == 200 and result["exit_code"] == 0 and result["stdout"] == f"number {number}\n":
        return "succeeded"
    return f"{status} {json.dumps(result)[:200]}"


async def main():
    port, count, sandboxes = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    all_open = asyncio.Event()
    asked = [
        asyncio.create_task(ask(port, sandboxes[number % len(sandboxes)], number, all_open))
        for number in range(count)
    ]
    await asyncio.sleep(0)
    all_open.set()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    print(json.dumps(collections.Counter(str(outcome) for outcome in outcomes)))


if __name__ == "__main__":
    asyncio.run(main())
