"""`openworld evaluate` for people who look for tools/evaluate.py."""

import sys

from openworld.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
