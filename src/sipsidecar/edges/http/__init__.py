"""Turns a running sidecar's figures into HTTP pages for those who may read them.

`guard` knows who may ask for what, `pages` what a page says, `verdicts` what switches ask and
operators tell, `connections` how many clients there may be and how long each may take, `listener`
joins them.
"""

from sipsidecar.edges.http.connections import Limits
from sipsidecar.edges.http.guard import Access
from sipsidecar.edges.http.listener import HttpError, HttpServer
from sipsidecar.edges.http.pages import MAX_LIVE

__all__ = ["MAX_LIVE", "Access", "HttpError", "HttpServer", "Limits"]
