"""Django's tasks, run by the same workers."""

from __future__ import annotations

try:
    from django.tasks import task
except ImportError:  # before Django 6
    from django_tasks import task


@task
def send_mail(to: str, text: str) -> str:
    """Sends a mail."""
    from examples.django_shop.shop.models import Mail

    Mail.objects.create(to=to, text=text)
    return to
