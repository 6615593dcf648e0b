"""`python -m salf` is the command `salf`."""

from salf.cli import main

if __name__ == "__main__":
    main()
