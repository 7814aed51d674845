"""Asking the web application without a socket."""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI


class Direct(httpx.BaseTransport):
    """Asks the application without a socket, as from `address`."""

    def __init__(self, app: FastAPI, address: str) -> None:
        self.app = app
        self.address = address

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            body = httpx.ByteStream(request.read())
            asked = httpx.Request(request.method, request.url, headers=request.headers, stream=body)
            answer = await httpx.ASGITransport(self.app, client=(self.address, 50000)).handle_async_request(asked)
            return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())

        return asyncio.run(ask())
