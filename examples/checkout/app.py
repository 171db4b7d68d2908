"""The engine that runs checkouts, for ``gen-durable worker examples.checkout.app:engine`` and the demo's own workers.

``GEN_DURABLE_DATABASE_URL`` or ``DATABASE_URL`` names the database, ``CHECKOUT_SCHEMA`` the schema, and
``CHECKOUT_PROVIDER_URL`` the payment provider.
"""

from __future__ import annotations

from examples.checkout.machine import Checkout
from examples.checkout.services import SCHEMA
from gen_durable import Engine

engine = Engine(machines=[Checkout], queues={"checkout": 16}, schema=SCHEMA, name="checkout")
