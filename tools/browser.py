"A real headless Chromium or Chrome, driven by selenium; it reaches this machine only."

import os, shutil, tempfile, threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

BROWSERS, DRIVERS = (
    ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'),
    ('chromedriver', 'chromium.chromedriver'),
)


def missing():
    "Why no browser can be started here, or an empty string"
    if find_spec('selenium') is None:
        return 'selenium is not installed'
    if not any(map(shutil.which, BROWSERS)):
        return 'no Chromium or Chrome on the PATH (Debian: apt-get install chromium chromium-driver)'
    if not any(map(shutil.which, DRIVERS)):
        return 'no chromedriver on the PATH (Debian: apt-get install chromium-driver)'
    return ''


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args, base, **kwargs):
        self.base = base
        super().__init__(*args, **kwargs)

    def translate_path(self, path):
        return super().translate_path('/' + path.removeprefix(self.base))

    def log_message(self, *args):
        pass


@contextmanager
def serve(folder, base='/'):
    "The address of a site whose files are in `folder`, as if it were published below `base`"
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, base=base, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}{base}'
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def browser(width=1200, height=900, dark=False):
    "A fresh browser window; closed at the end"
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    first = lambda names: next(filter(None, map(shutil.which, names)))
    opts = webdriver.ChromeOptions()
    opts.binary_location = first(BROWSERS)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for a in (
            'headless=new',
            'disable-gpu',
            'no-first-run',
            'disable-background-networking',
            'disable-component-update',
            'disable-sync',
            'disable-dev-shm-usage',
            'host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
            f'window-size={width},{height}',
            f'user-data-dir={profile}',
        ):
            opts.add_argument(f'--{a}')
        if hasattr(os, 'geteuid') and os.geteuid() == 0:
            opts.add_argument('--no-sandbox')  # Chromium asks root for it
        driver = webdriver.Chrome(options=opts, service=Service(first(DRIVERS)))
        try:
            driver.execute_cdp_cmd(
                'Emulation.setDeviceMetricsOverride',
                dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600),
            )
            driver.execute_cdp_cmd(
                'Emulation.setEmulatedMedia',
                dict(features=[dict(name='prefers-color-scheme', value='dark' if dark else 'light')]),
            )
            yield driver
        finally:
            driver.quit()
