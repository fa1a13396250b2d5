"""`openworld pretrain` for people who look for tools/pretrain.py."""

import sys

from openworld.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
