import platform

import torch
import transformers

from rlaif.running import versions as module
from rlaif.running.versions import PACKAGES, versions


def test_versions_are_those_of_the_running_packages():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["transformers"] == transformers.__version__
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"rlaif", "ray", "deepspeed", "pyarrow", "omegaconf"} <= found.keys() <= {"python", *PACKAGES}


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    assert versions().keys() == {"python", "torch"}


def test_no_package_is_named_twice():
    assert len(set(PACKAGES)) == len(PACKAGES)
