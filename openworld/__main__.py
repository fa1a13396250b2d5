"""``python -m openworld``: the same as the console script, also from a checkout that is not installed."""

from openworld.cli import main

if __name__ == "__main__":
    main()
