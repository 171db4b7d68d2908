"""The shop's own tests, for ``manage.py test``: gen_durable's tables come with the test database."""

from __future__ import annotations

import json
from typing import Any

from django.test import TestCase, TransactionTestCase

from examples.django_shop.shop.durable import DAY
from examples.django_shop.shop.models import Item, Mail, Shipment
from gen_durable.contrib.django import client
from gen_durable.contrib.django.models import Instance
from gen_durable.contrib.django.testing import advance, drain

ANN = "ann@example.com"


class Placing(TestCase):
    """Rolled back with each test: what is inserted with ``conn=connection`` too."""

    def setUp(self) -> None:
        Item.objects.update_or_create(name="kettle", defaults={"stock": 3})

    def place(self, item: str, quantity: int = 1) -> Any:
        wish = {"item": item, "quantity": quantity, "email": ANN}
        return self.client.post("/orders", json.dumps(wish), content_type="application/json")

    def test_an_order_has_a_checkout(self) -> None:
        order = self.place("kettle").json()["order"]
        assert Instance.objects.get(key=f"order:{order}").state["order"] == order
        assert Item.objects.get(pk="kettle").stock == 2

    def test_out_of_stock(self) -> None:
        assert self.place("kettle", 4).status_code == 409
        assert not Instance.objects.filter(key__startswith="order:").exists()


class Shipping(TransactionTestCase):
    """Committed, so that steps see it; each test finds gen_durable's tables empty."""

    def setUp(self) -> None:
        Item.objects.update_or_create(name="teapot", defaults={"stock": 5})

    def post(self, path: str, **body: Any) -> Any:
        return self.client.post(path, json.dumps(body), content_type="application/json").json()

    def test_paid_and_shipped(self) -> None:
        assert Instance.objects.count() == 0
        order = self.post("/orders", item="teapot", email=ANN)["order"]
        drain()
        assert client().get(f"order:{order}").awaits == ["paid"]
        self.post("/payments", event="e1", order=order, amount=4200)
        assert drain().outcomes["failed"] == 0
        assert Shipment.objects.get().paid == 4200
        assert Mail.objects.get().to == ANN

    def test_never_paid(self) -> None:
        assert Instance.objects.count() == 0
        order = self.post("/orders", item="teapot", email=ANN)["order"]
        drain()
        advance(DAY + 1)
        drain()
        assert client().get(f"order:{order}").status == "failed"
        assert Shipment.objects.count() == 0
