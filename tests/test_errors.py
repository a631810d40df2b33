"""Errors that users act on."""

from __future__ import annotations

import pickle

import pytest

from assay import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_survives_the_way_back_from_a_worker(name):
    """Workers send errors by pickle; type and message must arrive."""
    error = getattr(errors, name)("what, expected, to do")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error) and str(back) == "what, expected, to do"
    assert isinstance(back, errors.AssayError)


def test_errors_are_what_python_programmers_catch():
    """`except ValueError` and `except ImportError` must go on working."""
    assert issubclass(errors.UnknownName, ValueError) and issubclass(errors.InvalidInput, ValueError)
    assert issubclass(errors.MissingExtra, ImportError) and issubclass(errors.MissingData, FileNotFoundError)
