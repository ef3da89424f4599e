"""HEP over UDP, TCP and TLS to `deliver(datagram, now, received_at, peer)`.

`udp` drains one socket in ticks, `tcp` keeps two listeners and their connections, `session` is the
server's side of TLS without its socket, `sockets` is what both need to listen.
"""

from sipsidecar.edges.capture.sockets import CaptureError, Deliver
from sipsidecar.edges.capture.tcp import TcpCapture
from sipsidecar.edges.capture.udp import UdpCapture

__all__ = ["CaptureError", "Deliver", "TcpCapture", "UdpCapture"]
