"""How a hospital joins: keys made here, a request, the coordinator's grant, a site.toml.

`enrol` does it over the network, `write_request` and `install_grant` by carried files. Importing
this package does not import grpc: the TLS setting of rules 17 must come first.
"""

from fedward_client.enrol.flow import enrol, install_grant, write_request
from fedward_client.enrol.installation import Enrolment
from fedward_client.enrol.invitation import read_invite, refuse_argument, refuse_nothing
from fedward_client.enrol.places import Places, SiteOptions
from fedward_client.enrol.texts import carried_text, enrolled_text, teller

__all__ = [
    "Enrolment",
    "Places",
    "SiteOptions",
    "carried_text",
    "enrol",
    "enrolled_text",
    "install_grant",
    "read_invite",
    "refuse_argument",
    "refuse_nothing",
    "teller",
    "write_request",
]
