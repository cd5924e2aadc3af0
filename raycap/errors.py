"""The one exception for what a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Wrong input. The message is one line (a line per error for a config file) that names the
    field, its value and the remedy; a job that meets it prints the message and exits with 2."""
