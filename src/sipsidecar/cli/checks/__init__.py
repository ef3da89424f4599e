"""The checks of `sipsidecar doctor`, by what they look at.

`case` is what they all see, `settings` checks files, `sidecar` the running process and its ports,
`database` PostgreSQL, `resources` the machine; `certificates` reads when a certificate ends.
"""
