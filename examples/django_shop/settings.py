"""Settings of the shop: ``GEN_DURABLE_DATABASE_URL`` or ``DATABASE_URL`` names the database, else it is the development
server. ``SHOP_SCHEMA`` names gen_durable's schema.
"""

from __future__ import annotations

import os
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from gen_durable import embedded
from gen_durable.config import database_url_from_environment

_given: dict[str, Any] = conninfo_to_dict(database_url_from_environment() or embedded.start())

SECRET_KEY = "of an example that listens on 127.0.0.1 only"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "examples.django_shop.urls"
USE_TZ = True
TIME_ZONE = "UTC"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "gen_durable.contrib.django",
    "examples.django_shop.shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _given.pop("dbname", "postgres"),
        "USER": _given.pop("user", ""),
        "PASSWORD": _given.pop("password", ""),
        "HOST": _given.pop("host", ""),
        "PORT": _given.pop("port", ""),
        "OPTIONS": _given,
    }
}
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

GEN_DURABLE = {
    "SCHEMA": os.environ.get("SHOP_SCHEMA", "django_shop"),
    "NAME": "django_shop",
    "QUEUES": {"default": 10, "shop": 20},
}
TASKS = {"default": {"BACKEND": "gen_durable.contrib.django.tasks.DurableBackend"}}
