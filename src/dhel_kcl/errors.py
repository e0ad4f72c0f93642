"""Errors that a user can fix."""


class InputError(Exception):
    """Something outside the code is wrong: a config key, a file, a data set, the network, the disk.

    The message is one line that names the file or key and says how to fix it. The command line
    prints that line and exits with status 1; it never shows a traceback for this class.
    """
