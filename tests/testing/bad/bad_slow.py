"""Its import takes half a minute."""

import time

from courier import Courier

time.sleep(30)


class Plugin(Courier):
    name = "bad_slow"
