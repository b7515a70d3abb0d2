"""`python -m lumina_cli`: the command `lumina` of this very interpreter."""

from lumina_cli.cli.app import main

if __name__ == "__main__":
    main()
