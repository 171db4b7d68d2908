"""The tables, with something on the shelves."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

SHELVES = {"kettle": 3, "teapot": 100}


def fill(apps: Any, _: Any) -> None:
    item = apps.get_model("shop", "Item")
    item.objects.bulk_create([item(name=name, stock=count) for name, count in SHELVES.items()])


class Migration(migrations.Migration):
    """The first."""

    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            "Item",
            [("name", models.TextField(primary_key=True, serialize=False)), ("stock", models.IntegerField())],
        ),
        migrations.CreateModel(
            "Order",
            [
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("item", models.ForeignKey("shop.Item", models.PROTECT)),
                ("quantity", models.IntegerField()),
                ("email", models.EmailField(max_length=254)),
                ("status", models.TextField(default="placed")),
            ],
        ),
        migrations.CreateModel(
            "Shipment",
            [
                ("order", models.OneToOneField("shop.Order", models.PROTECT, primary_key=True, serialize=False)),
                ("paid", models.IntegerField()),
            ],
        ),
        migrations.CreateModel(
            "Mail",
            [
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("to", models.EmailField(max_length=254)),
                ("text", models.TextField()),
            ],
        ),
        migrations.RunPython(fill, migrations.RunPython.noop),
    ]
