"""Serve a model on this machine: OpenAI's chat interface, and a page to talk to it.

python -m vlmkit.serve run=<run folder>
python -m vlmkit.serve checkpoint=<folder or hub id> media_root=<folder> port=8001
"""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

import socket
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from vlmkit.build import build, entry_point
from vlmkit.errors import ConfigError
from vlmkit.generate import load
from vlmkit.models.generation import Budget, Sampling

STOP_LIMIT_S = 5


@entry_point("serve", free_text=("name", "api_key"))
def main(config: DictConfig) -> None:
    """Load, then serve until interrupted."""
    try:
        import uvicorn

        from vlmkit.serving.app import chat_app
        from vlmkit.serving.limits import Limits
        from vlmkit.serving.media_files import MediaFiles
        from vlmkit.serving.prompt import PromptMaker, check_fit
    except ImportError as error:
        raise ConfigError(f"serving needs pip install 'vlmkit[serve]' ({error})") from error
    sampling: Sampling = build(config.sampling)
    limits: Limits = build(config.limits)
    budget: Budget = build(config.budget)
    if not isinstance(config.max_new_tokens, int) or config.max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens must be a whole number from 1: {config.max_new_tokens}")
    try:
        check_fit(limits, budget)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    media = MediaFiles(_texts(config.media_root), limits.file_bytes)
    with listen(config.host, config.port) as listener:  # before the weights are read
        model, processor = load(config)
        maker = PromptMaker(
            processor=processor,
            media=media,
            limits=limits,
            budget=budget,
            sampling=sampling,
            max_new_tokens=config.max_new_tokens,
            device=next(model.parameters()).device,
        )
        hosts = config.allowed_hosts
        app = chat_app(
            model,
            maker,
            name=config.name or Path(str(config.run or config.checkpoint)).name,
            api_key=None if config.api_key is None else str(config.api_key),
            allowed_hosts=allowed_hosts(config.host)
            if hosts is None
            else OmegaConf.to_container(hosts),  # type: ignore[arg-type]
        )
        address = f"http://{_written(config.host)}:{listener.getsockname()[1]}"
        console = Console()
        console.print(f"chat page: {address}/    API: {address}/v1", highlight=False)
        if not is_local(config.host) and config.api_key is None:
            console.print("[yellow]Anyone on the network can use it: set api_key.[/]")
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                ws="none",
                timeout_graceful_shutdown=STOP_LIMIT_S,
            )
        )
        with suppress(KeyboardInterrupt):  # the usual way to end it
            server.run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address is taken, or is none of this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except (OSError, OverflowError, TypeError) as error:
        raise ConfigError(
            f"host={host} port={port}: cannot listen there ({error}); try port=0"
        ) from error


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host: str) -> list[str]:
    """Names by which a server that listens there is called.

    A web page can make a name of its own point at this machine; under that name it gets nothing.
    """
    return ["localhost", "127.0.0.1", "::1", "[::1]", host] if is_local(host) else ["*"]


def _texts(value: Any) -> list[str]:
    """A list, one value in place of a list of one, or nothing."""
    if value is None:
        return []
    return [str(item) for item in (value if OmegaConf.is_list(value) else [value])]


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    main()
