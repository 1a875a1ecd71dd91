"""A desk as a program asks it: its pages without a browser."""

from __future__ import annotations

import re

from starlette.testclient import TestClient

HERE = "http://127.0.0.1:8400"


def form_token(answer) -> str:
    """Return what every form of a page holds."""
    return re.search('name="csrf" value="([0-9a-f]+)"', answer.text)[1]


class Visitor:
    """Somebody at a desk.

    Attributes
    ----------
    urls
        Of everything that was asked for, and led to.
    """

    def __init__(self, access) -> None:
        self.client = TestClient(access, base_url=HERE, follow_redirects=False)
        self.urls: list[str] = []

    def get(self, path):
        answer = self.client.get(path)
        self._note(answer)
        return answer

    def post(self, path, **form):
        """Send a form; a field that is no Python name may end in an underscore."""
        token = form_token(self.client.get("/"))
        answer = self.client.post(path, data={"csrf": token} | {name.rstrip("_"): text for name, text in form.items()})
        self._note(answer)
        return answer

    def _note(self, answer) -> None:
        self.urls += [str(answer.request.url), answer.headers.get("location", "")]


def wrong(answer) -> dict[str, str]:
    """Return the sentences of a page that stand beside the fields that are wrong; "form" is of the whole form."""
    import html

    found = dict(re.findall('<p class="error" id="([a-z_]+)-error" role="alert">(.*?)</p>', answer.text))
    whole = re.search('<div class="notice wrong" role="alert"><p>(.*?)</p>', answer.text)
    return {name: html.unescape(text) for name, text in (found | ({"form": whole[1]} if whole else {})).items()}
