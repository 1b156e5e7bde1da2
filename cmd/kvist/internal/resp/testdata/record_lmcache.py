# SPDX-License-Identifier: Apache-2.0
"""Records what LMCache's Redis connector sends and Redis answers: record_lmcache.py PORT > lmcache.json

Needs the package redis and a Redis server on PORT of this machine. The calls are those of RedisConnector of LMCache
0.5.6 (exists, put, get, of one and of several keys, and of a value that was evicted); the connector itself needs torch.
"""
import asyncio
import base64
import json
import struct
import sys

import redis.asyncio as redis

turns = []


async def serve(port, reader, writer):
    """Passes commands one at a time to the server, and notes both sides."""
    up_r, up_w = await asyncio.open_connection("127.0.0.1", port)
    while data := await reader.read(1 << 20):
        up_w.write(data)
        await up_w.drain()
        answer = await up_r.read(1 << 20)
        writer.write(answer)
        await writer.drain()
        if b"CLIENT" not in data:  # what the client says of itself: Redis answers by its version
            turns.append((data, answer))


def metadata(length):
    # RemoteMetadata: the length, the number of dtype and format, four sizes.
    return struct.pack("<7i", length, 2, 1, 2, 2, 8, 16)


async def main(port):
    server = await asyncio.start_server(lambda r, w: serve(port, r, w), "127.0.0.1", 0)
    here = server.sockets[0].getsockname()[1]
    pool = redis.ConnectionPool.from_url(f"redis://127.0.0.1:{here}", max_connections=1)
    c = redis.Redis.from_pool(pool)
    keys = [f"HuggingFaceTB/SmolLM2-135M-Instruct@1@0@{h:x}@bfloat16" for h in (0x51AB, 0x77F0, 0x9C3D)]
    kv = bytes(((i * 37 + j * 11) % 251) for i in range(64) for j in range(16))
    await c.exists(keys[0] + "metadata")
    await c.get(keys[0] + "metadata")
    for k in keys[:2]:  # put: the bytes first
        await c.set(k + "kv_bytes", kv)
        await c.set(k + "metadata", metadata(len(kv)))
    for k in keys:  # batched_async_contains
        await c.exists(k + "metadata")
    for k in keys[:2]:
        assert await c.get(k + "metadata") == metadata(len(kv))
        assert await c.get(k + "kv_bytes") == kv
    await c.delete(keys[1] + "kv_bytes")  # as if it had been evicted
    await c.get(keys[1] + "kv_bytes")
    await c.delete(keys[1] + "metadata")
    await c.exists(keys[1] + "metadata")
    await c.ping()
    await c.aclose()
    json.dump([{"Client": base64.b64encode(a).decode(), "Server": base64.b64encode(b).decode()} for a, b in turns],
              sys.stdout, indent=1)
    server.close()


asyncio.run(main(int(sys.argv[1])))
