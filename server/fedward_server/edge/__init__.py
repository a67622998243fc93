"""The edge: the one listener of the coordinator that sites reach.

`run_edge` is the process. Importing this package does not import grpc: the TLS setting of rules 17
must come first.
"""

from fedward_server.edge.process import run_edge

__all__ = ["run_edge"]
