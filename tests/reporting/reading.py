"""Reading a page in a test; names and reasons that would run as scripts, were they not escaped."""

import time

HOSTILE = "<img src=x onerror=window.hacked=1>'\"&{{7*7}}.png"
FAILED = ("demo/vit", "saliency", "a.png")
REASON = "</script><script>window.hacked=1</script> (RuntimeError)"


def until(page, expression, seconds=30):
    """Wait for a JavaScript expression to hold; playwright's own waiting needs the eval that the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never became true: {expression}"
        time.sleep(0.02)
