"""`openworld convert` for people who look for tools/convert_weights.py."""

import sys

from openworld.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
