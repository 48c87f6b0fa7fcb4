"""The ZeroMQ transport's public face: an endpoint that outlives plans, and what it opens for one.

endpoint.py    the listening socket and the I/O thread
zmq_plan.py    one rank's transport for one plan: what a step calls
inbound.py     messages in, whole frames to mailboxes; outbound.py: streams, and whose turn it is
probe.py       measuring a link; addresses.py: addresses and keys
wire.py        the header; striping.py: a frame in pieces; lane.py, mailbox.py, limits.py: credit
"""

from worker.addresses import CurveKeys, PeerAddress
from worker.endpoint import DataEndpoint
from worker.probe import LinkMeasurement
from worker.zmq_plan import ZmqTransport

__all__ = ["CurveKeys", "DataEndpoint", "LinkMeasurement", "PeerAddress", "ZmqTransport"]
