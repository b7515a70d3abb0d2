"""`python -m lumina_cli`: the `lumina` command of this interpreter."""

from lumina_cli.cli.app import main

if __name__ == "__main__":
    main()
