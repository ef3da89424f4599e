"""Whether this machine's Kamailio can be asked: evapi is in a Debian package of its own."""

from pathlib import Path

import pytest

from live.programs import REQUIRE_LIVE, need

PACKAGE = "kamailio-extra-modules"
_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")


def need_evapi() -> None:
    """Without it the test is skipped, or fails if SIPSIDECAR_REQUIRE_LIVE=1."""
    need("kamailio", "kamailio")
    for folder in _FOLDERS:
        if any(Path(folder).glob("**/kamailio/modules/evapi.so")):
            return
    reason = f"Kamailio's evapi is not installed (Debian: apt-get install {PACKAGE})"
    if REQUIRE_LIVE:
        pytest.fail(reason)
    pytest.skip(reason)
