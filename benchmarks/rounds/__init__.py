"""Rounds without training: what a round costs.

TLS 1.3 is required before anything here imports grpc, which reads its ciphers only once.
"""

from fedward_common.channel.tls import require_tls13

require_tls13()
