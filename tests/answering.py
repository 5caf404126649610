"""A node that answers as a test tells it, behind a real gRPC server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kvstore.pb import node_pb2_grpc
from kvstore.rpc.channel import make_server


@asynccontextmanager
async def answering(folder: Path, node: node_pb2_grpc.NodeServicer, name: str = "node") -> AsyncIterator[str]:
    """Its address, which is in the folder."""
    server = make_server()
    node_pb2_grpc.add_NodeServicer_to_server(node, server)
    address = f"unix:{folder}/{name}.sock"
    server.add_insecure_port(address)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)
