"""Place an order, pay, look."""

from __future__ import annotations

import json

from django.db import connection, transaction
from django.db.models import F
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from examples.django_shop.shop.durable import Checkout
from examples.django_shop.shop.models import Item, Order
from gen_durable.contrib.django import client
from gen_durable.errors import NoSuchInstance


class OutOfStock(Exception):
    """There are not so many of it."""


def key_of(order: int) -> str:
    return f"order:{order}"


@csrf_exempt
@require_POST
def place(request: HttpRequest) -> JsonResponse:
    """The order's row, the goods from the shelf and the checkout are there together, or not at all."""
    wish = json.loads(request.body)
    quantity = int(wish.get("quantity", 1))
    try:
        with transaction.atomic():
            item = Item.objects.get(pk=wish["item"])
            order = Order.objects.create(item=item, quantity=quantity, email=wish["email"])
            client().insert(Checkout(order=order.pk), key=key_of(order.pk), conn=connection)
            left = Item.objects.filter(pk=item.pk, stock__gte=quantity)
            if not left.update(stock=F("stock") - quantity):  # raising rolls back: no order, and no checkout
                raise OutOfStock
    except Item.DoesNotExist:
        return JsonResponse({"error": f"there is no {wish['item']}"}, status=404)
    except OutOfStock:
        return JsonResponse({"error": f"there are not {quantity} of {wish['item']}"}, status=409)
    return JsonResponse({"order": order.pk}, status=201)


@csrf_exempt
@require_POST
def pay(request: HttpRequest) -> JsonResponse:
    """The payment provider's webhook; it may call twice, which counts once."""
    payment = json.loads(request.body)
    try:
        new = client().signal(
            key_of(payment["order"]),
            "paid",
            {"amount": payment["amount"]},
            dedup_key=f"payment:{payment['event']}",
            conn=connection,
        )
    except NoSuchInstance:
        return JsonResponse({"error": f"no order {payment['order']} waits for a payment"}, status=404)
    return JsonResponse({"new": new})


def status(request: HttpRequest, number: int) -> JsonResponse:
    """How far an order is."""
    order = Order.objects.select_related("shipment").filter(pk=number).first()
    if order is None:
        return JsonResponse({"error": f"there is no order {number}"}, status=404)
    checkout = client().get(key_of(number))
    shipment = getattr(order, "shipment", None)
    return JsonResponse(
        {
            "order": order.pk,
            "status": order.status,
            "paid": None if shipment is None else shipment.paid,
            "checkout": checkout.status,
            "step": checkout.step,
            "waits_for": checkout.awaits,
        }
    )
