"""Whether this machine's Kamailio has a module: some are in Debian packages of their own."""

from pathlib import Path

import pytest

from live.programs import REQUIRE_LIVE, need

_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")


def need_evapi() -> None:
    """It can be asked; without it the test is skipped, or fails if SIPSIDECAR_REQUIRE_LIVE=1."""
    need_module("evapi", "kamailio-extra-modules")


def need_module(name: str, package: str) -> None:
    """Without it the test is skipped, or fails if SIPSIDECAR_REQUIRE_LIVE=1."""
    need("kamailio", "kamailio")
    for folder in _FOLDERS:
        if any(Path(folder).glob(f"**/kamailio/modules/{name}.so")):
            return
    reason = f"Kamailio's {name} is not installed (Debian: apt-get install {package})"
    if REQUIRE_LIVE:
        pytest.fail(reason)
    pytest.skip(reason)
