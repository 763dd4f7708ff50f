"""What every test may rely on: few threads, no denormals, no network, and the same random numbers each time."""

from __future__ import annotations

import os

# Before torch is imported, and inherited by the processes that tests start. One thread, unless told otherwise:
# tests run side by side, and sums over several threads add up in an order that differs from machine to machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import random
import signal
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

# Found examples are the same each time, and a slow machine is no failure.
settings.register_profile("trilemma", derandomize=True, deadline=None)
settings.load_profile("trilemma")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))
# Layers initialised near zero make denormal gradients, with which a CPU computes some thirty times slower.
torch.set_flush_denormal(True)
# A shell lets its background jobs ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Each test starts from the same global random state, whatever ran before it in the process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept for later lies in a folder of this session: no test reads the user's cache or fills it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """A test that wants a host name looked up fails at once: torch.hub, torchvision and urllib all end up here.

    Names of this computer pass, as processes that train together find each other by them.
    """
    look_up = socket.getaddrinfo
    own = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()}

    def local_only(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in own:
            raise OSError(f"tests do not use the network, but one asked for {name!r}: give it local files")
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", local_only)
        yield
