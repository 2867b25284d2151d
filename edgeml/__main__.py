"""`python -m edgeml` is `edgeml`."""

from edgeml.cli import main

if __name__ == "__main__":
    main()
