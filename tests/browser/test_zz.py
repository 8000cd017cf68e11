import time

import pytest

from tests.browser.test_run_browser import BROWSE, MAKE

pytestmark = pytest.mark.browser


def test_x(lab, repository):
    lab.new(
        MAKE.format(repository=str(repository), name="sweep", seeds=3), BROWSE.format(name="sweep"), name="browse.ipynb"
    )
    lab.run_all()
    time.sleep(4)
    print(lab.text(0)[-3000:])
    print("----", lab.text(1)[:3000])
    print(lab.errors)
    lab.page.screenshot(path="/tmp/wt-widgets-x.png")
