"""The app."""

from __future__ import annotations

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """Orders and what becomes of them."""

    name = "examples.django_shop.shop"
    label = "shop"
