"""``python -m gen_durable``: the command line."""

from gen_durable.cli import main

if __name__ == "__main__":
    main()
