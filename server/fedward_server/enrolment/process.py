"""The entry point of the enrolment listener's process."""

import asyncio

from fedward_common.channel.tls import require_tls13
from fedward_common.errors import ConfigError
from fedward_server.settings import CoordinatorSettings


def run_enrolment_listener(settings: CoordinatorSettings) -> None:
    """Runs until SIGTERM or SIGINT; the port is open only while an invite is (rules 18).

    Raises:
        ConfigError: coordinator.toml names no listener, or a certificate or key file is missing or
            open to others.
        StartError: grpc was imported too early or the self-test failed.
    """
    if settings.enrolment.listen is None:
        raise ConfigError(
            "enrolment.listen: expected the listener's address in coordinator.toml, found none"
        )
    require_tls13()
    # rules 17: grpc reads its cipher list when it is imported, so the line above comes first.
    from fedward_server.enrolment.listener import serve_enrolment  # noqa: PLC0415

    asyncio.run(serve_enrolment(settings, listen=settings.enrolment.listen))
