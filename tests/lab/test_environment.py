from __future__ import annotations

import getpass
import json
import platform
import socket

import numpy as np
import torch

import assay
from assay.lab import environment as module
from assay.lab.environment import environment, usable_cores


def test_versions_are_those_that_run():
    """A published verdict would name the wrong software."""
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["assay"] == assay.__version__


def test_it_is_plain_json_and_the_caller_owns_it():
    """It could not be stored, or one caller's change would show in another's record."""
    found = environment()
    assert json.loads(json.dumps(found)) == found
    found.clear()
    assert environment()["cores"] == usable_cores()


def test_it_says_nothing_about_whose_machine_it_is():
    """Evidence that is published would name the machine or its user."""
    text = json.dumps(environment())
    assert socket.gethostname() not in text.split('"')
    assert getpass.getuser() not in text.split('"')


def test_hardware_is_plausible():
    """A timing would be published without the hardware that it was taken on."""
    found = environment()
    assert found["processor"]
    assert 1 <= found["cores"] <= 4096
    assert 2**28 < found["memory_bytes"] < 2**50


def test_packages_that_are_not_installed_are_left_out(monkeypatch):
    """A missing extra would be an error."""
    monkeypatch.setattr(module, "PACKAGES", ("numpy", "no-such-package"))
    found = module._environment.__wrapped__()
    assert "numpy" in found
    assert "no-such-package" not in found
