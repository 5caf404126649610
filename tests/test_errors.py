"""The tree of errors: everything that a caller can meet is a KVStoreError, and says what he can do."""

import inspect

import pytest

from kvstore import errors

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_has_one_base_and_a_purpose(cls: type[Exception]) -> None:
    """All descend from KVStoreError, are documented, and need no more than a text."""
    assert issubclass(cls, errors.KVStoreError)
    assert cls.__doc__
    assert str(cls("why")) == "why"


@pytest.mark.parametrize("cls", [errors.ControlUnavailable, errors.NodeUnavailable])
def test_whatever_cannot_be_reached_is_unavailable(cls: type[Exception]) -> None:
    """Who only wants to try again need not know which process is away."""
    assert issubclass(cls, errors.Unavailable)


@pytest.mark.parametrize(
    "cls",
    [
        errors.BufferMismatch,
        errors.ConfigError,
        errors.TooLarge,
        errors.UnknownNamespace,
        errors.UnsupportedLayout,
    ],
)
def test_a_call_that_can_never_succeed_is_invalid_input(cls: type[Exception]) -> None:
    """Trying again is no use for any of them."""
    assert issubclass(cls, errors.InvalidInput)


def test_a_refusal_says_when_to_come_again() -> None:
    """In seconds, with a default."""
    assert errors.Refused("full").retry_after_s > 0
    assert errors.Refused("full", retry_after_s=2.5).retry_after_s == 2.5
