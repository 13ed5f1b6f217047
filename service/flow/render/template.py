"""Templates: MJML or HTML with Liquid and slots, compiled once, then filled for each recipient."""

from __future__ import annotations

import html as html_text
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from html.parser import HTMLParser
from typing import Literal

from liquid import BoundTemplate

from service.errors import Invalid
from service.flow.render.language import parse

SourceFormat = Literal["mjml", "html"]
SUBJECT_SLOT = "subject"
#: Characters of a template's source.
LONGEST_SOURCE = 500_000

# Around a link's target while a mail is being made; a trait cannot guess it.
_NONCE = secrets.token_hex(6)
LINK_BEGIN, LINK_END = f"\ue000{_NONCE}b", f"\ue000{_NONCE}e"
PIXEL = f"\ue000{_NONCE}p"

_SLOT = re.compile(
    r"\{%-?\s*slot\s+['\"]?([A-Za-z0-9_-]+)['\"]?\s*-?%\}(.*?)\{%-?\s*endslot\s*-?%\}", re.DOTALL | re.IGNORECASE
)
_SLOT_TAG = re.compile(r"\{%-?\s*(?:end)?slot\b.*?%\}", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<(/?)(mjml|mj-[a-z-]+)\b((?:\"[^\"]*\"|'[^']*'|[^>\"'])*?)(/?)>", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_HREF = re.compile(r"(<(?:a|area|v:[a-z]+)\b[^>]*?\shref\s*=\s*)\"([^\"]*)\"", re.IGNORECASE | re.DOTALL)
_POSITION = re.compile(r"at position (\d+):\d+")

_CONTENT = frozenset(
    [
        "mj-accordion",
        "mj-button",
        "mj-carousel",
        "mj-divider",
        "mj-image",
        "mj-navbar",
        "mj-raw",
        "mj-social",
        "mj-spacer",
        "mj-table",
        "mj-text",
    ]
)
#: Elements that hold other MJML elements, and which.
_CHILDREN: dict[str, frozenset[str]] = {
    "mjml": frozenset(("mj-head", "mj-body")),
    "mj-head": frozenset(
        [
            "mj-attributes",
            "mj-breakpoint",
            "mj-font",
            "mj-html-attributes",
            "mj-preview",
            "mj-style",
            "mj-title",
            "mj-raw",
        ]
    ),
    "mj-body": frozenset(["mj-section", "mj-wrapper", "mj-hero", "mj-raw"]),
    "mj-wrapper": frozenset(["mj-section", "mj-hero", "mj-raw"]),
    "mj-section": frozenset(["mj-column", "mj-group", "mj-raw"]),
    "mj-group": frozenset(["mj-column", "mj-raw"]),
    "mj-column": _CONTENT,
    "mj-hero": _CONTENT,
    "mj-accordion": frozenset(("mj-accordion-element", "mj-raw")),
    "mj-accordion-element": frozenset(("mj-accordion-title", "mj-accordion-text", "mj-raw")),
    "mj-carousel": frozenset(("mj-carousel-image",)),
    "mj-navbar": frozenset(("mj-navbar-link", "mj-raw")),
    "mj-social": frozenset(("mj-social-element", "mj-raw")),
}
_KNOWN = frozenset(_CHILDREN) | frozenset(name for names in _CHILDREN.values() for name in names)
#: Elements whose insides are HTML or settings, not MJML to be checked.
_OPAQUE = _KNOWN - frozenset(_CHILDREN)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A template with its slots filled, ready for recipients. Both parts carry link marks around their targets."""

    html: BoundTemplate
    text: BoundTemplate


def compile_template(source: str, source_format: SourceFormat, slots: Mapping[str, str] | None = None) -> str:
    """HTML of a template, styles inlined, Liquid untouched; slots hold ``slots``' content or their own default.

    Parameters
    ----------
    source : str
        MJML or HTML with Liquid. A part between ``{% slot name %}`` and ``{% endslot %}`` is an experiment's to fill.
    slots : mapping of str to str, optional
        Content by slot: MJML elements, HTML or text. In an MJML template, what is not MJML is wrapped as its place
        needs.

    Raises
    ------
    Invalid
        Naming the line of ``source`` and the remedy.
    """
    if source_format not in ("mjml", "html"):
        raise Invalid(f"source_format {source_format!r} is not known; use mjml or html")
    if len(source) > LONGEST_SOURCE:
        raise Invalid(f"the template has {len(source)} characters; at most {LONGEST_SOURCE} are taken")
    if "\x00" in source or "\ue000" in source:
        raise Invalid("the template holds a character (U+0000 or U+E000) that no mail may carry; take it out")
    filled = _fill_slots(source, source_format, slots or {})
    parse(filled, autoescape=True)
    protected, kept = _protect(filled)
    if source_format == "mjml":
        _check_mjml(protected)
        protected = _compile_mjml(protected)
    elif "<" not in protected:
        raise Invalid("the template holds no HTML element; for plain words use the template plain.mjml")
    return _restore(_inline(protected), kept)


def slots_of(source: str) -> tuple[str, ...]:
    """Names of a template's slots, in order; the subject line is always one.

    Examples
    --------
    >>> slots_of("<p>{% slot hero %}Hello{% endslot %}</p>")
    ('subject', 'hero')
    """
    return (SUBJECT_SLOT, *dict.fromkeys(match.group(1) for match in _SLOT.finditer(source)))


#: What every mail's context holds beside traits and variables.
GIVEN = frozenset(["user_id", "campaign_id", "unsubscribe_url", "postal_address"])


def traits_of(*sources: str) -> dict[str, bool]:
    """Traits that Liquid texts use, and whether each stands somewhere bare: with neither a ``default`` nor an ``if``.

    Parameters
    ----------
    sources : str
        A subject, a template's source, the content of arms.

    Raises
    ------
    Invalid
        If the Liquid of one does not parse.

    Examples
    --------
    >>> traits_of("Hi {{ first_name | default: 'you' }}", "{{ city }}{% if cart.total %}{{ cart.total }}{% endif %}")
    {'cart': False, 'city': True, 'first_name': False}
    """
    used: set[str] = set()
    guarded: set[str] = set()
    bare: set[str] = set()
    for source in sources:
        # Slot tags are ours, not Liquid's; what stands between them is.
        plain = _SLOT_TAG.sub("", source)
        used |= {str(name) for name in parse(plain, autoescape=False).analyze(include_partials=False).globals}
        for tag in re.findall(r"\{%-?\s*(?:if|elsif|unless|case)\b(.*?)%\}", plain, re.DOTALL):
            guarded |= set(re.findall(r"[A-Za-z_][\w-]*", tag))
        for output in re.findall(r"\{\{-?(.*?)-?\}\}", plain, re.DOTALL):
            name, *filters = (part.strip() for part in output.split("|"))
            if not any(one.startswith("default") for one in filters):
                bare |= set(re.findall(r"^[A-Za-z_][\w-]*", name))
    return {name: name in bare - guarded for name in sorted(used - GIVEN)}


@lru_cache(maxsize=512)
def prepare(compiled_html: str) -> Compiled:
    """Parsed HTML and text twin of a compiled template, with link marks and the pixel's place.

    Raises
    ------
    Invalid
        If the Liquid does not parse.
    """
    protected, kept = _protect(compiled_html)
    marked = _HREF.sub(lambda match: f'{match.group(1)}"{LINK_BEGIN}{match.group(2)}{LINK_END}"', protected)
    writer = _TextWriter(kept)
    writer.feed(marked)
    writer.close()
    return Compiled(
        html=parse(_restore(_before_body_end(marked, PIXEL), kept), autoescape=True),
        text=parse(writer.text(), autoescape=False, what="text twin"),
    )


@lru_cache(maxsize=512)
def compile_filled(source: str, source_format: SourceFormat, slots: tuple[tuple[str, str], ...]) -> str:
    """`compile_template` remembered: each combination of arms is compiled once."""
    return compile_template(source, source_format, dict(slots))


def _fill_slots(source: str, source_format: str, slots: Mapping[str, str]) -> str:
    names = slots_of(source)
    for name in slots:
        if name not in names:
            raise Invalid(f"the template has no slot {name!r} (it has {', '.join(names)}); add {{% slot {name} %}}…")

    def content(match: re.Match[str]) -> str:
        given = slots.get(match.group(1))
        if given is None:
            return match.group(2)
        return _wrapped(given, _element_around(source, match.start())) if source_format == "mjml" else given

    filled = _SLOT.sub(content, source)
    stray = _SLOT_TAG.search(filled)
    if stray:
        line = filled.count("\n", 0, stray.start()) + 1
        raise Invalid(f"template line {line}: {stray.group()} has no partner; write {{% slot name %}}…{{% endslot %}}")
    return filled


def _element_around(source: str, position: int) -> str | None:
    blank = _COMMENT.sub(lambda match: " " * len(match.group()), source)
    open_elements: list[str] = []
    for tag in _TAG.finditer(blank, 0, position):
        closing, name, _, empty = tag.groups()
        if closing and name in open_elements:
            del open_elements[len(open_elements) - 1 - open_elements[::-1].index(name) :]
        elif not closing and not empty:
            open_elements.append(name)
    return open_elements[-1] if open_elements else None


def _wrapped(content: str, around: str | None) -> str:
    """Arm content as MJML that may stand inside the element ``around``."""
    is_mjml = content.lstrip().startswith("<mj-")
    if around in ("mj-column", "mj-hero"):
        return content if is_mjml else f"<mj-text>{content}</mj-text>"
    if around in ("mj-body", "mj-wrapper"):
        if content.lstrip().startswith(("<mj-section", "<mj-wrapper", "<mj-hero", "<mj-raw")):
            return content
        inner = content if is_mjml else f"<mj-text>{content}</mj-text>"
        return f"<mj-section><mj-column>{inner}</mj-column></mj-section>"
    return content


_SCAN = re.compile(r"\{%.*?%\}|\{\{.*?\}\}|<!--|-->|</?[a-zA-Z][a-zA-Z0-9:-]*|>|\"|'", re.DOTALL)
_RAW_ELEMENTS = frozenset(("title", "style", "script", "textarea", "mj-title", "mj-style", "mj-preview"))


def _protect(source: str) -> tuple[str, dict[str, str]]:
    """``source`` with each piece of Liquid replaced by a word or a comment that HTML and CSS parsers carry through.

    A tag in running text becomes a comment, since a parser moves words out of a table but leaves comments in place.
    """
    kept: dict[str, str] = {}
    pieces: list[str] = []
    done = 0
    state, quote, raw = "text", "", ""
    for match in _SCAN.finditer(source):
        found = match.group()
        if found.startswith("{"):
            if state == "tag" and not quote:
                line = source.count("\n", 0, match.start()) + 1
                raise Invalid(
                    f"template line {line}: {found} stands between attributes; put it inside an attribute's quotes"
                )
            word = f"kq{_NONCE}x{len(kept)}x"
            if state == "text" and not raw and found.startswith("{%"):
                word = f"<!--{word}-->"
            kept[word] = found
            pieces += [source[done : match.start()], word]
            done = match.end()
        elif state == "text":
            if found == "<!--":
                state = "comment"
            elif found.startswith("<"):
                name = found.lstrip("</").lower()
                if raw:
                    if found.startswith("</") and name == raw:
                        raw, state = "", "tag"
                else:
                    state = "tag"
                    if not found.startswith("</") and name in _RAW_ELEMENTS:
                        raw = name
        elif state == "comment":
            if found == "-->":
                state = "text"
        elif quote:
            if found == quote:
                quote = ""
        elif found in ("'", '"'):
            quote = found
        elif found == ">":
            if source[match.start() - 1] == "/":
                raw = ""
            state = "text"
    return "".join([*pieces, source[done:]]), kept


def _restore(protected: str, kept: Mapping[str, str]) -> str:
    if not kept:
        return protected
    words = re.compile(rf"<!--kq{_NONCE}x\d+x-->|kq{_NONCE}x\d+x")
    return words.sub(lambda match: kept[match.group()], protected)


def _check_mjml(protected: str) -> None:
    """Name what the compiler passes over in silence: unknown, misplaced, unclosed elements, text that would vanish."""

    def fail(position: int, reason: str) -> None:
        raise Invalid(f"template line {protected.count(chr(10), 0, position) + 1}: {reason}")

    blank = _COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), protected)
    if not re.match(r"\s*<mjml\b", blank):
        fail(0, "an MJML template begins with <mjml>; for plain HTML set source_format to html")
    stack: list[tuple[str, int]] = []
    done = 0
    for tag in _TAG.finditer(blank):
        closing, name, _, empty = tag.groups()
        parent = stack[-1][0] if stack else None
        if parent is not None and parent in _OPAQUE | {"mj-attributes", "mj-html-attributes"}:
            # Its inside is HTML; only its own end matters here.
            if closing and name == parent:
                stack.pop()
            done = tag.end()
            continue
        stray = blank[done : tag.start()].strip()
        if stray and parent is not None:
            fail(done, f"the text {stray[:40]!r} would be lost in <{parent}>; put it into <mj-text>")
        done = tag.end()
        if name == "mj-include":
            fail(tag.start(), "<mj-include> reads files, which mails may not; paste the part in")
        if name not in _KNOWN:
            fail(tag.start(), f"<{name}> is no MJML element; see the list of components in MJML's documentation")
        if closing:
            if parent != name:
                opened = f"<{parent}> of line {_line(protected, stack[-1][1])}" if stack else "nothing"
                fail(tag.start(), f"</{name}> closes {opened}; close elements in the order they were opened")
            stack.pop()
            continue
        if parent is None and name != "mjml":
            fail(tag.start(), f"<{name}> stands outside <mjml>")
        if parent is not None and name not in _CHILDREN[parent]:
            allowed = ", ".join(sorted(_CHILDREN[parent]))
            fail(tag.start(), f"<{name}> cannot stand in <{parent}>; there may be {allowed}")
        if not empty:
            stack.append((name, tag.start()))
    if stack:
        fail(stack[-1][1], f"<{stack[-1][0]}> is not closed; add </{stack[-1][0]}>")
    if "<mj-body" not in blank:
        fail(0, "the template has no <mj-body>; there would be nothing to read")


def _line(source: str, position: int) -> int:
    return source.count("\n", 0, position) + 1


def _compile_mjml(protected: str) -> str:
    from mjml import mjml2html

    try:
        # No web fonts: opening a mail tells nobody else about it.
        return str(mjml2html(protected, fonts={}))
    except ValueError as error:
        position = _POSITION.search(str(error))
        place = f" line {_line(protected, int(position.group(1)))}" if position else ""
        raise Invalid(f"template{place}: MJML says {error}; check that every element is closed and quoted") from error


def _inline(page: str) -> str:
    import css_inline

    try:
        return str(css_inline.CSSInliner(keep_at_rules=True, load_remote_stylesheets=False).inline(page))
    except css_inline.InlineError as error:
        raise Invalid(f"the template's styles cannot be read: {error}; check its <style> blocks") from error


#: How the way out begins that is put into a marketing mail whose template shows its reader none.
ADDED_FOOTER = '<p style="font:12px Arial,sans-serif;color:#666666;text-align:center">'


def with_way_out(page: str, text: str, unsubscribe_url: str, postal_address: str) -> tuple[str, str]:
    """A filled mail's HTML and text with the sender's address and a link out at their ends."""
    sender = f"{html_text.escape(postal_address)}<br>" if postal_address else ""
    link = f'<a href="{LINK_BEGIN}{unsubscribe_url}{LINK_END}" style="color:#666666">Unsubscribe</a>'
    page = _before_body_end(page, f"{ADDED_FOOTER}{sender}{link}</p>")
    lines = [text.rstrip(), "", *([postal_address] if postal_address else []), f"Unsubscribe ({unsubscribe_url})", ""]
    return page, "\n".join(lines)


def _before_body_end(page: str, addition: str) -> str:
    place = page.lower().rfind("</body>")
    return page + addition if place < 0 else page[:place] + addition + page[place:]


class _TextWriter(HTMLParser):
    """Writes the text twin: blocks as lines, links as ``words (target)``; Liquid keeps its place in the order."""

    _BLOCKS = frozenset(
        [
            "p",
            "div",
            "tr",
            "table",
            "section",
            "article",
            "header",
            "footer",
            "ul",
            "ol",
            "li",
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
            "h6",
            "blockquote",
            "pre",
            "address",
        ]
    )
    _SILENT = frozenset(("style", "script", "title", "head", "noscript"))
    _VOID = frozenset(
        ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"]
    )

    def __init__(self, kept: Mapping[str, str]) -> None:
        super().__init__(convert_charrefs=True)
        self._kept = kept
        self._pieces: list[str] = []
        self._hidden: list[str] = []
        self._links: list[tuple[str, int]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a block, a link or a hidden part."""
        values = dict(attrs)
        if self._hidden:
            if tag not in self._VOID:
                self._hidden.append(tag)
            return
        style = re.sub(r"\s", "", values.get("style") or "").lower()
        if tag in self._SILENT or "display:none" in style:
            if tag not in self._VOID:
                self._hidden.append(tag)
            return
        if tag == "br":
            self._pieces.append("\n")
        elif tag == "hr":
            self._pieces.append("\n\n----\n\n")
        elif tag == "img" and values.get("alt"):
            self._pieces.append(str(values["alt"]))
        elif tag == "li":
            self._pieces.append("\n- ")
        elif tag in self._BLOCKS:
            self._pieces.append("\n\n" if tag in ("p", "h1", "h2", "h3", "table") else "\n")
        elif tag == "a":
            self._links.append((values.get("href") or "", len(self._pieces)))

    def handle_endtag(self, tag: str) -> None:
        """End a block, a link or a hidden part."""
        if self._hidden:
            if tag in self._hidden:
                del self._hidden[len(self._hidden) - 1 - self._hidden[::-1].index(tag) :]
            return
        if tag == "a" and self._links:
            target, began = self._links.pop()
            words = "".join(self._pieces[began:]).strip()
            bare = target.removeprefix(LINK_BEGIN).removesuffix(LINK_END)
            if bare and not bare.startswith("#"):
                self._pieces.append(target if not words or words == bare else f" ({target})")
        elif tag in self._BLOCKS:
            self._pieces.append("\n\n" if tag in ("p", "h1", "h2", "h3", "table") else "\n")

    def handle_data(self, data: str) -> None:
        """Running text."""
        if not self._hidden:
            self._pieces.append(re.sub(r"\s+", " ", data))

    def handle_comment(self, data: str) -> None:
        """Liquid tags stand as comments; other comments are for mail programs."""
        if not self._hidden and f"<!--{data}-->" in self._kept:
            self._pieces.append(f"<!--{data}-->")

    def text(self) -> str:
        """The text, its Liquid restored, with at most one empty line in a row."""
        return _restore(tidy("".join(self._pieces)), self._kept) + "\n"


def tidy(text: str) -> str:
    """``text`` without space at line ends and with at most one empty line in a row."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t\xa0]*\n[ \t\xa0]*", "\n", text)).strip()


def unescape_target(target: str) -> str:
    """A link's target as it was written, from an HTML attribute."""
    return html_text.unescape(target).strip()
