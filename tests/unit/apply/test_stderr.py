"""Lines of daemons for journald: never waited for, whatever journald does."""

import logging
import os
import socket
from pathlib import Path

import pytest

from hostmesh.apply.stderr import StderrHandler
from hostmesh.errors import HostmeshError


def logger(handler: StderrHandler) -> logging.Logger:
    made = logging.Logger("test", logging.INFO)
    made.addHandler(handler)
    return made


def test_a_line_has_the_level_that_journald_reads() -> None:
    ours, journald = socket.socketpair()
    with ours, journald:
        handler = StderrHandler(ours.fileno())
        logger(handler).warning("disk %s", "full")
        logger(handler).error("%s", HostmeshError("gone", "wait"))
        assert journald.recv(100) == b"<4>disk full\n<3>gone; wait\n"
        handler.close()


def test_a_frozen_journald_is_not_waited_for_and_one_that_is_gone_ends_nothing() -> None:
    ours, journald = socket.socketpair()
    handler = StderrHandler(ours.fileno())
    log = logger(handler)
    while not handler.lost:
        log.info("x" * 1000)
    journald.close()
    log.info("nobody is there")
    assert handler.lost == 2
    handler.close()
    ours.close()


def test_a_file_is_written_as_usual(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    descriptor = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    logger(StderrHandler(descriptor)).info("hello")
    os.close(descriptor)
    assert capsys.readouterr().err == "<6>hello\n"
