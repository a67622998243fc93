"""`python -m fedward_client` is the same program as `fedward-client`."""

from fedward_client.cli import main

if __name__ == "__main__":
    main()
