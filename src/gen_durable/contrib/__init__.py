"""Integrations, a module for each framework; nothing else of the package imports them.

``gen_durable.contrib.fastapi``, ``gen_durable.contrib.starlette``, ``gen_durable.contrib.django``.
"""
