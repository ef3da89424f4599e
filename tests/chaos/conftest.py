"""The chaos scripts in short need what the long ones need; without it they skip with a reason."""

import shutil

import pytest

NEEDED = {"cc": "gcc libc6-dev", "openssl": "openssl"}


@pytest.fixture(autouse=True)
def _equipped(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("slow") is None:
        return
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: apt-get install {package})")
