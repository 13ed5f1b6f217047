"""Calls of an application in this process, for the tests of the API."""

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI


class Client:
    """Plain calls of an application in this process, without a port; its start and end run as under a server."""

    def __init__(self, app: FastAPI) -> None:
        # An error that nobody foresaw comes as an answer, as it would to anybody.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.app = app
        self.http = httpx.AsyncClient(transport=transport, base_url="http://kairos.test")
        self.lifespan = app.router.lifespan_context(app)
        self.runner = asyncio.Runner()

    def __enter__(self) -> "Client":
        self.runner.run(self.lifespan.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.run(self.http.aclose())
        self.runner.run(self.lifespan.__aexit__(None, None, None))
        self.runner.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.runner.run(self.http.request(method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)


@dataclass
class Caller:
    """A client with a key of its own."""

    client: Client
    secret: str

    def __call__(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.secret}"} | options.pop("headers", {})
        return self.client.request(method, path, headers=headers, **options)
