"""A headless Chromium, from what the machine has.

As root on Debian, Chromium and its driver are installed; elsewhere those that are there are used.
Where neither can be had, the tests skip and say why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

PROGRAMS = ("chromium", "chromedriver")


def install() -> None:
    """Debian's packages of both."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    packages = ["chromium", "chromium-driver"]
    for command in (
        ["update", "-q"],
        ["install", "-y", "-q", "--no-install-recommends", *packages],
    ):
        subprocess.run(["apt-get", *command], env=environment, check=True, capture_output=True)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser for the whole session."""
    if not all(map(shutil.which, PROGRAMS)):
        if os.getuid() != 0 or not Path("/etc/debian_version").exists():
            pytest.skip(
                "BROWSER TESTS NOT RUN: no chromium and chromedriver, and this isn't root on "
                "Debian, to install them"
            )
        try:
            install()
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            pytest.skip(f"BROWSER TESTS NOT RUN: apt-get {error.cmd[1]} failed: {said[-1]}")
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in (
        "headless=new",
        "disable-dev-shm-usage",
        "window-size=1200,1600",
        "disable-gpu",
    ):
        options.add_argument(f"--{argument}")
    if os.getuid() == 0:
        options.add_argument("--no-sandbox")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(executable_path=str(shutil.which("chromedriver")))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()
