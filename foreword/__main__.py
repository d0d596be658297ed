"""`python -m foreword`, and `accelerate launch -m foreword`: the command line."""

from foreword.cli import main

if __name__ == "__main__":
    main()
