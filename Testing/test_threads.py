"""Limits of threads, and what must hold when several threads use the library at once."""

from __future__ import annotations

import os
import threading

import numba
import pytest
import SimpleITK as sitk
import torch

from RegMambaLib.io.quiet import quiet_itk
from RegMambaLib.threads import limited_threads


def counts():
    return numba.get_num_threads(), torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()


def test_a_limit_holds_within_its_block_and_is_gone_after_it_even_after_an_error():
    before = counts()
    with limited_threads(1):
        assert counts() == (1, 1, 1)
        with limited_threads(0):
            assert counts() == (1, 1, 1)
    assert counts() == before
    with pytest.raises(ZeroDivisionError), limited_threads(1):
        raise ZeroDivisionError
    assert counts() == before


def test_threads_that_read_at_once_leave_stderr_and_itks_warnings_as_they_were(capfd):
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    both_in, first_out = threading.Barrier(2), threading.Event()

    def first():
        with quiet_itk():
            both_in.wait(10)
        first_out.set()

    def second():
        with quiet_itk():
            both_in.wait(10)
            first_out.wait(10)
            assert not sitk.ProcessObject.GetGlobalWarningDisplay()
            os.write(2, b"progress\n")

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "progress\nafterwards\n"
    assert sitk.ProcessObject.GetGlobalWarningDisplay() == shown


def test_in_the_main_thread_what_itk_prints_is_kept_off_stderr(capfd):
    with quiet_itk():
        os.write(2, b"noise")
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"
