"""What we do with what was learned. Read `service/flow/` in this order; that is the product.

``ingest`` (event in) → ``audience`` (who) → ``predict`` (expect) → ``schedule`` (when) → ``decide`` (choose) →
``render`` (say) → ``deliver`` (send) → ``reward`` (learn). What composes several steps stands above the flow
(``campaigns``, ``worker``, ``demo``), what several share stands below it (``links``, ``providers``, ``tables``).
"""
