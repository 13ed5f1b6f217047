"""Raw messages as mail servers write them when a mail comes back; composed here, in the shapes of well-known ones."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent

OURS = """\
Return-Path: <{sender}>
Received: from shop.example (shop.example [192.0.2.10]) by mx.relay.example; Mon, 2 Mar 2026 09:00:01 +0000
From: Kairos <hello@kairos.example>
To: {address}
Subject: For you
Message-ID: {message_id}
X-Kairos-Send: {send_id}
"""


def _report(head: str, words: str, status: str, returned: str, kind: str = "text/rfc822-headers") -> str:
    # Not dedented as one text: what is put in has lines of its own.
    return (
        f"{dedent(head).strip()}\n"
        "MIME-Version: 1.0\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="XX"\n\n'
        f"--XX\nContent-Type: text/plain; charset=us-ascii\n\n{dedent(words).strip()}\n\n"
        f"--XX\nContent-Type: message/delivery-status\n\n{dedent(status).strip()}\n\n"
        f"--XX\nContent-Type: {kind}\n\n{returned}\n--XX--\n"
    )


def postfix(to: str, returned: str, address: str, status: str = "5.1.1", says: str = "550 5.1.1 User unknown") -> str:
    return _report(
        f"""
        Return-Path: <>
        Received: by mx.relay.example (Postfix) id 4F1B2; Mon, 2 Mar 2026 09:00:05 +0000 (UTC)
        From: MAILER-DAEMON@mx.relay.example (Mail Delivery System)
        Subject: Undelivered Mail Returned to Sender
        To: {to}
        Auto-Submitted: auto-replied
        Message-Id: <20260302090005.4F1B2@mx.relay.example>
        """,
        f"""
        This is the mail system at host mx.relay.example.

        I'm sorry to have to inform you that your message could not be delivered.

        <{address}>: host mx.shop.example[192.0.2.20] said: {says} (in reply to RCPT TO command)
        """,
        f"""
        Reporting-MTA: dns; mx.relay.example
        X-Postfix-Queue-ID: 4F1B2
        Arrival-Date: Mon,  2 Mar 2026 09:00:02 +0000 (UTC)

        Final-Recipient: rfc822; {address}
        Original-Recipient: rfc822;{address}
        Action: failed
        Status: {status}
        Remote-MTA: dns; mx.shop.example
        Diagnostic-Code: smtp; {says}
        """,
        returned,
    )


def exim(to: str, returned: str, address: str) -> str:
    """The older shape: plain text and X-Failed-Recipients."""
    return (
        dedent(f"""\
        Return-path: <>
        X-Failed-Recipients: {address}
        Auto-Submitted: auto-replied
        From: Mail Delivery System <Mailer-Daemon@relay.example>
        To: {to}
        Subject: Mail delivery failed: returning message to sender
        Message-Id: <E1abc-0001-2x@relay.example>

        This message was created automatically by mail delivery software.

        A message that you sent could not be delivered to one or more of its
        recipients. This is a permanent error. The following address(es) failed:

          {address}
            SMTP error from remote mail server after RCPT TO:<{address}>:
            host mx.shop.example [192.0.2.20]: 550 5.1.1 <{address}>: Recipient address rejected

        ------ This is a copy of the message, including all the headers. ------

        """)
        + returned
    )


def qmail(to: str, returned: str, address: str) -> str:
    return (
        dedent(f"""\
        Return-Path: <>
        From: MAILER-DAEMON@relay.example
        To: {to}
        Subject: failure notice
        Date: 2 Mar 2026 09:00:09 -0000

        Hi. This is the qmail-send program at relay.example.
        I'm afraid I wasn't able to deliver your message to the following addresses.
        This is a permanent error; I've given up. Sorry it didn't work out.

        <{address}>:
        192.0.2.20 does not like recipient.
        Remote host said: 550 5.1.1 sorry, no mailbox here by that name
        Giving up on 192.0.2.20.

        --- Below this line is a copy of the message.

        """)
        + returned
    )


def exchange(to: str, returned: str, address: str) -> str:
    return _report(
        f"""
        From: <postmaster@shop.example>
        To: {to}
        Subject: Undeliverable: For you
        X-Auto-Response-Suppress: DR, OOF, AutoReply
        Auto-Submitted: auto-replied
        Message-ID: <exch-1@shop.example>
        """,
        f"""
        Your message to {address} couldn't be delivered.

        {address.partition("@")[0]} wasn't found at shop.example.
        """,
        f"""
        Reporting-MTA: dns;EXCH01.shop.example
        Received-From-MTA: dns;mx.relay.example
        Arrival-Date: Mon, 2 Mar 2026 09:00:03 +0000

        Final-Recipient: rfc822;{address}
        Action: failed
        Status: 5.1.10
        Diagnostic-Code: smtp;550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient {address} not found by SMTP
         address lookup
        """,
        returned,
        kind="message/rfc822",
    )


def gmail(to: str, returned: str, address: str) -> str:
    return _report(
        f"""
        Return-Path: <>
        From: Mail Delivery Subsystem <mailer-daemon@googlemail.com>
        To: {to}
        Auto-Submitted: auto-replied
        Subject: Delivery Status Notification (Failure)
        In-Reply-To: <unrelated@kairos.example>
        X-Failed-Recipients: {address}
        Message-ID: <69a5.gmr@mx.google.com>
        """,
        f"""
        ** Address not found **

        Your message wasn't delivered to {address} because the address couldn't be found.
        """,
        f"""
        Reporting-MTA: dns; googlemail.com
        Received-From-MTA: dns; hello@kairos.example
        Arrival-Date: Mon, 02 Mar 2026 01:00:03 -0800 (PST)
        X-Original-Message-ID: <elsewhere@kairos.example>

        Final-Recipient: rfc822; {address}
        Action: failed
        Status: 5.1.1
        Remote-MTA: dns; gmail-smtp-in.l.google.com. (192.0.2.26, the server for the domain gmail.com.)
        Diagnostic-Code: smtp; 550-5.1.1 The email account that you tried to reach does not exist. Please try
         550 5.1.1 double-checking the recipient's email address for typos. - gsmtp
        Last-Attempt-Date: Mon, 02 Mar 2026 01:00:04 -0800 (PST)
        """,
        returned,
        kind="message/rfc822",
    )


def ses(to: str, returned: str, address: str) -> str:
    """A relay that gave the mail a Message-ID of its own; ours is gone."""
    changed = "\n".join(
        "Message-ID: <0100019ce@eu-west-1.relay.example>" if line.startswith("Message-ID") else line
        for line in returned.splitlines()
    )
    return _report(
        f"""
        From: MAILER-DAEMON@relay.example
        To: {to}
        Subject: Delivery Status Notification (Failure)
        Message-ID: <0100019cf@relay.example>
        """,
        f"An error occurred while trying to deliver the mail to the following recipients:\n{address}",
        f"""
        Reporting-MTA: dns; a1.smtp-out.relay.example

        Action: failed
        Final-Recipient: rfc822; {address}
        Diagnostic-Code: smtp; 550 5.1.1 {address} user unknown
        Status: 5.1.1
        """,
        changed,
    )


def full_mailbox(to: str, returned: str, address: str) -> str:
    return postfix(to, returned, address, "5.2.2", "552 5.2.2 Mailbox is over quota")


def given_up(to: str, returned: str, address: str) -> str:
    """Tried for days, every answer temporary."""
    return postfix(to, returned, address, "4.4.1", "connect to mx.shop.example[192.0.2.20]:25: Connection timed out")


def refused_by_policy(to: str, returned: str, address: str) -> str:
    return postfix(
        to, returned, address, "5.7.515", "550 5.7.515 Access denied, sending domain does not meet the level"
    )


def vague(to: str, returned: str, address: str) -> str:
    """The status says nothing, the words do."""
    return postfix(to, returned, address, "5.0.0", "550 No such user here")


def opensmtpd(to: str, returned: str, address: str) -> str:
    return postfix(to, returned, address).replace("Action: failed", "Action: error")


def delayed(to: str, returned: str, address: str) -> str:
    return (
        postfix(to, returned, address, "4.4.1", "connect to mx.shop.example: timed out")
        .replace("Action: failed", "Action: delayed")
        .replace("Undelivered Mail Returned to Sender", "Delayed Mail (still being retried)")
    )


def relayed(to: str, returned: str, address: str) -> str:
    return postfix(to, returned, address, "2.0.0", "250 2.0.0 OK").replace("Action: failed", "Action: relayed")


def away(to: str, returned: str, address: str) -> str:
    return dedent(f"""\
        Return-Path: <>
        From: {address}
        To: {to}
        Subject: Out of office: For you
        Auto-Submitted: auto-replied (vacation)
        Message-ID: <vac-1@shop.example>

        I am away until Friday. If you get a 550 5.1.1 user unknown, write to my colleague.
        """)


def letter(to: str, returned: str, address: str) -> str:
    return (
        f"From: {address}\nTo: {to}\nSubject: Re: For you\nMessage-ID: <m1@shop.example>\n\nThank you, user unknown!\n"
    )


def complaint(to: str, returned: str, address: str, kind: str = "abuse", told: str = "") -> str:
    feedback = (
        dedent(f"""\
        Feedback-Type: {kind}
        User-Agent: SomeFBL/1.0
        Version: 1
        Source-IP: 192.0.2.10
        """)
        + told
    )
    return (
        "From: <fbl@provider.example>\n"
        f"To: {to}\nSubject: FW: For you\nMIME-Version: 1.0\n"
        'Content-Type: multipart/report; report-type=feedback-report; boundary="YY"\n\n'
        "--YY\nContent-Type: text/plain\n\nThis is an email abuse report.\n\n"
        f"--YY\nContent-Type: message/feedback-report\n\n{feedback}\n"
        f"--YY\nContent-Type: message/rfc822\nContent-Disposition: inline\n\n{returned}\nHello\n\n--YY--\n"
    )


def not_spam(to: str, returned: str, address: str) -> str:
    return complaint(to, returned, address, kind="not-spam")


Shape = Callable[[str, str, str], str]

#: What each shape is, and how bad.
SHAPES: dict[str, tuple[Shape, str, str | None]] = {
    "postfix": (postfix, "bounce", "hard"),
    "exim": (exim, "bounce", "hard"),
    "qmail": (qmail, "bounce", "hard"),
    "exchange": (exchange, "bounce", "hard"),
    "gmail": (gmail, "bounce", "hard"),
    "ses": (ses, "bounce", "hard"),
    "opensmtpd": (opensmtpd, "bounce", "hard"),
    "vague": (vague, "bounce", "hard"),
    "full mailbox": (full_mailbox, "bounce", "soft"),
    "given up": (given_up, "bounce", "soft"),
    "policy": (refused_by_policy, "bounce", "policy"),
    "complaint": (complaint, "complaint", None),
    "delayed": (delayed, "none", None),
    "relayed": (relayed, "none", None),
    "away": (away, "none", None),
    "letter": (letter, "none", None),
    "not spam": (not_spam, "none", None),
}
