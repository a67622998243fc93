"""The gateway: the only way between the site's Flower processes and the coordinator.

`run_gateway` is the process. Importing this package does not import grpc: the TLS setting of
rules 17 must come first.
"""

from fedward_client.gateway.process import GatewayConfig, run_gateway

__all__ = ["GatewayConfig", "run_gateway"]
