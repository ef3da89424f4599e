"""Decisions made effective in Kamailio: pushed to its htable, or answered through its evapi."""
