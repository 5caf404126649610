"""What browsers send, within bounds."""

from starlette.requests import Request

from kvstore.errors import TooLarge


async def read_body(request: Request, bytes_max: int) -> bytes:
    """Raises TooLarge before it has read more than it may."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > bytes_max:
            raise TooLarge(f"more than {bytes_max} bytes")
    return bytes(body)
