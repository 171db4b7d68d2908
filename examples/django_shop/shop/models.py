"""The shop's own tables."""

from __future__ import annotations

from django.db import models


class Item(models.Model):
    """Something to sell, and how many of it are left."""

    name = models.TextField(primary_key=True)
    stock = models.IntegerField()


class Order(models.Model):
    """What a customer wants."""

    item = models.ForeignKey(Item, models.PROTECT)
    quantity = models.IntegerField()
    email = models.EmailField()
    status = models.TextField(default="placed")


class Shipment(models.Model):
    """What has left the house; one for an order."""

    order = models.OneToOneField(Order, models.PROTECT, primary_key=True)
    paid = models.IntegerField()


class Mail(models.Model):
    """What a customer was told; here it stands for a mail server."""

    to = models.EmailField()
    text = models.TextField()
