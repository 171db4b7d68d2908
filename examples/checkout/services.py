"""What the steps reach out to. Both connect on first use, so importing this needs neither a database nor a provider."""

from __future__ import annotations

import os

from examples.checkout.payments import Payments
from examples.checkout.shop import Shop
from gen_durable.config import database_url_from_environment

SCHEMA = os.environ.get("CHECKOUT_SCHEMA", "checkout_demo")

shop = Shop(database_url_from_environment() or "", SCHEMA)
payments = Payments(os.environ.get("CHECKOUT_PROVIDER_URL", "http://127.0.0.1:8080"))
