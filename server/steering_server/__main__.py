"""`python -m steering_server` is the command `steering-server`."""

from steering_server.cli import main

if __name__ == "__main__":
    main()
