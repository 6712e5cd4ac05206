"""What a result was made with."""

import shutil
import subprocess

import numpy as np
import pytest

from rl import provenance


def test_versions():
    told = provenance.versions()
    own, statistics, images = "mmedagent-graph", {"numpy", "scipy"}, "pillow"
    assert {own, images, "torch", "transformers", "langgraph", *statistics} <= set(told)
    assert told["numpy"] == np.__version__


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository, and the module in it."""

    def git(*asked):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(["git", *who, *asked], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init")
    shutil.copy(provenance.__file__, tmp_path / "provenance.py")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "-m", "one")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    return git


def test_the_commit_and_whether_the_tree_differs(checkout, tmp_path):
    checkout("add", ".")
    checkout("commit", "-m", "two")
    here = checkout("rev-parse", "--short", "HEAD").strip()
    assert provenance.commit() == here
    (tmp_path / "other").write_text("changed")
    assert provenance.commit() == f"{here}-dirty"


def test_somebody_elses_repository_is_not_asked(checkout):
    assert provenance.commit() is None


def test_no_repository_and_no_git(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.commit() is None
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() is None
