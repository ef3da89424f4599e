"""An authority and a server's certificate, made once."""

from collections.abc import Callable
from ssl import SSLContext

import pytest

from certificates import Authority, Certificate
from sipsidecar.tls import server_context


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Trusted by the agents."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def server(authority: Authority) -> Certificate:
    """Of the sidecar."""
    return authority.issue("server")


@pytest.fixture(scope="session")
def make_context(server: Certificate) -> Callable[[], SSLContext]:
    """What a listener is given."""
    return lambda: server_context(*server)
