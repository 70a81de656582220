"""The browser that looks at pages, where this machine has one."""

import shutil


NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
NO_BROWSER = f"no browser: none of {', '.join(NAMES)} is on this machine"


def launched(engine):
    """The browser, started by playwright."""
    return engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
