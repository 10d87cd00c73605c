"""The one error that a user's mistake raises: it names place, value, expectation, next step."""

from rftkit.environment import UserError

__all__ = ["UserError"]
