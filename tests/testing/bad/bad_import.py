"""It needs a module that nobody has."""

import no_such_module_of_anyone  # type: ignore[import-not-found]  # noqa: F401
from courier import Courier


class Plugin(Courier):
    name = "bad_import"
