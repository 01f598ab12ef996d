"""A hostile cluster on one machine: namespaces, real sshd, real faults. The door: Lab, Profile, PROVIDERS."""

from tests.lab.cluster import Lab
from tests.lab.processes import LabError
from tests.lab.profiles import PROVIDERS, Profile

__all__ = ["PROVIDERS", "Lab", "LabError", "Profile"]
