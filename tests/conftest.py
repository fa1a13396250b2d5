"""No test touches the user's cache of annotations; the tests of the cache name a folder of their own."""

import os

os.environ["OPENWORLD_CACHE"] = "off"
