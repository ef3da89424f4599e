"""What a person types: run, demo, replay, calls, ladder, pcap, dsn, check-config."""

from sipsidecar.cli.commands import main

__all__ = ["main"]
