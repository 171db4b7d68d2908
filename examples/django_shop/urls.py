"""The shop's pages."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

from examples.django_shop.shop import views

urlpatterns = [
    path("orders", views.place),
    path("orders/<int:number>", views.status),
    path("payments", views.pay),
    path("admin/", admin.site.urls),
]
