"""`python -m rlhfkit` is `rlhfkit`."""

from rlhfkit.cli import main

if __name__ == "__main__":
    main()
