"""`python -m kdexport`, and the program `kdexport`."""

import signal


def main() -> None:
    """Run the command line; Ctrl-C while it is imported ends it at once: nothing has begun, no traceback helps."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from kdexport.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()


if __name__ == "__main__":
    main()
