"""The event names: Segment's e-commerce v2 words, the e-mail words, and what each carries.

References
----------
Segment, "E-commerce events" v2 and "Email" specs (names only).
"""

from __future__ import annotations

from dataclasses import dataclass

ORDER_COMPLETED = "Order Completed"
ORDER_CANCELLED = "Order Cancelled"
ORDER_REFUNDED = "Order Refunded"
PRODUCT_VIEWED = "Product Viewed"
PRODUCT_ADDED = "Product Added"
CHECKOUT_STARTED = "Checkout Started"
PAGE = "Page"
SCREEN = "Screen"
IDENTIFY = "Identify"
GROUP = "Group"
ALIAS = "Alias"
EMAIL_SENT = "Email Sent"
EMAIL_WITHHELD = "Email Withheld"
EMAIL_OPENED = "Email Opened"
EMAIL_CLICKED = "Email Link Clicked"
EMAIL_BOUNCED = "Email Bounced"
EMAIL_COMPLAINED = "Email Marked as Spam"
UNSUBSCRIBED = "Unsubscribed"
SUBSCRIBED = "Subscribed"
ARM_SHOWN = "Arm Shown"
REWARD_RECEIVED = "Reward Received"
EMAIL_DELIVERED = "Email Delivered"

#: An open or click counts as a person's at or above this (ARCHITECTURE section 9).
HUMAN_PPM = 500_000


@dataclass(frozen=True)
class EventKind:
    """A known event name, what its ``ref`` names and what its ``value_minor`` holds."""

    name: str
    says: str
    ref: str | None = None
    value: str | None = None


KINDS: dict[str, EventKind] = {
    kind.name: kind
    for kind in (
        EventKind(ORDER_COMPLETED, "An order was placed.", "order_id", "revenue of the order"),
        EventKind(ORDER_CANCELLED, "An order, or a part of it, was cancelled.", "order_id", "value taken back"),
        EventKind(ORDER_REFUNDED, "Money of an order was given back.", "order_id", "value given back"),
        EventKind(PRODUCT_VIEWED, "A product page was looked at.", "product_id", "price"),
        EventKind(PRODUCT_ADDED, "A product was put into the cart.", "product_id", "price"),
        EventKind(CHECKOUT_STARTED, "A checkout was begun.", "order_id", "value of the cart"),
        EventKind(PAGE, "A page of the site was seen."),
        EventKind(SCREEN, "A screen of the app was seen."),
        EventKind(IDENTIFY, "Traits of the contact were told."),
        EventKind(GROUP, "The contact was put into a group (a company, a club)."),
        EventKind(ALIAS, "Two names were said to be one contact."),
        EventKind(EMAIL_SENT, "A mail was accepted by the provider.", "send_id"),
        EventKind(EMAIL_WITHHELD, "A planned mail was held out, for comparison.", "send_id"),
        EventKind(EMAIL_OPENED, "A mail was opened.", "send_id"),
        EventKind(EMAIL_CLICKED, "A link in a mail was clicked.", "send_id"),
        EventKind(EMAIL_BOUNCED, "A mail came back.", "send_id"),
        EventKind(EMAIL_COMPLAINED, "A mail was marked as spam.", "send_id"),
        EventKind(UNSUBSCRIBED, "The contact asked for no more mail.", "send_id"),
        EventKind(SUBSCRIBED, "The contact asked for mail."),
        EventKind(ARM_SHOWN, "A decision taken through the API was shown.", "decision_id"),
        EventKind(REWARD_RECEIVED, "A reward for a decision was reported through the API.", "decision_id", "reward"),
        EventKind(EMAIL_DELIVERED, "A provider says that a mail reached its mailbox.", "send_id"),
    )
}

#: Names of the e-commerce spec's first version, read as their successors.
ALIASES = {
    "Viewed Product": PRODUCT_VIEWED,
    "Added Product": PRODUCT_ADDED,
    "Completed Order": ORDER_COMPLETED,
    "Email Clicked": EMAIL_CLICKED,
}

#: Property that holds ``ref`` for a kind, as callers spell it.
REF_PROPERTIES = ("order_id", "product_id", "send_id", "decision_id")


def canonical_name(name: str) -> str:
    """The vocabulary's name for ``name``; an unknown name stays as it is, a custom event.

    Examples
    --------
    >>> canonical_name("Completed Order")
    'Order Completed'
    """
    return ALIASES.get(name, name)
