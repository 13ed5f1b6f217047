"""Read a mail as its recipient's programs will: size, preview, links, pictures, the way out; and warn."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser

from service.flow.render.addresses import base_url
from service.flow.render.inputs import RenderInput
from service.flow.render.template import ADDED_FOOTER
from service.links import is_web_address
from service.settings import Settings

#: Bytes of HTML after which Gmail shows “[Message clipped]” instead of the rest, the way out among it.
CLIP_BYTES = 102 * 1024
#: Characters of a subject that phones show.
SHOWN_SUBJECT = 70
#: Characters of the preview beside the subject in an inbox.
SHOWN_PREVIEW = 140
#: Words below which a mail with pictures says nothing to whom they are not shown.
FEWEST_WORDS = 12

_WORD = re.compile(r"[^\W\d_]{2,}")
_TARGETS = re.compile(r"\(?\bhttps?://\S+\)?")
_PREVIEW_PADDING = re.compile(r"[\s\u00ad\u034f\u200b-\u200f\u2007\ufeff]+")


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found in one mail."""

    subject_characters: int
    #: What an inbox shows behind the subject.
    preview_text: str
    html_bytes: int
    #: Web addresses that the mail leads to, each once, in their order; the ways out are not among them.
    links: tuple[str, ...]
    #: What to mend by its kind, such as ``image-without-alt``.
    warnings: dict[str, str]


def proofread(given: RenderInput, subject: str, html: str, text: str, settings: Settings) -> Proof:
    """What a mail's recipient would stumble over, found without leaving the machine.

    Parameters
    ----------
    html, text : str
        As rendered for a preview, with the targets of the links as they were written.
    """
    reader = _Reader()
    reader.feed(html)
    reader.close()
    ways_out = f"{base_url(settings.public_url)}/u/"
    links = dict.fromkeys(
        target for target in reader.targets if is_web_address(target) and not target.startswith(ways_out)
    )
    size = len(html.encode("utf-8", "replace"))
    warnings: dict[str, str] = {}
    if size > CLIP_BYTES:
        warnings["clipped"] = f"the HTML has {size:,} bytes; Gmail hides what comes after {CLIP_BYTES:,}"
    if not subject:
        warnings["empty-subject"] = "the subject is empty for this contact; give its traits fall-backs"
    elif subject.isupper() and len(_WORD.findall(subject)) > 1:
        warnings["shouting-subject"] = "the subject is all capitals, as in spam; write it as a sentence"
    if len(subject) > SHOWN_SUBJECT:
        warnings["long-subject"] = f"the subject has {len(subject)} characters; phones show about {SHOWN_SUBJECT}"
    if reader.dead_anchors:
        warnings["dead-anchor"] = f"{reader.dead_anchors} link(s) lead nowhere: {reader.first_dead_anchor}"
    if reader.silent_images:
        warnings["image-without-alt"] = (
            f"{reader.silent_images} picture(s) without alt text: {reader.first_silent_image}"
        )
    words = len(_WORD.findall(_TARGETS.sub("", text)))
    if reader.images and words < FEWEST_WORDS:
        warnings["images-only"] = f"the mail has {reader.images} picture(s) and {words} words; many see only the words"
    if given.stream != "transactional":
        if ADDED_FOOTER in html:
            warnings["no-unsubscribe"] = (
                'the template shows this contact no way out, so one was added at the end; write <a href="{{ '
                'unsubscribe_url }}">Unsubscribe</a> where it belongs'
            )
        if not settings.postal_address:
            warnings["no-postal-address"] = "the law wants the sender's postal address; set KAIROS_POSTAL_ADDRESS"
        elif _squeezed(settings.postal_address) not in _squeezed(text):
            warnings["no-postal-address"] = "the template does not show the sender; write {{ postal_address }}"
    return Proof(len(subject), reader.preview(), size, tuple(links), warnings)


def _squeezed(text: str) -> str:
    return re.sub(r"\W+", " ", text).casefold().strip()


class _Reader(HTMLParser):
    """Walks a mail's HTML and notes its links, pictures and first words."""

    _SILENT = frozenset(("style", "script", "title", "head"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.targets: list[str] = []
        self.images = self.silent_images = self.dead_anchors = 0
        self.first_silent_image = self.first_dead_anchor = ""
        self._words: list[str] = []
        self._silent = 0
        self._in_link = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a link or a picture."""
        values = dict(attrs)
        if tag in self._SILENT:
            self._silent += 1
        elif tag in ("a", "area"):
            self._in_link += tag == "a"
            target = (values.get("href") or "").strip()
            # A named anchor is a place to jump to and needs no target.
            if target in ("", "#") and not (values.get("name") or values.get("id")):
                self.dead_anchors += 1
                self.first_dead_anchor = self.first_dead_anchor or (self.get_starttag_text() or "")[:120]
            self.targets.append(target)
        elif tag == "img":
            self.images += 1
            alt = values.get("alt")
            # An empty alt says “decoration”; around a link it leaves nothing to follow.
            if alt is None or (not alt.strip() and self._in_link):
                self.silent_images += 1
                self.first_silent_image = self.first_silent_image or (values.get("src") or "<img>")[:120]

    def handle_endtag(self, tag: str) -> None:
        """Leave a silent part or a link."""
        if tag in self._SILENT and self._silent:
            self._silent -= 1
        elif tag == "a" and self._in_link:
            self._in_link -= 1

    def handle_data(self, data: str) -> None:
        """Note the first words."""
        if not self._silent and len(self._words) < 200:
            self._words.append(data)

    def preview(self) -> str:
        """The first words of the page, hidden ones among them, as an inbox shows them."""
        return _PREVIEW_PADDING.sub(" ", "".join(self._words)).strip()[:SHOWN_PREVIEW]
