"""`python -m aezoo` is the `aezoo` command."""

from .cli import main

if __name__ == "__main__":
    main()
