"""`python -m fedward_server` is the same program as `fedward-server`."""

from fedward_server.cli import main

if __name__ == "__main__":
    main()
