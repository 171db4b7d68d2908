"""The engine of a Django project, for ``gen-durable worker gen_durable.contrib.django.worker:engine``.

``manage.py durable worker`` starts the same. ``DJANGO_SETTINGS_MODULE`` names the settings.
"""

from __future__ import annotations

import django
from django.apps import apps

if not apps.ready:
    django.setup()

from gen_durable.contrib import django as project

engine = project.engine()
