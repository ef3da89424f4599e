"""Mirrored SIP to one true record per call.

`wire` turns bytes into values, `calls` turns values into what is known about a call, `signals`
turns that into figures, `edges` owns sockets, files, clocks and processes. `pipeline` is the whole
house without its doors, `batch` waits for storage, `rows` encodes for it, `config` reads settings,
`app` builds and connects everything, `cli` is what a person types, `demo` makes sample traffic.
"""

__version__ = "0.1.0"
