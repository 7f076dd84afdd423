"""`python -m tlexport` is the command line."""

from tlexport.cli import main

if __name__ == "__main__":
    main()
