"""Turns a folder into a running PostgreSQL: binaries, a cluster, and one supervised server.

`cluster` knows what lies in a data directory, `lock` gives it one owner, `binaries` finds what to
run, `process` runs it, `log` bounds what it prints, `server` keeps one server up.
"""

from sipsidecar.edges.embedded.binaries import Binaries, find_binaries
from sipsidecar.edges.embedded.cluster import (
    EmbeddedError,
    cluster_major,
    default_directory,
    dsn_of,
)
from sipsidecar.edges.embedded.lock import DirectoryLock, InUseError
from sipsidecar.edges.embedded.server import EmbeddedPostgres, reach

__all__ = [
    "Binaries",
    "DirectoryLock",
    "EmbeddedError",
    "EmbeddedPostgres",
    "InUseError",
    "cluster_major",
    "default_directory",
    "dsn_of",
    "find_binaries",
    "reach",
]
