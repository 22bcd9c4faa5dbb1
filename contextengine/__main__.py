"""`python -m contextengine` is the `contextengine` command."""

from contextengine.cli import main

if __name__ == "__main__":
    main()
