"""`openworld run` for people who look for tools/train_net.py."""

import sys

from openworld.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
