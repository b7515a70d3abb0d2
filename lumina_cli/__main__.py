"""`python -m lumina_cli`, so that `torchrun -m lumina_cli train ...` works."""

from lumina_cli.cli.app import main

if __name__ == "__main__":
    main()
