"""`fedward-server doctor`: whether the coordinator's side is in order before (and while) it runs.

Nothing is changed, and no key or database URL is in what it says.
"""

from fedward_server.doctor.coordinator import examine_coordinator
from fedward_server.doctor.registry import registry

__all__ = ["examine_coordinator", "registry"]
