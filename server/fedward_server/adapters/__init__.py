"""Everything that touches a framework, a disk or a network on the coordinator."""
