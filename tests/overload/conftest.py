"""The overload rig in short needs what the long runs need; without it they skip with a reason."""

import shutil

import pytest

from live.programs import REQUIRE_LIVE, need
from overload.rig import modules


@pytest.fixture
def proxy() -> None:
    """A Kamailio with the modules that the ways of admission need."""
    need("kamailio", "kamailio")
    if "evapi.so" not in modules():
        reason = "Kamailio has no evapi (Debian: apt-get install kamailio-extra-modules)"
        if REQUIRE_LIVE:
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def compiler() -> None:
    """What the load generator is made with."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed (Debian: apt-get install gcc libc6-dev)")
