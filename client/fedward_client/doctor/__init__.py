"""`fedward-client doctor`: whether this hospital's side is in order before (and while) it runs.

Nothing is changed; all that is sent is a TLS handshake and the versions of this site's software to
the coordinator. No value of a patient, a key or an environment variable is in what it says.
"""

from fedward_client.doctor.site import examine_site

__all__ = ["examine_site"]
