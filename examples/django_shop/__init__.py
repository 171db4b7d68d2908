"""A shop with Django: ``python -m examples.django_shop``."""
