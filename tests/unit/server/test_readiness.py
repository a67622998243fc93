"""Waiting for descriptors, also of a high number."""

import os
import resource
import socket
import time

import pytest

from fedward_server.adapters.readiness import readable


def test_what_can_be_read_and_what_was_closed_is_named() -> None:
    (ours, theirs), (quiet, other), (ended, end) = (socket.socketpair() for _ in range(3))
    theirs.send(b"x")
    end.close()

    found = readable(ours, quiet, ended.fileno(), seconds=5)

    assert found == {ours.fileno(), ended.fileno()}
    for one in (ours, theirs, quiet, other, ended):
        one.close()


def test_nothing_is_found_after_the_time() -> None:
    ours, theirs = socket.socketpair()
    began = time.monotonic()

    assert readable(ours, seconds=0.05) == set()
    assert readable(seconds=0.05) == set()
    assert readable(ours, seconds=-1) == set()

    assert time.monotonic() - began >= 0.1
    ours.close()
    theirs.close()


def test_a_descriptor_over_1023_is_waited_for() -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1100:
        pytest.skip("this process may not open so many files")
    reading, writing = os.pipe()
    high = 1050
    os.dup2(reading, high)
    os.write(writing, b"x")

    assert readable(high, seconds=5) == {high}

    for one in (reading, writing, high):
        os.close(one)


def test_a_closed_descriptor_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    ours.close()
    theirs.close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        readable(number, seconds=0)
