"""The only sockets, files, clocks, processes and third-party clients.

Edges do not know each other; `app` connects them.
"""
