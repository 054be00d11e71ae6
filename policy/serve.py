"""Serve a checkpoint's plans to a robot over the network.

    cadence serve checkpoint=outputs/train/latest
    cadence run env=pillar policy=ws://127.0.0.1:8765            # the same loop, planned there

Plans for one client at a time. Serves this computer only, unless host= is given; then a token is
needed, which clients must know, and certfile= and keyfile= keep it and the observations from being
read on the way:

    openssl rand -hex 32 > token && chmod 600 token
    cadence serve checkpoint=outputs/train/latest host=0.0.0.0 token_file=token

`engine` says how the network is computed: auto is the fastest that is made in seconds; or best,
recorded, fused, compile, aot, cuda_graph. engine.weights=bf16 or int8 has smaller weights. Whatever
is taken is compared with the plain network first, and refused where an action is off by more than
engine.tolerance of its range.

checkpoint= may be a package of `cadence export`. One of format=aot is native code, which loading it
runs with all rights of this user: serve those of your own only.

GET /health, /ready and /metrics (Prometheus) answer on the same port; with page=true, a browser
shows there how the robot is controlled. Ctrl-C ends it. This protects an application; it is no
certified safety function: the robot's own stop stays mandatory.
"""

import asyncio
import logging
import os
import signal
from pathlib import Path

from omegaconf import DictConfig

from policy.entry import entry, use_threads
from policy.packaged.manifest import is_package
from policy.packaged_planner import package_planner
from policy.planning import AgentPlanner
from policy.serving.endpoints import WATCH_PAGE
from policy.serving.server import PolicyServer
from policy.serving.settings import ServerSettings


def read_token(token_file: str | None, token_env: str | None) -> str | None:
    """The secret from a file or an environment variable; None where neither is named.

    Raises:
        ValueError: both are named, or there is nothing.
    """
    if token_file is not None and token_env is not None:
        raise ValueError("token_file and token_env are both given: give one of them")
    if token_file is not None:
        path = Path(token_file)
        if not path.is_file():
            raise ValueError(f"token_file is {path}, which is no file: openssl rand -hex 32 > FILE")
        try:
            return path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"token_file is {path}, which cannot be read as text ({error}): "
                f"openssl rand -hex 32 > FILE"
            ) from error
    if token_env is not None:
        token = os.environ.get(token_env)
        if token is None:
            raise ValueError(f"token_env is {token_env}, which is not set: export {token_env}=...")
        return token
    return None


def _text(value: object) -> str | None:
    """A setting as it was written; a name of digits is a number for the configuration."""
    return None if value is None else str(value)


def settings_of(cfg: DictConfig) -> ServerSettings:
    """The server's settings as configured."""
    return ServerSettings(
        host=str(cfg.host),
        port=cfg.port,
        token=read_token(_text(cfg.token_file), _text(cfg.token_env)),
        certfile=None if cfg.certfile is None else Path(str(cfg.certfile)),
        keyfile=None if cfg.keyfile is None else Path(str(cfg.keyfile)),
        page=WATCH_PAGE if cfg.page else None,
        lease_seconds=cfg.lease_seconds,
    )


async def serve(server: PolicyServer) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        Exception: what the planner raised while it warmed up.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    settings = server.settings
    async with server:
        print(f"listening on {server.address}, warming up", flush=True)
        until_end = asyncio.create_task(ended.wait())
        until_ready = asyncio.create_task(server.wait_ready())
        await asyncio.wait([until_end, until_ready], return_when=asyncio.FIRST_COMPLETED)
        if until_ready.done():
            until_ready.result()
            print(f"ready: cadence run env=... policy={server.address}", flush=True)
        if settings.page is not None:
            print(f"watch: http{server.address.removeprefix('ws')}/", flush=True)
        if settings.token is not None:
            print("clients need the token", flush=True)
        if not settings.is_loopback and settings.certfile is None:
            print("without TLS: whoever is on the way can read along (certfile=, keyfile=)")
        await until_end
        until_ready.cancel()
    print("ended", flush=True)


def planner_of(cfg: DictConfig) -> AgentPlanner:
    """The planner of a checkpoint, or of a package that `cadence export` made of one.

    Raises:
        ValueError: there is none, or it cannot be used as configured.
    """
    if is_package(str(cfg.checkpoint)):
        planner = package_planner(cfg, "serve")
        print(f"package {cfg.checkpoint}: {planner.agent.calls}")
        return planner
    from policy.checkpoint_planner import checkpoint_planner  # Packages need no networks.

    return checkpoint_planner(cfg, foresight=cfg.foresight)


def run(cfg: DictConfig) -> None:
    """Serve as configured."""
    settings = settings_of(cfg)  # First, since it takes no time to be refused.
    use_threads(cfg.threads)
    planner = planner_of(cfg)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    server = PolicyServer(
        planner,
        settings,
        warm_up=planner.warm_up,
        name=f"checkpoint {cfg.checkpoint}",
        nfe=planner.agent.nfe,
    )
    asyncio.run(serve(server))


def main() -> None:
    """Entry point."""
    entry("serve", run)


if __name__ == "__main__":
    main()
